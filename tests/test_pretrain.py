"""Pretraining of the miniature: its loss by hand, its pictures, its mosaics, and equal bytes from equal seeds."""

import dataclasses
import math

import open_clip
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from fvlm.data.order import generator_of
from fvlm.errors import InputError
from fvlm.params import Pretrain, load_params
from fvlm.tensors import load_tensors, sha256_of_tensors
from fvlm.vlm import pretrain as pretraining
from fvlm.vlm.clip import build_clip
from fvlm.vlm.pretrain import (
    CaptionedPictures,
    contrastive_loss,
    embed_in_mosaics,
    emoji_pictures,
    held_out_accuracy,
    miniature_config,
    pretrain,
)

MEAN, STD = list(open_clip.OPENAI_DATASET_MEAN), list(open_clip.OPENAI_DATASET_STD)
NAMES = ["person", "car", "banana"]


@pytest.fixture(scope="module")
def pictures() -> CaptionedPictures:
    return emoji_pictures(NAMES, "background", 32, MEAN, STD, seed=0)


def make_clip():
    miniature = load_params("recipes/emoji.yaml").vlm.miniature
    assert miniature is not None
    config = miniature_config(miniature)
    config["vision_cfg"] |= {"width": 8, "image_size": 32}
    torch.manual_seed(0)
    return build_clip(config)


def test_the_loss_does_not_contrast_pictures_that_share_a_caption():
    images = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    captions = torch.tensor([[1.0, 0], [0, 1]])
    loss = contrastive_loss(images, captions, torch.tensor([0, 0, 1]), torch.tensor(2.0))
    e2 = math.exp(2)
    to_text = math.log(1 + 1 / e2)  # each picture against two captions
    first, second = math.log(2 + 1 / e2), math.log(1 + 2 / e2)  # each caption against three pictures
    assert loss.item() == pytest.approx((to_text + (first + second) / 2) / 2)


def test_a_caption_without_a_picture_in_the_batch_adds_nothing_but_competition():
    images, captions = torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 0], [0, 1]])
    loss = contrastive_loss(images, captions, torch.tensor([0]), torch.tensor(1.0))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)) / 2)


def test_pictures_depend_on_the_generator_alone_and_differ_within_a_batch(pictures):
    first, concepts = pictures.draw(64, generator_of(1))
    again, _ = pictures.draw(64, generator_of(1))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert set(concepts.tolist()) == {0, 1, 2, 3}  # the last is a background without objects


def test_each_concept_is_drawn_with_its_own_sprites(pictures):
    concepts = torch.tensor([0, 1, 2] * 200)
    chosen = pictures._sprite_of(concepts, generator_of(0))
    assert torch.equal(pictures.concept_of_sprite[chosen], concepts)
    assert len(set(chosen.tolist())) == len(pictures.sprites)  # and all of them occur


class MeanColour(nn.Module):
    """A tower whose every stage is a stub: cells are means of 32 x 32 pixels, and so is the pooled embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.AvgPool2d(32)
        self.layer1 = self.layer2 = self.layer3 = self.layer4 = nn.Identity()

    def attnpool(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def test_mosaics_give_each_picture_its_own_embedding_in_order():
    images = torch.rand(8, 3, 64, 64)
    torch.testing.assert_close(embed_in_mosaics(MeanColour(), images, (0, 0)), images.mean(dim=(2, 3)))


def test_a_moved_mosaic_is_read_where_it_was_moved_to():
    ramp = torch.arange(128.0)[:, None].expand(128, 128)  # rows 0..127 of a canvas of four pictures
    tiles = ramp.reshape(2, 64, 2, 64).permute(0, 2, 1, 3).reshape(4, 1, 64, 64).expand(4, 3, 64, 64)
    upper = embed_in_mosaics(MeanColour(), tiles, (16, 0))[0, 0]
    # cells of the moved canvas: rows -16..15 (torus: mean of 112..127 and 0..15), 16..47, 48..79; read half-way between
    cells = [(119.5 + 7.5) / 2, 31.5, 63.5]
    assert upper.item() == pytest.approx(((cells[0] + cells[1]) / 2 + (cells[1] + cells[2]) / 2) / 2)


QUICK = Pretrain(
    steps=4,
    batch_size=16,
    learning_rate=2e-3,
    kernel_learning_rate=1e-2,
    weight_decay=0.05,
    warmup_steps=1,
    threads=1,
    held_out_pictures=128,
)
TEMPLATES = ["a photo of a {}.", "a {}."]


def accuracy_of(clip, pictures, count=128):
    with torch.no_grad():
        text = clip.encode_text(open_clip.tokenize([f"a {n}." for n in pictures.names], clip.context_length))
    return held_out_accuracy(clip, pictures, text, count, seed=3)


def test_equal_seeds_give_equal_bytes_and_the_same_held_out_accuracy(pictures, tmp_path):
    hashes, accuracies = [sha256_of_tensors(make_clip().state_dict())], []
    for run in ("first", "second"):
        clip = make_clip()
        pretrain(clip, pictures, TEMPLATES, QUICK, 3, tmp_path / f"{run}.safetensors")
        hashes.append(sha256_of_tensors(clip.state_dict()))
        accuracies.append(accuracy_of(clip, pictures))
    assert hashes[0] != hashes[1] == hashes[2]
    assert accuracies[0] == accuracies[1]
    assert not clip.training


class Killed(BaseException):
    """What a signal does to a run, at a point of our choice."""


def killed_after(steps, pictures, monkeypatch):
    """`pictures` that are drawn `steps` times and no more."""
    draws = iter(range(steps))
    draw = CaptionedPictures.draw

    def limited(self, count, generator):
        if next(draws, None) is None:
            raise Killed
        return draw(self, count, generator)

    monkeypatch.setattr(CaptionedPictures, "draw", limited)
    return pictures


@pytest.mark.parametrize("steps_done", [1, 4, 5])  # before the first checkpoint, right after the second, and between
def test_a_killed_pretraining_goes_on_to_the_same_bytes(pictures, tmp_path, monkeypatch, capsys, steps_done):
    monkeypatch.setattr(pretraining, "CHECKPOINT_EVERY", 2)
    params = dataclasses.replace(QUICK, steps=7)
    undisturbed = make_clip()
    pretrain(undisturbed, pictures, TEMPLATES, params, 3, tmp_path / "undisturbed.safetensors")

    checkpoint = tmp_path / "vlm.safetensors"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        pretrain(make_clip(), killed_after(steps_done, pictures, patch), TEMPLATES, params, 3, checkpoint)
    assert checkpoint.exists() == (steps_done >= 2)
    capsys.readouterr()
    clip = make_clip()
    pretrain(clip, pictures, TEMPLATES, params, 3, checkpoint)
    assert ("going on after step 4 of 7" in capsys.readouterr().out) == (steps_done >= 4)
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, clip.state_dict()[name]), name


def test_a_finished_pretraining_is_not_repeated_where_the_accuracy_check_was_killed(pictures, tmp_path, monkeypatch):
    finished, again = make_clip(), make_clip()
    pretrain(finished, pictures, TEMPLATES, QUICK, 3, tmp_path / "vlm.safetensors")
    pretrain(again, killed_after(0, pictures, monkeypatch), TEMPLATES, QUICK, 3, tmp_path / "vlm.safetensors")
    assert sha256_of_tensors(again.state_dict()) == sha256_of_tensors(finished.state_dict())


def test_pretraining_that_diverges_is_told_in_one_line_and_keeps_the_finite_checkpoint(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "CHECKPOINT_EVERY", 1)
    losses = iter([torch.nn.functional.cross_entropy, None])

    def loss(images, text, concepts, scale):
        value = contrastive_loss(images, text, concepts, scale)
        return value if next(losses) else value * math.nan

    monkeypatch.setattr(pretraining, "contrastive_loss", loss)
    checkpoint = tmp_path / "vlm.safetensors"
    with pytest.raises(InputError, match=r"vlm: step 2: the loss is not finite; lower vlm\.pretrain\.learning_rate"):
        pretrain(make_clip(), pictures, TEMPLATES, QUICK, 3, checkpoint)
    tensors, metadata = load_tensors(checkpoint, "checkpoint", "")
    assert metadata["step"] == 1
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


def test_a_kernel_is_a_view_of_the_matrix_of_its_filters():
    conv = nn.Conv2d(3, 4, (3, 2))
    kernel = conv.weight.detach().clone()
    register_parametrization(conv, "weight", pretraining._FromMatrix(conv.weight))
    matrix = dict(conv.named_parameters())["parametrizations.weight.original"]
    assert matrix.shape == (4, 18)
    assert torch.equal(conv.weight, kernel)
    assert conv.weight.data_ptr() == matrix.data_ptr()  # no copy in any step
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert sorted(matrix[2].tolist()) == sorted(kernel[2].flatten().tolist())


@pytest.mark.parametrize("frozen", ["kernel_learning_rate", "learning_rate"])
def test_muon_trains_the_towers_kernels_and_adamw_all_else(pictures, tmp_path, frozen):
    clip = make_clip()
    before = {name: parameter.detach().clone() for name, parameter in clip.named_parameters()}
    params = dataclasses.replace(QUICK, steps=2)
    params = (
        dataclasses.replace(params, learning_rate=1e-30)
        if frozen == "learning_rate"
        else dataclasses.replace(params, kernel_learning_rate=1e-30)
    )
    pretrain(clip, pictures, TEMPLATES, params, 3, tmp_path / "vlm.safetensors")
    after = dict(clip.named_parameters())
    assert after.keys() == before.keys()  # the matrices are gone again
    kernels = {name for name, parameter in before.items() if parameter.ndim == 4}
    assert len(kernels) == 19  # 3 of the stem; 3 and a shortcut in each of four stages
    still = {name for name in before if torch.equal(after[name], before[name])}
    assert kernels & still == (kernels if frozen == "kernel_learning_rate" else set())
    assert ("visual.attnpool.q_proj.weight" in still) == ("logit_scale" in still) == (frozen == "learning_rate")


def coloured_pictures():
    """Squares of three colours: what even a small tower tells apart after a few steps."""
    sprites = torch.ones(3, 4, 72, 72)
    sprites[:, :3] = torch.eye(3)[:, :, None, None]
    return CaptionedPictures(
        names=["red", "green", "blue", "background"],
        sprites=sprites,
        concept_of_sprite=torch.arange(3),
        backgrounds=torch.full((2, 3, 64, 64), 0.5),
        size=32,
        mean=torch.tensor(MEAN),
        std=torch.tensor(STD),
    )


def test_pretraining_learns_which_word_goes_with_which_picture(tmp_path):
    pictures, clip = coloured_pictures(), make_clip()
    params = dataclasses.replace(QUICK, steps=60, batch_size=32, learning_rate=5e-3, warmup_steps=10)
    before = accuracy_of(clip, pictures, 512)
    pretrain(clip, pictures, TEMPLATES, params, 3, tmp_path / "vlm.safetensors")
    assert before < 0.5
    assert accuracy_of(clip, pictures, 512) > 0.85  # 6 % are backgrounds, too few to be learned so soon

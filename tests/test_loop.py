import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from fvlm.compute import set_up
from fvlm.data.dataset import Sample, TrainingPictures
from fvlm.data.transforms import fit
from fvlm.detector.detector import arrange, build_detector
from fvlm.detector.losses import LossSums
from fvlm.params import load_params
from fvlm.training.loop import COLUMNS, TrainingDiverged, build_optimizer, train
from fvlm.vlm.clip import VlmCard, build_clip

PARAMS = load_params(Path(__file__).resolve().parents[1] / "recipes" / "emoji.yaml")
TRAIN = dataclasses.replace(
    PARAMS.train,
    steps=7,
    batch_size=2,
    optimizer="adamw",
    learning_rate=1e-2,
    warmup_steps=2,
    checkpoint_every=3,
    seed=0,
)
CPU = torch.device("cpu")
TEXT = torch.eye(3, 4)


class Noise(TrainingPictures):
    """Five pictures of noise with a box each; an item depends on (epoch, index) only."""

    def __init__(self, size=8):
        self.canvas_size, self.mean, self.std = size, (0.5,) * 3, (0.3,) * 3

    def __len__(self):
        return 5

    def __getitem__(self, key):
        epoch, index = key
        generator = torch.Generator().manual_seed(100 * epoch + index)
        image = torch.randint(256, (3, self.canvas_size, self.canvas_size), dtype=torch.uint8, generator=generator)
        box = torch.tensor([[0.1, 0.2, 0.6, 0.7]]) * self.canvas_size
        return Sample(fit(image, self.canvas_size), box, torch.tensor([1 + index % 2]))


class Interrupted(Exception):
    """Stands for a kill."""


class FakeDetector(nn.Module):
    """Four terms, a batch norm, a learnable temperature, and chance from the generators, as sampling has."""

    def __init__(self, fail_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.temperature_scale = nn.Parameter(torch.ones(()))
        self.calls, self.fail_at = 0, fail_at

    @property
    def temperature(self):
        return 0.5 * self.temperature_scale

    def anchor_targets(self, boxes, canvas_hw, params, generators):
        return list(boxes)

    def rpn_box_elements(self, targets, canvas_hw):
        return torch.tensor([len(targets)])

    def loss_sums(self, images, targets, anchor_targets, text, params, generators):
        self.calls += 1
        if self.calls == self.fail_at:
            raise Interrupted
        chance = torch.stack([torch.rand(4, generator=generator) for generator in generators])
        embedding = self.body(images).relu().mean((2, 3)) + 0.1 * chance
        logits = embedding @ text.T / self.temperature
        labels = torch.stack([labels[0] for _, labels in targets])
        return LossSums(
            rpn_score=embedding.square().sum(),
            rpn_box=embedding.abs().sum()[None],
            classes=nn.functional.cross_entropy(logits, labels, reduction="sum"),
            box=embedding.sum().square(),
            foreground=torch.tensor(len(images)),
        )


def run(detector, folder, **changes):
    params = dataclasses.replace(TRAIN, **changes)
    return train(detector, Noise(), TEXT, params, device=CPU, checkpoint=folder / "c.safetensors")


def without_speed(rows):
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows]


def assert_equal_state(a, b):
    for (name, tensor), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("killed_at", [2, 4, 6, 7])
def test_a_run_killed_at_any_step_ends_with_the_same_weights_and_rows(tmp_path, optimizer, killed_at):
    whole = FakeDetector()
    rows = run(whole, tmp_path / "whole", optimizer=optimizer)

    with pytest.raises(Interrupted):
        run(FakeDetector(fail_at=killed_at), tmp_path, optimizer=optimizer)
    torch.manual_seed(12345)  # a new process has other global chance
    again = FakeDetector()
    rows_again = run(again, tmp_path, optimizer=optimizer)
    assert again.calls == 7 - 3 * ((killed_at - 1) // 3)  # the checkpoint was used
    assert without_speed(rows_again) == without_speed(rows)
    assert_equal_state(again, whole)


def test_a_run_that_was_killed_after_its_last_step_trains_no_more(tmp_path):
    whole = FakeDetector()
    rows = run(whole, tmp_path)
    again = FakeDetector()
    assert run(again, tmp_path) == rows
    assert again.calls == 0
    assert_equal_state(again, whole)


def test_neither_workers_nor_checkpoints_change_the_weights(tmp_path):
    detectors = [FakeDetector() for _ in range(3)]
    for i, changes in enumerate(({}, {"workers": 2}, {"checkpoint_every": 1})):
        run(detectors[i], tmp_path / str(i), **changes)
    assert_equal_state(detectors[0], detectors[1])
    assert_equal_state(detectors[0], detectors[2])


def test_another_seed_gives_other_weights(tmp_path):
    first, second = FakeDetector(), FakeDetector()
    run(first, tmp_path / "0")
    run(second, tmp_path / "1", seed=1)
    assert not torch.equal(*(detector.state_dict()["body.0.weight"] for detector in (first, second)))


def test_the_rows_are_those_of_losses_csv(tmp_path):
    rows = run(FakeDetector(), tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    for row in rows:
        assert tuple(row) == COLUMNS
        terms = sum(row[name] for name in COLUMNS if name.startswith("loss_"))
        assert row["loss"] == pytest.approx(terms, rel=1e-5)
        assert all(float(f"{value:.6g}") == value for value in row.values())
    assert [row["learning_rate"] for row in rows[:3]] == [0.001, 0.0055, 0.01]
    assert rows[0]["temperature"] == 0.5
    assert rows[-1]["temperature"] != 0.5


def test_a_step_uses_the_scheduled_learning_rate(tmp_path):
    start, still = FakeDetector(), FakeDetector()
    run(still, tmp_path, steps=1, warmup_start=0.0, optimizer="sgd")
    for name, parameter in still.named_parameters():
        assert torch.equal(parameter, start.get_parameter(name)), name


def test_a_loss_that_is_not_finite_stops_with_step_terms_and_advice_and_keeps_the_last_good_state(tmp_path):
    class Diverging(FakeDetector):
        def loss_sums(self, *args):
            sums = super().loss_sums(*args)
            return dataclasses.replace(sums, box=sums.box * (float("inf") if self.calls == 5 else 1))

    with pytest.raises(TrainingDiverged) as caught:
        run(Diverging(), tmp_path)
    said = str(caught.value)
    assert re.search(
        r"step 5: the loss is not finite: loss inf, loss_rpn_score \d.*, loss_box inf; .*learning_rate", said
    )
    assert "\n" not in said
    healthy = FakeDetector()
    run(healthy, tmp_path)
    assert healthy.calls == 4  # went on after step 3


def test_weights_that_are_not_finite_reach_no_checkpoint(tmp_path):
    class Exploding(FakeDetector):
        def loss_sums(self, *args):
            sums = super().loss_sums(*args)
            # the square root of zero: a finite loss with an infinite gradient
            broken = (next(self.body.parameters()) * 0).abs().sum().sqrt()
            return dataclasses.replace(sums, box=broken) if self.calls == 6 else sums

    with pytest.raises(TrainingDiverged, match=r"step 6: body\.0\.weight is not finite"):
        run(Exploding(), tmp_path)
    healthy = FakeDetector()
    run(healthy, tmp_path)
    assert healthy.calls == 4


def test_progress_off_a_terminal_is_about_ten_plain_lines(tmp_path, capsys):
    run(FakeDetector(), tmp_path, steps=40)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert "\r" not in "".join(lines)
    assert re.fullmatch(r"train: step 40/40, loss \d+\.\d+, \d+\.\d images/s, 0 s left", lines[-1])


def test_resuming_is_said(tmp_path, capsys):
    with pytest.raises(Interrupted):
        run(FakeDetector(fail_at=5), tmp_path)
    capsys.readouterr()
    run(FakeDetector(), tmp_path)
    assert capsys.readouterr().out.startswith("train: going on after step 3 of 7 ")


# With the real detector, on a miniature tower.


def build_real(freeze="all"):
    config = {
        "embed_dim": 16,
        "quick_gelu": False,
        "vision_cfg": {"layers": (1, 1, 1, 1), "width": 8, "image_size": 32, "head_width": 8, "patch_size": None},
        "text_cfg": {"context_length": 16, "vocab_size": 50, "width": 8, "heads": 1, "layers": 1},
    }
    torch.manual_seed(0)
    clip = build_clip(config)
    card = VlmCard.describe(
        clip, architecture="miniature", weights="random", model_config=config, pretraining=None, provenance={}
    )
    model = dataclasses.replace(PARAMS.model, freeze=freeze, image_size=64, fpn_channels=8, head_channels=8)
    return build_detector(model, card, clip.visual)


def run_real(detector, folder, precision="float32", **changes):
    params = dataclasses.replace(TRAIN, **changes)
    text = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    checkpoint = folder / "c.safetensors"
    return train(detector, Noise(64), text, params, device=CPU, checkpoint=checkpoint, precision=precision)


@pytest.mark.parametrize(
    ("freeze", "passes", "precision"),
    [("all", 1, "float32"), ("norm_eval", 1, "float32"), ("none", 1, "float32"), ("all", 2, "float32"),
     ("all", 1, "bfloat16")],
)  # fmt: skip
def test_the_real_detector_resumes_bit_for_bit(tmp_path, monkeypatch, freeze, passes, precision):
    changes = {"batch_size": 2 * passes, "accumulation": passes, "precision": precision}
    whole = build_real(freeze)
    rows = run_real(whole, tmp_path / "whole", **changes)

    killed = build_real(freeze)
    loss_sums, calls = killed.loss_sums, []

    def sums_until_killed(*args):
        calls.append(1)
        if len(calls) == 4 * passes + passes:  # the last pass of step 5
            raise Interrupted
        return loss_sums(*args)

    monkeypatch.setattr(killed, "loss_sums", sums_until_killed)
    with pytest.raises(Interrupted):
        run_real(killed, tmp_path, **changes)
    again = build_real(freeze)
    assert without_speed(run_real(again, tmp_path, **changes)) == without_speed(rows)
    assert len(rows) == 7
    assert_equal_state(again, whole)


def test_a_frozen_tower_has_the_same_hash_after_training_and_a_free_one_has_not(tmp_path):
    for freeze in ("all", "none"):
        detector = build_real(freeze)
        before = detector.tower.hash()
        run_real(detector, tmp_path / freeze, steps=2)
        assert (detector.tower.hash() == before) == (freeze == "all")


def names_by_decay(detector, **changes):
    optimizer = build_optimizer(detector, dataclasses.replace(TRAIN, weight_decay=0.1, **changes))
    name_of = {id(p): name for name, p in detector.named_parameters()}
    decayed, free = ({name_of[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    return decayed, free


def test_biases_are_decayed_and_norms_temperature_and_tower_are_not():
    detector = build_real("none").train()
    decayed, free = names_by_decay(detector)
    norms = {
        f"{prefix}.{name}"
        for prefix, module in detector.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)
        for name, _ in module.named_parameters()
    }
    tower = {name for name, p in detector.named_parameters() if name.startswith("tower.") and p.requires_grad}
    assert tower
    assert norms - tower
    assert free == {name for name in norms if not name.startswith("tower.")} | tower | {"temperature_scale"}
    assert any(name.endswith(".bias") for name in decayed)
    trained = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert decayed | free == trained
    assert not any("attnpool" in name for name in trained)


def test_a_frozen_tower_is_not_in_the_optimizer():
    decayed, free = names_by_decay(build_real("all").train())
    assert not [name for name in decayed | free if name.startswith("tower.")]


def test_sgd_has_momentum_and_no_nesterov():
    optimizer = build_optimizer(FakeDetector(), dataclasses.replace(TRAIN, optimizer="sgd", momentum=0.8))
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(0.8, False)}


def test_a_long_run_says_once_how_long_it_will_take(tmp_path, capsys):
    run(FakeDetector(), tmp_path, steps=150)
    said = [line for line in capsys.readouterr().out.splitlines() if "s a step" in line]
    assert len(said) == 1
    assert re.fullmatch(r"train: \S+ s a step, so about \d+:\d\d:\d\d h from here to the end", said[0])


@pytest.mark.gpu
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_gpu_trains_in_bfloat16_with_channels_last_and_goes_on_from_its_checkpoint(tmp_path, accumulation):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    compute = dataclasses.replace(PARAMS.compute, device="cuda", precision="bfloat16", channels_last=True)
    device, text = set_up(compute), torch.randn(3, 16)
    params = dataclasses.replace(TRAIN, batch_size=4, accumulation=accumulation)

    def train_it(steps):
        detector = build_real()
        arrange(detector.to(device), compute)
        wanted = dataclasses.replace(params, steps=steps, checkpoint_every=3)
        return train(
            detector,
            Noise(64),
            text,
            wanted,
            device=device,
            checkpoint=tmp_path / "c.safetensors",
            precision="bfloat16",
        )

    assert len(train_it(3)) == 3
    rows = train_it(7)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert not torch.backends.cudnn.allow_tf32


def test_a_real_detector_whose_weights_are_no_longer_finite_says_so_at_its_next_loss(tmp_path, monkeypatch):
    detector = build_real()
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda optimizer: detector.rpn.box.weight.data.fill_(float("nan")))
    with pytest.raises(TrainingDiverged, match="step 2: the loss is not finite"):
        run_real(detector, tmp_path)

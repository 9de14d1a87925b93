import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from fvlm.checkpoint import checkpoint_key, load_checkpoint, save_checkpoint
from fvlm.params import load_params
from fvlm.tensors import load_tensors, save_tensors

PARAMS = load_params(Path(__file__).resolve().parents[1] / "recipes" / "emoji.yaml")
INPUTS = {"train_split": "aa", "images": "bb", "vlm": "cc", "text_embeddings": "dd"}


class Model(nn.Module):
    """A trained part with a batch norm, and a frozen one in eval mode, as the tower is."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x):
        return self.head(self.frozen(x))


def make(kind="adamw", seed=0):
    torch.manual_seed(seed)
    model = Model().train()
    trained = [p for p in model.parameters() if p.requires_grad]
    if kind == "sgd":
        return model, [torch.optim.SGD(trained, lr=1e-3, momentum=0.9)]
    if kind == "two":
        return model, [torch.optim.AdamW(trained[1:], lr=0.1), torch.optim.SGD(trained[:1], lr=1e-3, momentum=0.9)]
    return model, [torch.optim.AdamW(trained, lr=0.1)]


def advance(model, optimizers, steps, first=0):
    for step in range(first, first + steps):
        torch.manual_seed(step)
        model.zero_grad()
        model(torch.randn(2, 3, 5, 5)).pow(3).sum().backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "sgd", "two"])
def test_a_run_restored_from_a_checkpoint_goes_on_bit_for_bit(tmp_path, kind):
    model, optimizers = make(kind)
    advance(model, optimizers, 3)
    save_checkpoint(tmp_path / "c.safetensors", model, optimizers, 3, [{"step": 1, "loss": 0.1}])
    advance(model, optimizers, 2, first=3)

    restored, restored_optimizers = make(kind)
    assert load_checkpoint(tmp_path / "c.safetensors", restored, restored_optimizers) == (3, [{"step": 1, "loss": 0.1}])
    advance(restored, restored_optimizers, 2, first=3)
    assert restored.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[name]), name


def test_the_frozen_part_is_not_in_the_checkpoint_and_the_moving_statistics_are(tmp_path):
    model, optimizers = make()
    advance(model, optimizers, 1)
    save_checkpoint(tmp_path / "c.safetensors", model, optimizers, 1, [])
    names = load_tensors(tmp_path / "c.safetensors", "checkpoint", "")[0].keys()
    assert not [name for name in names if "frozen" in name]
    assert {"model/head.0.weight", "model/head.1.running_var", "model/head.1.num_batches_tracked"} <= names
    assert "optimizer/head.0.weight/exp_avg_sq" in names
    assert "model/unused" in names


def test_saving_again_gives_the_same_bytes(tmp_path):
    model, optimizers = make()
    advance(model, optimizers, 2)
    (tmp_path / "again").mkdir()
    for folder in (tmp_path, tmp_path / "again"):
        save_checkpoint(folder / "c.safetensors", model, optimizers, 2, [{"step": 1}])
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "again" / "c.safetensors").read_bytes()


def test_without_a_checkpoint_training_starts_at_the_beginning(tmp_path, capsys):
    assert load_checkpoint(tmp_path / "c.safetensors", *make()) == (0, [])
    assert capsys.readouterr().out == ""


def test_moments_come_back_in_the_memory_layout_of_their_parameter(tmp_path):
    """Another order of memory takes another path through the same arithmetic, whose last bits may differ."""

    def make_last():
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    model, optimizer = make_last()
    model(torch.randn(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "c.safetensors", model, [optimizer], 1, [])
    restored, restored_optimizer = make_last()
    load_checkpoint(tmp_path / "c.safetensors", restored, [restored_optimizer])
    right, found = optimizer.state[model.weight], restored_optimizer.state[restored.weight]
    assert found["exp_avg"].stride() == right["exp_avg"].stride() == model.weight.stride()
    assert torch.equal(found["exp_avg"], right["exp_avg"])
    assert found["step"] == right["step"]


def test_a_generator_goes_on_where_it_was_and_a_checkpoint_without_one_is_not_used(tmp_path, capsys):
    model, optimizers = make()
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    save_checkpoint(tmp_path / "c.safetensors", model, optimizers, 1, [], generator)
    expected = torch.rand(5, generator=generator)
    other = torch.Generator()
    assert load_checkpoint(tmp_path / "c.safetensors", model, optimizers, other) == (1, [])
    assert torch.equal(torch.rand(5, generator=other), expected)
    assert load_checkpoint(tmp_path / "c.safetensors", model, optimizers) == (0, [])
    assert "not the checkpoint of this run" in capsys.readouterr().out


def write_truncated(path, model, optimizers):
    save_checkpoint(path, model, optimizers, 2, [])
    path.write_bytes(path.read_bytes()[:-7])


def write_junk(path, model, optimizers):
    path.write_bytes(b"junk")


def write_empty(path, model, optimizers):
    path.touch()


def write_renamed(path, model, optimizers):
    save_checkpoint(path.with_name("other.safetensors"), model, optimizers, 2, [])
    path.with_name("other.safetensors").rename(path)


def write_other_model(path, model, optimizers):
    smaller = nn.Conv2d(3, 4, 1)
    save_checkpoint(path, smaller, [torch.optim.SGD(smaller.parameters(), lr=1.0)], 2, [])


def write_other_tensors(path, model, optimizers):
    save_tensors(path, {"model/x": torch.zeros(2)}, {"name": path.name, "step": 2, "rows": []})


def write_without_steps(path, model, optimizers):
    save_checkpoint(path, model, optimizers, 2, [])
    tensors, _ = load_tensors(path, "checkpoint", "")
    save_tensors(path, tensors, {"name": path.name})


@pytest.mark.parametrize(
    "spoil",
    [
        write_truncated,
        write_junk,
        write_empty,
        write_renamed,
        write_other_model,
        write_other_tensors,
        write_without_steps,
    ],
)
def test_a_file_that_cannot_be_used_costs_a_warning_and_changes_nothing(tmp_path, capsys, spoil):
    path = tmp_path / "c.safetensors"
    other, other_optimizers = make(seed=1)
    advance(other, other_optimizers, 2)
    spoil(path, other, other_optimizers)

    model, optimizers = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert load_checkpoint(path, model, optimizers) == (0, [])
    said = capsys.readouterr().out
    assert said.startswith(f"warning: {path}: ")
    assert said.count("\n") == 1
    assert "training starts afresh" in said
    assert not any(optimizer.state for optimizer in optimizers)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def changed(section, **values):
    return dataclasses.replace(PARAMS, **{section: dataclasses.replace(getattr(PARAMS, section), **values)})


@pytest.mark.parametrize(
    ("params", "setting", "inputs"),
    [
        (changed("train", learning_rate=0.123), "zsd", INPUTS),
        (changed("train", steps=123), "zsd", INPUTS),
        (changed("train", seed=123), "zsd", INPUTS),
        (changed("model", freeze="none"), "zsd", INPUTS),
        (changed("compute", threads=7), "zsd", INPUTS),
        (changed("compute", precision="bfloat16"), "zsd", INPUTS),
        (changed("compute", channels_last=True), "zsd", INPUTS),
        (changed("compute", compile=True), "zsd", INPUTS),
        (changed("compute", processes=2), "zsd", INPUTS),
        (changed("train", accumulation=2), "zsd", INPUTS),
        (PARAMS, "ovod", INPUTS),
        *[(PARAMS, "zsd", {**INPUTS, name: "other"}) for name in INPUTS],
    ],
)
def test_whatever_decides_the_weights_decides_the_key(params, setting, inputs):
    assert checkpoint_key(params, setting, inputs) != checkpoint_key(PARAMS, "zsd", INPUTS)


def test_what_cannot_change_the_weights_does_not_change_the_key():
    key = checkpoint_key(PARAMS, "zsd", INPUTS)
    assert len(key) == 16
    assert int(key, 16) >= 0
    others = [
        changed("train", checkpoint_every=7),
        changed("train", workers=3),
        changed("evaluate", alpha=0.33),
        dataclasses.replace(PARAMS, settings=("zsd", "zsd_strict")),
    ]
    assert {checkpoint_key(other, "zsd", dict(reversed(INPUTS.items()))) for other in others} == {key}

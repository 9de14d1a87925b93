"""What each freezing mode leaves unchanged, through `train()` calls of the tower and of a parent."""

import math

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from fvlm.vlm.clip import ImageTower
from fvlm.vlm.freeze import statistics_shift


def tower_with_head(mode):
    torch.manual_seed(0)
    visual = ModifiedResNet([1, 1, 1, 1], output_dim=16, heads=4, image_size=64, width=8)
    return nn.ModuleDict({"tower": ImageTower(visual, mode), "head": nn.Conv2d(256, 2, 1)})


def train_a_step(model):
    """One SGD step with weight decay over every parameter. Returns the names of the tower's tensors that changed."""
    before = {name: tensor.clone() for name, tensor in model["tower"].visual.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model["head"](model["tower"](torch.randn(2, 3, 64, 64))["C5"]).square().sum().backward()
    optimizer.step()
    return {
        name for name, tensor in model["tower"].visual.state_dict().items() if not torch.equal(tensor, before[name])
    }


def is_statistic(name):
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_all_leaves_every_tensor_of_the_tower_unchanged():
    model = tower_with_head("all")
    before = model["tower"].hash()
    assert train_a_step(model) == set()
    assert model["tower"].hash() == before
    assert model["tower"].trainable_parameters() == []


def test_norm_eval_trains_weights_of_all_stages_but_moves_no_statistic():
    changed = train_a_step(tower_with_head("norm_eval"))
    assert not any(is_statistic(name) for name in changed)
    assert {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer4.0.bn3.bias"} <= changed


def test_none_trains_weights_and_moves_statistics():
    changed = train_a_step(tower_with_head("none"))
    assert {"conv1.weight", "bn1.running_mean", "layer4.0.bn3.running_var"} <= changed


@pytest.mark.parametrize("mode", ["all", "norm_eval", "none"])
def test_the_attention_pool_trains_in_no_mode_not_even_by_weight_decay(mode):
    model = tower_with_head(mode)
    assert not any(name.startswith("attnpool") for name in train_a_step(model))
    trained = {id(p) for p in model["tower"].trainable_parameters()}
    assert trained.isdisjoint(id(p) for p in model["tower"].attnpool.parameters())
    assert bool(trained) is (mode != "all")


@pytest.mark.parametrize("mode", ["all", "norm_eval"])
def test_a_parent_s_train_call_does_not_wake_the_batch_norms(mode):
    model = tower_with_head(mode)
    model.eval()
    model.requires_grad_(True)
    model.train()
    norms = [m for m in model["tower"].modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 19
    assert not any(norm.training for norm in norms)
    assert not any(p.requires_grad for p in model["tower"].attnpool.parameters())
    assert model["head"].training


def test_a_new_tower_is_frozen_before_any_train_call():
    tower = tower_with_head("all")["tower"]
    before = tower.hash()
    tower(torch.randn(2, 3, 64, 64))
    assert tower.hash() == before


def test_eval_makes_every_mode_use_the_stored_statistics():
    model = tower_with_head("none").eval()
    assert not any(module.training for module in model.modules())


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="expected one of all, norm_eval, none, got 'most'"):
        tower_with_head("most")


def test_open_clip_s_own_lock_leaves_the_statistics_live():  # why freeze.py exists
    visual = ModifiedResNet([1, 1, 1, 1], output_dim=16, heads=4, image_size=64, width=8)
    visual.lock()
    before = visual.bn1.running_mean.clone()
    visual.train()(torch.randn(2, 3, 64, 64))
    assert not torch.equal(visual.bn1.running_mean, before)


def test_the_shift_is_worked_by_hand():
    before = {
        "a.running_mean": torch.tensor([0.0, 1.0]),
        "a.running_var": torch.tensor([4.0, 1.0]),
        "b.running_mean": torch.tensor([2.0]),
        "b.running_var": torch.tensor([1.0]),
        "b.weight": torch.tensor([1.0]),
    }
    after = before | {
        "a.running_mean": torch.tensor([6.0, 1.0]),
        "a.running_var": torch.tensor([100.0, 1.0]),
        "b.weight": torch.tensor([7.0]),
    }
    # channel 0 of a: the mean moves by 6 and the std by 8, together 10, over a std of 2; a has (5 + 0) / 2, b has 0
    assert math.isclose(statistics_shift(before, after, eps=0.0), 1.25)
    assert statistics_shift(before, before) == 0.0


def test_the_shift_tells_the_modes_apart():
    shifts = {}
    for mode in ("all", "norm_eval", "none"):
        model = tower_with_head(mode)
        before = {name: tensor.clone() for name, tensor in model["tower"].state_dict().items()}
        train_a_step(model)
        shifts[mode] = statistics_shift(before, model["tower"].state_dict())
    assert shifts["all"] == shifts["norm_eval"] == 0
    assert shifts["none"] > 0.01


def test_a_shift_between_different_modules_is_refused():
    norm = nn.BatchNorm2d(2).state_dict()
    with pytest.raises(ValueError, match="same module"):
        statistics_shift({f"a.{k}": v for k, v in norm.items()}, {f"b.{k}": v for k, v in norm.items()})
    with pytest.raises(ValueError, match="same module"):
        statistics_shift({}, {})

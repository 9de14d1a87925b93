"""The OV-COCO recipes: the paper's constants, and one experiment but for what each file's name says."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from fvlm.params import read_tree

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
PAPER = RECIPES / "ovcoco_rn50.yaml"
Tree = dict[str, Any]

# what a recipe may have of its own, by section; all else is ovcoco_rn50.yaml's
OWN = {
    "ovcoco_rn50x4": {"vlm": {"architecture"}, "train": {"accumulation"}, "detect": {"batch_size"}},
    "ovcoco_rn50x16": {"vlm": {"architecture"}, "train": {"accumulation"}, "detect": {"batch_size"}},
    "ovcoco_rn50x64": {"vlm": {"architecture"}, "train": {"accumulation"}, "detect": {"batch_size"}},
    "ovcoco_rn50_fast": {"train": {"steps", "warmup_steps", "checkpoint_every", "accumulation"}},
}


def without(tree: Tree, own: dict[str, set[str]]) -> Tree:
    tree = copy.deepcopy(tree)
    for section, keys in own.items():
        for key in keys:
            del tree[section][key]
    return tree


@pytest.mark.parametrize("name", OWN)
def test_recipes_differ_from_the_papers_in_what_their_names_say_only(name: str) -> None:
    recipe = read_tree(RECIPES / f"{name}.yaml")
    assert without(recipe, OWN[name]) == without(read_tree(PAPER), OWN[name])
    if "architecture" in OWN[name].get("vlm", ()):
        assert recipe["vlm"]["architecture"] == name.removeprefix("ovcoco_").replace("rn", "RN") + "-quickgelu"


def test_the_schedule_is_the_published_ports() -> None:
    train = read_tree(PAPER)["train"]
    assert (train["batch_size"], train["steps"], train["warmup_steps"]) == (64, 11_250, 1000)
    assert math.isclose(train["warmup_start"] * train["learning_rate"], 0.0032)
    assert [math.ceil(m * train["steps"] - 1e-6) for m in train["milestones"]] == [10_125, 10_688, 10_969]
    assert (train["learning_rate"], train["weight_decay"], train["background_weight"]) == (0.02, 1e-2, 0.2)


def test_the_headline_pair_is_the_declared_one_and_the_sweep_holds_what_check_and_the_port_need() -> None:
    evaluate = read_tree(PAPER)["evaluate"]
    assert (evaluate["alpha"], evaluate["beta"]) == (0.2, 0.45)
    assert evaluate["alpha"] in evaluate["sweep"]["alpha"]
    assert {0.0, 0.45, 0.65} <= set(evaluate["sweep"]["beta"])


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("ovcoco_*.yaml")), ids=lambda path: path.stem)
def test_the_head_of_a_recipe_says_what_it_costs_and_what_to_expect(recipe: Path) -> None:
    head = recipe.read_text(encoding="utf-8").split("settings:")[0].lower()
    for word in ("hardware:", "time:", "estimated", "expected ap50 novel / base / all"):
        assert word in head

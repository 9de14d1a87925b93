"""params.yaml: what is refused, in which words, and that the files around it are current."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fvlm.errors import InputError
from fvlm.params import Params, load_params, of_seed, read_tree, schema

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
EMOJI = ROOT / "recipes" / "emoji.yaml"
Tree = dict[str, Any]


@pytest.fixture(scope="module")
def emoji() -> Tree:
    return read_tree(EMOJI)


def findings(tmp_path: Path, content: Tree | str) -> list[str]:
    """The lines with which params.yaml of this `content` is refused, without the file's name; none if it is valid."""
    path = tmp_path / "params.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    try:
        load_params(path)
    except InputError as error:
        lines = str(error).splitlines()
        assert all(line.startswith(f"{path}: ") for line in lines)
        return [line.removeprefix(f"{path}: ") for line in lines]
    return []


def changed(tree: Tree, **leaves: Any) -> Tree:
    """A copy of `tree` with other values; `train__steps=3` is train.steps."""
    tree = copy.deepcopy(tree)
    for dotted, value in leaves.items():
        *sections, key = dotted.split("__")
        section = tree
        for name in sections:
            section = section[name]
        section[key] = value
    return tree


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe: Path) -> None:
    assert isinstance(load_params(recipe), Params)


def test_params_yaml_is_a_copy_of_the_default_recipe() -> None:
    assert (ROOT / "params.yaml").read_bytes() == EMOJI.read_bytes()


def test_the_schema_file_is_current() -> None:
    written = (ROOT / "fvlm" / "params.schema.json").read_text(encoding="utf-8")
    assert written == json.dumps(schema(), indent=1) + "\n", "run `python -m fvlm schema > fvlm/params.schema.json`"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_schema_accepts_every_recipe(recipe: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    assert [error.message for error in jsonschema.Draft202012Validator(schema()).iter_errors(read_tree(recipe))] == []


@pytest.mark.parametrize(
    "leaves",
    [
        {"train__lrr": 0.1},
        {"train__steps": "many"},
        {"train__steps": 0},
        {"train__steps": True},
        {"train__learning_rate": 0},
        {"evaluate__alpha": 1.5},
        {"model__freeze": "some"},
        {"settings": []},
        {"settings": "zsd"},
        {"train__scale_jitter": [1.0]},
        {"text__templates": [3]},
        {"evaluate__vlm_temperature": -1},
        {"splits__keep_empty": "no"},
        {"detect": None},
    ],
    ids=str,
)
def test_the_schema_and_the_loader_refuse_the_same(tmp_path: Path, emoji: Tree, leaves: Tree) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    tree = changed(emoji, **leaves)
    assert findings(tmp_path, tree)
    assert not jsonschema.Draft202012Validator(schema()).is_valid(tree)


def test_params_are_frozen_and_hold_what_the_file_says() -> None:
    params = load_params(EMOJI)
    assert params.settings == ("zsd", "ovod")
    assert params.model.norm_eps == 1e-4, "1e-4 is a number, although YAML 1.1 reads a text"
    assert isinstance(params.evaluate.alpha, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.train.steps = 1  # type: ignore[misc]


def test_the_first_seed_is_trained_unless_another_is_asked_for(tmp_path: Path, emoji: Tree) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed(emoji, seeds=[7, 3])))
    params = load_params(tmp_path / "params.yaml")
    assert params.train.seed == 7
    assert of_seed(params, 3) == dataclasses.replace(params, train=dataclasses.replace(params.train, seed=3))


def test_everything_wrong_is_named_at_once_on_lines_of_their_own(tmp_path: Path, emoji: Tree) -> None:
    tree = changed(
        emoji, train__lrr=0.1, train__steps="many", evaluate__alpha=2, model__freeze="most", data__emoji__seed=-1
    )
    del tree["detect"]["batch_size"]
    found = findings(tmp_path, tree)
    assert len(found) == 6
    assert [line.partition(":")[0] for line in found] == [
        "data.emoji.seed", "model.freeze", "train.lrr", "train.steps", "detect.batch_size", "evaluate.alpha",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("leaves", "finding"),
    [
        ({"train__learningrate": 1}, "train.learningrate: unknown key; did you mean learning_rate? allowed here: "),
        ({"trian": {}}, "trian: unknown key; did you mean train? allowed here: settings, seeds, compute, "),
        ({"train__steps": "many"}, "train.steps: expected a whole number >= 1, got 'many'"),
        ({"train__steps": 1.5}, "train.steps: expected a whole number >= 1, got 1.5"),
        ({"train__steps": True}, "train.steps: expected a whole number >= 1, got True"),
        ({"train__steps": None}, "train.steps: expected a whole number >= 1, got null"),
        ({"evaluate__alpha": True}, "evaluate.alpha: expected a number >= 0 and <= 1, got True"),
        ({"evaluate__alpha": 1.01}, "evaluate.alpha: expected a number >= 0 and <= 1, got 1.01"),
        ({"evaluate__alpha": float("nan")}, "evaluate.alpha: expected a number >= 0 and <= 1, got nan"),
        ({"train__weight_decay": float("inf")}, "train.weight_decay: expected a number >= 0, got inf"),
        ({"train__learning_rate": 0}, "train.learning_rate: expected a number > 0, got 0"),
        ({"splits__keep_empty": 1}, "splits.keep_empty: expected true or false, got 1"),
        ({"text__background": 3}, "text.background: expected a text, got 3"),
        ({"model__freeze": "most"}, "model.freeze: expected one of all, norm_eval, none, got 'most'"),
        ({"settings": ["zsd", "osr"]}, "settings[1]: expected one of zsd, ovod, zsd_strict, got 'osr'"),
        ({"settings": []}, "settings: expected a list, not empty, of one of zsd, ovod, zsd_strict, got []"),
        ({"seeds": []}, "seeds: expected a list, not empty, of a whole number >= 0, got []"),
        ({"seeds": 0}, "seeds: expected a list, not empty, of a whole number >= 0, got 0"),
        ({"seeds": [0, -1]}, "seeds[1]: expected a whole number >= 0, got -1"),
        ({"seeds": [2**63]}, "seeds[0]: expected a whole number of at most 9223372036854775807, got 92"),
        ({"train__learning_rate": 10**400}, "train.learning_rate: expected a number > 0, got 1000"),
        ({"seeds": [0.5]}, "seeds[0]: expected a whole number >= 0, got 0.5"),
        ({"train__seed": 0}, "train.seed: unknown key; "),
        ({"train__scale_jitter": [1]}, "train.scale_jitter: expected a list of 2 of a number > 0 and <= 4, got [1]"),
        ({"train": [1]}, "train: expected a section with keys, got [1]"),
        ({"detect": {"workers": 0}}, "detect.batch_size: missing; expected a whole number >= 1 (images in a step)"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_wrong_value_is_told_with_what_is_allowed(tmp_path: Path, emoji: Tree, leaves: Tree, finding: str) -> None:
    (found,) = findings(tmp_path, changed(emoji, **leaves))
    assert found.startswith(finding)


@pytest.mark.parametrize(
    ("leaves", "key"),
    [
        ({"settings": ["zsd", "zsd"]}, "settings"),
        ({"seeds": [0, 1, 0]}, "seeds"),
        ({"settings": ["ovod"]}, "report.setting"),
        ({"data__emoji": None}, "data.emoji"),
        ({"data__dataset": "coco_folder"}, "data.root"),
        ({"data__emoji__image_size": 250}, "data.emoji.image_size"),
        ({"data__mirror": "https://mirror.org/coco"}, "data.mirror"),  # the emoji world is not downloaded
        ({"data__dataset": "coco2017", "data__mirror": "mirror.org"}, "data.mirror"),
        ({"data__dataset": "coco2017", "data__mirror": "https://mirror.org/coco/"}, "data.mirror"),
        ({"data__dataset": "coco2017", "data__mirror": "ftp://mirror.org"}, "data.mirror"),
        ({"data__dataset": "coco2017", "data__mirror": "https://me:secret@mirror.org"}, "data.mirror"),
        ({"data__dataset": "coco2017", "data__mirror": "https://mirror.org/coco?a=b"}, "data.mirror"),
        ({"vlm__miniature": None}, "vlm.miniature"),
        ({"vlm__miniature__layers": [1, 1, 1]}, "vlm.miniature.layers"),
        ({"vlm__miniature__image_size": 50}, "vlm.miniature.image_size"),
        ({"vlm__miniature__text_heads": 7}, "vlm.miniature.text_heads"),
        ({"vlm__weights": "openai"}, "vlm.weights"),
        ({"vlm__architecture": "RN50-quickgelu"}, "vlm.weights"),
        ({"vlm__weights": "RN50.pt"}, "vlm.weights"),
        ({"vlm__architecture": "RN50-quickgelu", "vlm__weights": "opnai"}, "vlm.weights"),
        ({"vlm__architecture": "RN50x4-quickgelu", "vlm__weights": "yfcc15m"}, "vlm.weights"),
        ({"vlm__architecture": "RN50-quickgelu", "vlm__weights": "hf-hub:timm"}, "vlm.weights"),
        ({"vlm__pretrain": None}, "vlm.pretrain"),
        ({"model__image_size": 96}, "model.image_size"),
        ({"model__image_size": 64, "train__accumulation": 8}, "model.image_size"),
        ({"train__accumulation": 3}, "train.batch_size"),
        ({"train__accumulation": 4, "compute__processes": 4}, "train.batch_size"),
        ({"train__scale_jitter": [1.5, 0.5]}, "train.scale_jitter"),
        ({"train__milestones": [0.9, 0.8]}, "train.milestones"),
        ({"text__templates": ["a photo"]}, "text.templates[0]"),
        ({"text__templates": ["a {} {}"]}, "text.templates[0]"),
        ({"text__templates": ["a {} {name}"]}, "text.templates[0]"),
        ({"text__background": " "}, "text.background"),
        ({"evaluate__sweep__alpha": [0.1, 0.1]}, "evaluate.sweep.alpha"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_values_that_do_not_go_together_are_refused(tmp_path: Path, emoji: Tree, leaves: Tree, key: str) -> None:
    (found,) = findings(tmp_path, changed(emoji, **leaves))
    assert found.startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("edit", "finding"),
    [
        (lambda text: text.replace("  alpha:", "  alpha: 1\n  alpha:", 1), "the key 'alpha' is given more than once"),
        (lambda text: text + "train: {}\n", "the key 'train' is given more than once"),
        (lambda text: "settings: [zsd\n", "not valid YAML"),
        (lambda text: "a: b: c\n", "not valid YAML"),
        (lambda text: "? [1, 2]\n: 3\n", "not valid YAML"),
        (lambda text: "a: 2026-13-01\n", "not valid YAML"),
        (lambda text: f"a: {'9' * 5000}\n", "not valid YAML"),
        (lambda text: "[" * 5000, "not valid YAML"),
        (lambda text: "", "(top level): expected a section with keys, got null"),
        (lambda text: "- zsd\n", "(top level): expected a section with keys, got ['zsd']"),
        (lambda text: "!!python/object/apply:os.system [true]\n", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_tree_of_sections_is_refused_in_one_line(
    tmp_path: Path, edit: Callable[[str], str], finding: str
) -> None:
    (found,) = findings(tmp_path, edit(EMOJI.read_text(encoding="utf-8")))
    assert finding in found


def test_coco_2017_needs_no_root_and_takes_a_mirror(tmp_path: Path, emoji: Tree) -> None:
    assert findings(tmp_path, changed(emoji, data={"dataset": "coco2017"})) == []
    for mirror in ("https://s3.amazonaws.com/images.cocodataset.org", "http://10.0.0.1:8080"):
        assert findings(tmp_path, changed(emoji, data={"dataset": "coco2017", "mirror": mirror})) == []


def test_a_missing_params_file_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"params\.yaml: params file not found; copy one of recipes/\*\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_a_params_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"settings: [zsd]\n\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        load_params(tmp_path / "params.yaml")

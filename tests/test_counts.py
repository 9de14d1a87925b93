"""The published counts of COCO 2017, and what the stages do where a file does not give them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from conftest import make_coco

from fvlm import layout
from fvlm.data import counts
from fvlm.data.coco import load_instances
from fvlm.data.counts import check_counts, expected_counts
from fvlm.data.splits import build_train_split, build_val_split, count_table
from fvlm.errors import InputError
from fvlm.params import Data, Params, load_params
from fvlm.stages import download, splits, val_splits

RECIPE = Path(__file__).parents[1] / "recipes" / "emoji.yaml"
COCO = Data(dataset="coco2017")


def test_the_published_counts_add_up():
    """Each is of another source; the sums of the classes' groups tie them together."""
    rows = expected_counts("coco2017")
    for part, base in (("train", "train_zsd"), ("val", "val_base")):
        full = rows[f"{part}_full"]
        groups = (base, f"{part}_novel", f"{part}_excluded")
        assert sum(rows[group]["boxes"] for group in groups) == full["boxes"]
        for row in rows.values():
            if {"annotations", "crowd", "boxes"} <= row.keys():
                assert row["annotations"] == row["crowd"] + row["boxes"]
    assert rows["train_ovod"]["boxes"] == rows["train_zsd"]["boxes"] + rows["train_novel"]["boxes"]
    for column in ("annotations", "crowd", "boxes"):
        assert rows["val_generalized"][column] == rows["val_base"][column] + rows["val_novel"][column]
    without = {part: rows[f"{part}_full"]["images"] - rows[f"{part}_annotated"]["images"] for part in ("train", "val")}
    assert without == {"train": 1_021, "val": 48}
    assert (rows["train_zsd"]["images"], rows["train_zsd"]["annotations"]) == (107_761, 665_387)
    assert [rows[f"val_{subset}"]["images"] for subset in ("base", "novel", "generalized")] == [4_533, 2_064, 4_836]


def test_every_expected_count_is_one_that_is_counted():
    nothing: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    counted = {row["subset"]: row.keys() for row in count_table(nothing, nothing)}
    for subset, columns in expected_counts("coco2017").items():
        assert columns.keys() <= counted[subset]


def test_only_coco_2017_has_expected_counts():
    check_counts(Data(dataset="coco_folder", root="x"), Path("x"), [{"subset": "val_full", "images": 1}])
    assert expected_counts("emoji") == {}


def test_every_count_that_differs_is_a_line_with_file_expected_and_found():
    rows = [
        {"subset": "train_zsd", "images": 107_761, "annotations": 665_386, "crowd": 9_155, "boxes": 656_231},
        {"subset": "train_zsd_strict", "images": 3},
        {"subset": "train_ovod", "images": 3, "boxes": 767_452},
        {"subset": "val_base", "images": 4_534},
    ]
    with pytest.raises(InputError) as error:
        check_counts(COCO, Path("here"), rows)
    file, lines = "here/annotations/instances_{}2017.json: expected ", str(error.value).splitlines()
    assert [line.split(";")[0] for line in lines] == [
        file.format("train") + "665,387 annotations in train_zsd, as in COCO 2017, found 665,386",
        file.format("train") + "656,232 boxes in train_zsd, as in COCO 2017, found 656,231",
        file.format("val") + "4,533 images in val_base, as in COCO 2017, found 4,534",
    ]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """COCO 2017 in miniature, with the counts that it has; `download` has run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(layout.DATA_ROOT_VARIABLE, raising=False)
    root = make_coco(tmp_path / "coco", 16, 8, (48, 32))
    train, val = (load_instances(root / "annotations" / f"instances_{part}2017.json") for part in ("train", "val"))
    true = {row.pop("subset"): row for row in count_table(train, val)}
    monkeypatch.setattr(counts, "expected_counts", lambda dataset: true if dataset == "coco2017" else {})
    recipe = load_params(RECIPE)
    data = dataclasses.replace(recipe.data, dataset="coco2017", root=str(root), emoji=None)
    params = dataclasses.replace(recipe, data=data)
    download.run(params)
    return params


def wrong(monkeypatch: pytest.MonkeyPatch, subset: str, column: str) -> None:
    true = counts.expected_counts("coco2017")
    changed = {**true, subset: {**true[subset], column: true[subset][column] + 1}}
    monkeypatch.setattr(counts, "expected_counts", lambda dataset: changed)


@pytest.mark.parametrize("keep_empty", [False, True])
@pytest.mark.parametrize("setting", ["zsd", "ovod", "zsd_strict"])
def test_true_counts_pass_whether_or_not_empty_images_are_kept(params, setting, keep_empty):
    splits.run(dataclasses.replace(params, splits=dataclasses.replace(params.splits, keep_empty=keep_empty)), setting)
    val_splits.run(params)


@pytest.mark.parametrize("column", ["images", "annotations", "crowd", "boxes"])
@pytest.mark.parametrize("subset", ["train_full", "train_ovod"])
def test_a_training_split_that_counts_otherwise_is_not_written(params, monkeypatch, subset, column):
    wrong(monkeypatch, subset, column)
    with pytest.raises(
        InputError, match=rf"instances_train2017\.json: expected \d+ {column} in {subset}, .* found \d+"
    ):
        splits.run(params, "ovod")
    assert not layout.train_split("ovod").exists()


@pytest.mark.parametrize(
    "subset", ["train_annotated", "train_novel", "val_annotated", "val_base", "val_generalized", "val_excluded"]
)
def test_a_validation_split_is_not_written_where_any_subset_counts_otherwise(params, monkeypatch, subset):
    wrong(monkeypatch, subset, "images")
    file = f"instances_{subset.partition('_')[0]}2017"
    with pytest.raises(InputError, match=rf"{file}\.json: expected \d+ images in {subset}, as in COCO 2017, found"):
        val_splits.run(params)
    assert not Path("data/splits").exists()


def test_the_split_functions_themselves_know_nothing_of_expected_counts():
    coco: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    assert build_train_split(coco, "zsd", keep_empty=False)["images"] == build_val_split(coco, "base")["images"] == []

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from raw_world import EVALUATE, made_up_coco, made_up_raw, val_splits
from test_ap import pycocotools_eval

from fvlm import layout
from fvlm.data.splits import base_names, novel_names
from fvlm.errors import InputError
from fvlm.evaluation import detections
from fvlm.evaluation.ap import average_precision, group_mean
from fvlm.evaluation.detections import detections_of
from fvlm.evaluation.scoring import score
from fvlm.io import write_json
from fvlm.params import load_params
from fvlm.stages import evaluate

RECIPE = Path(__file__).parents[1] / "recipes" / "emoji.yaml"
GENERALIZED = [f"generalized_{group}_{metric}" for group in ("base", "novel", "all") for metric in ("AP50", "AP")]
KEYS = {
    *(f"constrained_{group}_{metric}" for group in ("base", "novel") for metric in ("AP50", "AP")),
    *(prefix + key for prefix in ("", "detector_only_", "vlm_only_") for key in GENERALIZED),
    "AR100_novel_proposals",
}
TABLES = ("per_class.csv", "fusion_sweep.csv", "protocol_variants.csv")
OUTPUTS = ("metrics/zsd.json", *(f"runs/zsd/{name}" for name in (*TABLES, "detections.json")))


@pytest.fixture(scope="module")
def params():
    recipe = load_params(RECIPE)
    return replace(recipe, compute=replace(recipe.compute, threads=1), evaluate=EVALUATE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, params):
    """A folder in which the stage has run."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_inputs(made_up_coco())
        evaluate.run(params, "zsd")
    return folder


def write_inputs(coco):
    splits = val_splits(coco)
    for name, split in splits.items():
        write_json(layout.val_split(name), split)
    made_up_raw(splits["all"]).save(layout.raw_detections("zsd"))


def read(folder, path):
    return json.loads((folder / path).read_text())


def table(folder, path):
    with open(folder / path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_metric_is_there_and_is_a_percentage(folder):
    metrics = read(folder, "metrics/zsd.json")
    assert metrics.keys() == KEYS
    assert all(type(value) is float and 0 <= value <= 100 for value in metrics.values())
    assert metrics["generalized_novel_AP50"] > metrics["detector_only_generalized_novel_AP50"] + 5
    assert metrics["generalized_base_AP50"] > metrics["vlm_only_generalized_base_AP50"]
    assert metrics["AR100_novel_proposals"] > 20


def test_all_is_the_weighted_mean_of_base_and_novel(folder):
    metrics = read(folder, "metrics/zsd.json")
    for metric in ("AP50", "AP"):
        base, novel, every = (metrics[f"generalized_{group}_{metric}"] for group in ("base", "novel", "all"))
        assert (48 * base + 17 * novel) / 65 == pytest.approx(every, abs=1e-3)


@pytest.mark.parametrize(("file", "prefix"), [("detections", ""), ("detections_detector_only", "detector_only_")])
def test_plain_pycocotools_finds_the_same_numbers_in_the_exported_detections(folder, file, prefix):
    results, metrics = read(folder, f"runs/zsd/{file}.json"), read(folder, "metrics/zsd.json")
    coco = read(folder, "data/splits/val_generalized.json")
    precision = pycocotools_eval(results, coco)["precision"][:, :, :, 0, -1]  # (T, 101, K), K by ascending category id
    names = [category["name"] for category in sorted(coco["categories"], key=lambda c: c["id"])]
    for group, members in (("base", base_names()), ("novel", novel_names()), ("all", names)):
        of_group = 100 * precision[:, :, [name in members for name in names]]
        assert metrics[f"{prefix}generalized_{group}_AP50"] == pytest.approx(of_group[0].mean(), abs=1e-4)
        assert metrics[f"{prefix}generalized_{group}_AP"] == pytest.approx(of_group.mean(), abs=1e-4)


def test_the_class_table_explains_the_metrics(folder):
    rows, metrics = table(folder, "runs/zsd/per_class.csv"), read(folder, "metrics/zsd.json")
    assert len(rows) == 65
    assert [int(row["category_id"]) for row in rows] == sorted(int(row["category_id"]) for row in rows)
    for group, size in (("base", 48), ("novel", 17)):
        of_group = [row for row in rows if row["group"] == group]
        assert len(of_group) == size
        assert {row["supervised"] for row in of_group} == {"true" if group == "base" else "false"}
        for column, key in (
            ("AP50", f"generalized_{group}_AP50"),
            ("AP", f"generalized_{group}_AP"),
            ("detector_only_AP50", f"detector_only_generalized_{group}_AP50"),
            ("vlm_only_AP50", f"vlm_only_generalized_{group}_AP50"),
        ):
            assert np.mean([float(row[column]) for row in of_group]) == pytest.approx(metrics[key], abs=1e-3)
    annotations = read(folder, "data/splits/val_generalized.json")["annotations"]
    assert sum(int(row["val_boxes"]) for row in rows) == sum(not a["iscrowd"] for a in annotations) < len(annotations)


def test_the_sweep_table_holds_the_grid(folder):
    rows = table(folder, "runs/zsd/fusion_sweep.csv")
    groups = [f"generalized_{group}_AP50" for group in ("base", "novel", "all")]
    assert list(rows[0]) == ["alpha", "beta", "vlm_temperature", "nms_iou", *groups]
    assert len(rows) == 6
    metrics = read(folder, "metrics/zsd.json")
    own = [row for row in rows if (float(row["alpha"]), float(row["beta"])) == (EVALUATE.alpha, EVALUATE.beta)]
    assert [[float(row[group]) for group in groups] for row in own] == [[metrics[group] for group in groups]]


def test_the_first_protocol_variant_is_the_headline(folder):
    rows, metrics = table(folder, "runs/zsd/protocol_variants.csv"), read(folder, "metrics/zsd.json")
    assert (rows[0]["variant"], rows[0]["differs"]) == ("headline", "nothing")
    for group in ("base", "novel", "all"):
        assert float(rows[0][f"generalized_{group}_AP50"]) == metrics[f"generalized_{group}_AP50"]


@pytest.mark.parametrize("processes", [1, 3])
def test_the_same_input_gives_the_same_bytes_in_any_number_of_processes(
    folder, params, tmp_path, monkeypatch, processes
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detections, "BLOCK_REGIONS", 60)  # blocks of two pictures, so that there is work for all
    write_inputs(made_up_coco())
    evaluate.run(replace(params, evaluate=replace(params.evaluate, processes=processes)), "zsd")
    for path in OUTPUTS:
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes(), path


def test_a_constrained_protocol_is_scored_on_its_own_images_and_classes():
    splits = val_splits(made_up_coco())
    raw = made_up_raw(splits["all"])
    expected = {}
    for split in ("novel", "generalized"):
        detections = detections_of(raw, novel_names(), [image["id"] for image in splits[split]["images"]], EVALUATE)
        mean = group_mean(average_precision(detections, splits[split]), novel_names())
        assert mean is not None
        expected[split] = pytest.approx(mean.AP50, abs=1e-4)
    found = score(raw, splits, EVALUATE).metrics["constrained_novel_AP50"]
    assert found == expected["novel"]
    assert found != expected["generalized"]


def test_a_class_without_a_box_has_empty_cells_and_leaves_the_means():
    coco = made_up_coco()
    cat = next(category["id"] for category in coco["categories"] if category["name"] == "cat")
    coco["annotations"] = [a for a in coco["annotations"] if a["category_id"] != cat]
    splits = val_splits(coco)
    scores = score(made_up_raw(splits["all"]), splits, EVALUATE)
    rows = {row["name"]: row for row in scores.per_class}
    assert rows["cat"]["val_boxes"] == 0
    assert rows["cat"]["AP50"] is rows["cat"]["vlm_only_AP50"] is None
    defined = [rows[name]["AP50"] for name in novel_names() if name != "cat"]
    assert np.mean(defined) == pytest.approx(scores.metrics["generalized_novel_AP50"], abs=1e-3)


def test_a_group_without_any_box_is_named():
    coco = made_up_coco()
    novel = {category["id"] for category in coco["categories"] if category["name"] in novel_names()}
    coco["annotations"] = [a for a in coco["annotations"] if a["category_id"] not in novel]
    splits = val_splits(coco)
    with pytest.raises(InputError, match="constrained_novel: expected boxes of its 17 classes"):
        score(made_up_raw(splits["all"]), splits, EVALUATE)


def test_raw_detections_of_other_images_are_refused(tmp_path, monkeypatch, params):
    monkeypatch.chdir(tmp_path)
    write_inputs(made_up_coco())
    made_up_raw(made_up_coco(images=15)).save(layout.raw_detections("zsd"))
    with pytest.raises(InputError, match=r"images of the .* validation split, 1 are missing and 0 .*run detect again"):
        evaluate.run(params, "zsd")
    made_up_raw(made_up_coco(images=17)).save(layout.raw_detections("zsd"))
    with pytest.raises(InputError, match="all validation split, 0 are missing and 1 are not in it; run detect again"):
        evaluate.run(params, "zsd")
    assert not layout.metrics("zsd").exists()
    assert not (tmp_path / "runs/zsd/per_class.csv").exists()


def test_pictures_without_a_scored_box_are_only_counted_where_every_picture_is():
    coco = made_up_coco(images=20)
    raw = made_up_raw(coco)  # also finds what was on the last four pictures, where nobody annotated it
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] < 116]
    splits = val_splits(coco)
    assert (len(splits["generalized"]["images"]), len(splits["all"]["images"])) == (16, 20)
    few = score(raw, splits, EVALUATE)
    assert set(few.detections.image_ids.tolist()) == {image["id"] for image in splits["generalized"]["images"]}
    every = score(raw, splits, replace(EVALUATE, images="all"))
    assert set(every.detections.image_ids.tolist()) == {image["id"] for image in coco["images"]}
    for key in ("constrained_base_AP50", "constrained_novel_AP50", "generalized_all_AP50"):
        assert every.metrics[key] < few.metrics[key]  # more false positives
    assert every.metrics["AR100_novel_proposals"] == few.metrics["AR100_novel_proposals"]

from dataclasses import replace
from typing import Any

import pytest
from raw_world import EVALUATE, made_up_coco, made_up_raw, val_splits

from fvlm.evaluation import detections as module
from fvlm.evaluation.scoring import score
from fvlm.evaluation.sweep import COLUMNS, sweep_fusion


@pytest.fixture(scope="module")
def splits():
    return val_splits(made_up_coco())


def with_grid(**axes: Any):
    return replace(EVALUATE, sweep=replace(EVALUATE.sweep, **axes))


def count_fusions(monkeypatch) -> list[tuple[float, float]]:
    """The alpha and beta of every fusion from now on; all pictures are one block."""
    fused: list[tuple[float, float]] = []
    fuse = module.fuse_scores

    def counted(*parts, **options):
        fused.append((options["alpha"], options["beta"]))
        return fuse(*parts, **options)

    monkeypatch.setattr(module, "fuse_scores", counted)
    monkeypatch.setattr(module, "BLOCK_REGIONS", 1_000_000)
    return fused


def test_the_grid_is_complete_and_agrees_with_the_headline(splits):
    raw = made_up_raw(splits["all"])
    rows = sweep_fusion(raw, splits, EVALUATE)
    assert all(tuple(row) == COLUMNS for row in rows)
    assert [(row["alpha"], row["beta"]) for row in rows] == [(a, b) for a in (0.0, 0.2) for b in (0.0, 0.45, 1.0)]
    assert {(row["vlm_temperature"], row["nms_iou"]) for row in rows} == {(0.05, 0.5)}
    metrics = score(raw, splits, EVALUATE).metrics
    for row, prefix in ((rows[4], ""), (rows[0], "detector_only_")):
        assert [row[column] for column in COLUMNS[4:]] == [metrics[prefix + column] for column in COLUMNS[4:]]
    assert rows[1]["generalized_novel_AP50"] > rows[0]["generalized_novel_AP50"] + 5  # beta brings the novel classes


def test_temperature_and_nms_are_axes_of_the_grid_too_the_headlines_first(splits):
    raw = made_up_raw(splits["all"])
    evaluate = with_grid(alpha=(0.2,), beta=(0.45,), vlm_temperature=(0.02, None), nms_iou=(0.3, 0.7, None))
    rows = sweep_fusion(raw, splits, evaluate)
    points = [(row["vlm_temperature"], row["nms_iou"]) for row in rows]
    assert points == [(t, n) for t in (0.05, 0.02) for n in (0.5, 0.3, 0.7)]
    assert len({row["generalized_all_AP50"] for row in rows}) == 6
    for row in rows:
        rules = replace(EVALUATE, vlm_temperature=row["vlm_temperature"], nms_iou=row["nms_iou"])
        assert row["generalized_all_AP50"] == score(raw, splits, rules).metrics["generalized_all_AP50"]


def test_a_headline_that_the_grid_does_not_name_is_a_point_all_the_same(splits):
    raw = made_up_raw(splits["all"])
    evaluate = with_grid(alpha=(0.5,), beta=(1.0, 0.1), vlm_temperature=(0.02,), nms_iou=(0.7,))
    rows = sweep_fusion(raw, splits, evaluate)
    assert len(rows) == 2 * 3 * 2 * 2
    assert (rows[0]["vlm_temperature"], rows[0]["nms_iou"]) == (0.05, 0.5)
    [own] = [row for row in rows if tuple(row.values())[:4] == (0.2, 0.45, 0.05, 0.5)]
    assert own["generalized_all_AP50"] == score(raw, splits, EVALUATE).metrics["generalized_all_AP50"]


def test_what_the_points_share_is_computed_once(splits, monkeypatch):
    softmaxes: list[float] = []
    log_probs = module.class_log_probs

    def counted(similarity, temperature, **options):
        softmaxes.append(temperature)
        return log_probs(similarity, temperature, **options)

    monkeypatch.setattr(module, "class_log_probs", counted)
    fused = count_fusions(monkeypatch)
    sweep_fusion(made_up_raw(splits["all"]), splits, with_grid(nms_iou=(0.3, 0.5, 0.7), vlm_temperature=(0.05, 0.02)))
    assert softmaxes == [0.05, 0.05, 0.02]  # the detector's, and the VLM's at either temperature
    assert len(fused) == 12  # of 36 points


def test_where_all_classes_are_supervised_beta_weighs_nothing_and_is_not_tried(splits, monkeypatch):
    fused = count_fusions(monkeypatch)
    raw = made_up_raw(splits["all"], setting="ovod")
    rows = sweep_fusion(raw, splits, EVALUATE)
    assert fused == [(0.0, 0.0), (0.2, 0.0)]
    assert len(rows) == 6
    assert {**rows[0], "beta": 1.0} == rows[2]
    assert rows[2] != {**rows[5], "alpha": 0.0}
    fused.clear()
    sweep_fusion(raw, splits, replace(EVALUATE, vocabulary="all"))  # the 15 compete, and have no boxes
    assert len(fused) == 6


def test_a_group_without_ground_truth_is_left_empty(splits):
    base = splits["base"]
    only_base = {**base, "categories": splits["generalized"]["categories"]}
    only = dict.fromkeys(("base", "novel", "generalized", "all"), only_base)
    row = sweep_fusion(made_up_raw(only_base), only, with_grid(alpha=(0.2,), beta=(0.45,)))[0]
    assert row["generalized_novel_AP50"] is None
    assert row["generalized_base_AP50"] == row["generalized_all_AP50"] > 0

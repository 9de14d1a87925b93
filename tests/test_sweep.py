from dataclasses import replace
from typing import Any

import pytest
from raw_world import EVALUATE, made_up_coco, made_up_raw, val_splits

from fvlm.evaluation import sweep as module
from fvlm.evaluation.protocols import detections_of
from fvlm.evaluation.scoring import score
from fvlm.evaluation.sweep import COLUMNS, sweep_fusion


@pytest.fixture(scope="module")
def splits():
    return val_splits(made_up_coco())


def test_the_grid_is_complete_and_agrees_with_the_headline(splits):
    raw = made_up_raw(splits["generalized"])
    rows: list[dict[str, Any]] = list(sweep_fusion(raw, splits["generalized"], EVALUATE))
    assert all(tuple(row) == COLUMNS for row in rows)
    assert [(row["alpha"], row["beta"]) for row in rows] == [(a, b) for a in (0.0, 0.2) for b in (0.0, 0.45, 1.0)]
    metrics = score(raw, splits, EVALUATE).metrics
    for row, prefix in ((rows[4], ""), (rows[0], "detector_only_")):
        assert [row[column] for column in COLUMNS[2:]] == [metrics[prefix + column] for column in COLUMNS[2:]]
    assert rows[1]["generalized_novel_AP50"] > rows[0]["generalized_novel_AP50"] + 5  # beta brings the novel classes


def test_where_all_classes_are_supervised_beta_weighs_nothing_and_is_not_tried(splits, monkeypatch):
    tried = []

    def counted(raw, names, image_ids, evaluate):
        tried.append((evaluate.alpha, evaluate.beta))
        return detections_of(raw, names, image_ids, evaluate)

    monkeypatch.setattr(module, "detections_of", counted)
    raw = made_up_raw(splits["generalized"], setting="ovod")
    rows = list(sweep_fusion(raw, splits["generalized"], EVALUATE))
    assert tried == [(0.0, 0.0), (0.2, 0.0)]
    assert len(rows) == 6
    assert {**rows[0], "beta": 1.0} == rows[2]
    assert rows[2] != {**rows[5], "alpha": 0.0}


def test_a_group_without_ground_truth_is_left_empty(splits):
    base = splits["base"]
    only_base = {**base, "categories": splits["generalized"]["categories"]}
    raw = made_up_raw(only_base)
    grid = replace(EVALUATE, sweep=replace(EVALUATE.sweep, alpha=(0.2,), beta=(0.45,)))
    row: dict[str, Any] = next(sweep_fusion(raw, only_base, grid))
    assert row["generalized_novel_AP50"] is None
    assert row["generalized_base_AP50"] == row["generalized_all_AP50"] > 0

import pandas as pd
import pytest
from raw_world import EVALUATE, made_up_coco, made_up_raw, val_splits

from fvlm.data.splits import novel_names
from fvlm.evaluation.curves import CURVE_COLUMNS, precision_recall
from fvlm.evaluation.detections import coco_results
from fvlm.evaluation.hits import match
from fvlm.evaluation.scoring import score


@pytest.fixture(scope="module")
def scored():
    coco = made_up_coco(images=26)
    splits = val_splits(coco)
    scores = score(made_up_raw(coco), splits, EVALUATE)
    return scores, pd.DataFrame(
        precision_recall(match(coco_results(scores.detections), splits["generalized"]), novel_names())
    )


def test_the_mean_precision_of_a_class_is_its_ap50(scored):
    scores, table = scored
    assert tuple(table) == CURVE_COLUMNS
    means = 100 * table[table["name"] != "mean"].groupby("name")["precision"].mean()
    for row in scores.per_class:
        if row["AP50"] is None:
            assert row["name"] not in means
        else:
            assert means[row["name"]] == pytest.approx(row["AP50"], abs=2e-4)


def test_the_mean_precision_of_a_group_is_the_groups_ap50_and_the_groups_add_up(scored):
    scores, table = scored
    means = 100 * table[table["name"] == "mean"].groupby("group")["precision"].mean()
    for group in ("novel", "base", "all"):
        assert means[group] == pytest.approx(scores.metrics[f"generalized_{group}_AP50"], abs=2e-4)
    assert (48 * means["base"] + 17 * means["novel"]) / 65 == pytest.approx(means["all"], abs=2e-4)


def test_every_curve_has_101_recalls_and_falls(scored):
    _, table = scored
    for _, curve in table.groupby(["group", "name"]):
        assert curve["recall"].tolist() == [round(0.01 * place, 2) for place in range(101)]
        assert (curve["precision"].diff().dropna() <= 0).all()


def test_a_class_without_ground_truth_has_no_curve_and_does_not_count_in_its_group():
    coco = made_up_coco(images=3)  # 15 boxes of 15 classes
    generalized = val_splits(coco)["generalized"]
    table = pd.DataFrame(precision_recall(match([], generalized), novel_names()))
    assert table["name"].nunique() == 15 + 1
    assert (table["precision"] == 0).all()

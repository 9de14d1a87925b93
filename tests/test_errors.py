import numpy as np
import pytest
from raw_world import EVALUATE, made_up_coco, made_up_raw, val_splits
from test_ap import dataset, result, truth

from fvlm.data.splits import novel_names
from fvlm.evaluation.detections import coco_results
from fvlm.evaluation.errors import ERROR_COLUMNS, KINDS, errors, kinds_of, missed
from fvlm.evaluation.hits import NOTHING, match
from fvlm.evaluation.scoring import score

# "cat" (1) is base, "dog" (2) novel. On picture 1 a cat at the left and a dog far to the right.
COCO = dataset([truth(1, 1, 1, [0, 0, 10, 10]), truth(2, 1, 2, [100, 0, 10, 10])], names=("cat", "dog"))


def kind(*detections):
    """The kind of the last of `detections` on COCO; each is (category, xywh, score)."""
    matches = match([result(1, category, xywh, score) for category, xywh, score in detections], COCO)
    number = kinds_of(matches)[int(np.argmin(matches.scores))]
    return None if number == NOTHING else KINDS[number]


def of(detections, coco=COCO):
    """{(group, kind): row} of `errors`."""
    matches = match([result(1, category, xywh, score) for category, xywh, score in detections], coco)
    return {(row["group"], row["error"]): row for row in errors(matches, {"dog"}, "fused")}


@pytest.mark.parametrize(
    ("xywh", "category", "expected"),
    [
        ([0, 0, 10, 5], 1, None),  # IoU 0.5 with the cat, the edge of a hit
        ([0, 0, 10, 4.9], 1, "localisation"),
        ([0, 0, 10, 1], 1, "localisation"),  # 0.1, the edge to background
        ([0, 0, 10, 0.9], 1, "background"),
        ([0, 0, 10, 5], 2, "classification"),
        ([0, 0, 10, 4.9], 2, "both"),
        ([0, 0, 10, 1.1], 2, "both"),
        ([0, 0, 10, 1], 2, "background"),
        ([50, 50, 10, 10], 1, "background"),
    ],
)
def test_the_kind_of_a_lone_detection_follows_from_its_iou_and_class(xywh, category, expected):
    assert kind((category, xywh, 0.5)) == expected


def test_the_second_detection_of_a_found_box_is_a_duplicate():
    assert kind((1, [0, 0, 10, 10], 0.9), (1, [0, 0, 10, 9], 0.5)) == "duplicate"


def test_a_picture_without_boxes_has_background_errors_alone():
    matches = match([result(2, 1, [0, 0, 10, 10], 0.9)], COCO)
    assert [KINDS[number] for number in kinds_of(matches)] == ["background"]
    assert missed(matches).tolist() == [True, True]


def test_a_detection_on_a_crowd_is_no_error():
    crowd = dataset([truth(1, 1, 1, [0, 0, 50, 50], iscrowd=1), truth(2, 2, 1, [0, 0, 9, 9])], names=("cat", "dog"))
    assert kinds_of(match([result(1, 1, [5, 5, 10, 10], 0.9)], crowd)).tolist() == [NOTHING]


def test_a_box_with_a_wrongly_named_or_placed_detection_near_is_not_missed():
    named = match([result(1, 2, [0, 0, 10, 10], 0.9)], COCO)
    placed = match([result(1, 2, [104, 0, 10, 10], 0.9), result(1, 1, [50, 50, 9, 9], 0.9)], COCO)
    assert missed(named).tolist() == [False, True]
    assert missed(placed).tolist() == [True, False]


def test_correcting_a_class_moves_the_detection_to_the_class_of_the_box():
    # the cat is called dog, above the true dog: dog AP is 0.5 (hit at the second place), cat AP 0
    rows = of([(2, [0, 0, 10, 10], 0.9), (2, [100, 0, 10, 10], 0.8)])
    row = rows["base", "classification"]
    assert (row["AP50"], row["corrected_AP50"], row["gain"], row["count"]) == (0, 100, 100, 0)
    row = rows["novel", "classification"]  # the detection was a dog's: the novel classes have the error
    assert (row["AP50"], row["corrected_AP50"], row["gain"], row["count"]) == (50, 100, 50, 1)
    row = rows["all", "classification"]
    assert (row["AP50"], row["corrected_AP50"], row["gain"], row["count"]) == (25, 100, 75, 1)


def test_only_the_best_of_several_wrong_detections_becomes_a_hit_and_the_others_go():
    rows = of([(1, [4, 0, 10, 10], 0.7), (1, [5, 0, 10, 10], 0.9), (1, [50, 50, 10, 10], 0.8)])
    row = rows["base", "localisation"]
    assert (row["count"], row["AP50"], row["corrected_AP50"]) == (2, 0, 100)


def test_a_wrong_place_counts_for_nothing_where_a_better_wrong_name_means_the_same_box():
    # as in tidecv: the better of the two wins the box for both corrections
    rows = of([(2, [0, 0, 10, 10], 0.9), (1, [4, 0, 10, 10], 0.5)])
    assert rows["base", "localisation"]["corrected_AP50"] == 0
    assert rows["base", "classification"]["gain"] == 100


def test_a_wrong_detection_of_a_found_box_is_taken_away():
    # one of two cats is found, and called dog by another detection: correcting that finds no second cat
    coco = dataset([*COCO["annotations"], truth(3, 2, 1, [0, 0, 10, 10])], names=("cat", "dog"))
    rows = of([(2, [0, 0, 10, 10], 0.9), (2, [100, 0, 10, 10], 0.8), (1, [0, 0, 10, 10], 0.95)], coco)
    assert rows["base", "classification"]["gain"] == 0
    assert rows["novel", "classification"]["gain"] == 50


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ((2, [50, 50, 10, 10], 0.9), "background"),
        ((2, [0, 0, 10, 4], 0.9), "both"),
    ],
)
def test_correcting_background_and_both_takes_the_detection_away(wrong, error):
    row = of([wrong, (2, [100, 0, 10, 10], 0.8)])["novel", error]
    assert (row["count"], row["AP50"], row["gain"]) == (1, 50, 50)


def test_correcting_a_duplicate_takes_it_away():
    coco = dataset([truth(1, 1, 2, [0, 0, 10, 10]), truth(2, 1, 2, [100, 0, 10, 10])], names=("cat", "dog"))
    detections = [(2, [0, 0, 10, 10], 0.9), (2, [0, 0, 10, 9], 0.8), (2, [100, 0, 10, 10], 0.7)]
    row = of(detections, coco)["novel", "duplicate"]
    assert row["count"] == 1
    assert row["AP50"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101, abs=1e-4)
    assert row["corrected_AP50"] == 100


def test_a_missed_box_need_not_be_found_and_a_class_with_nothing_found_stays_at_zero():
    coco = dataset([truth(1, 1, 2, [0, 0, 10, 10]), truth(2, 1, 2, [100, 0, 10, 10])], names=("cat", "dog"))
    row = of([(2, [0, 0, 10, 10], 0.9)], coco)["novel", "missed"]
    assert row["count"] == 1
    assert row["AP50"] == pytest.approx(100 * 51 / 101, abs=1e-4)
    assert row["corrected_AP50"] == 100
    row = of([], coco)["novel", "missed"]
    assert (row["count"], row["gain"]) == (2, 0)


def test_every_group_starts_from_its_ap50_and_the_groups_add_up():
    coco = made_up_coco(images=26)
    splits = val_splits(coco)
    scores = score(made_up_raw(coco), splits, EVALUATE)
    rows = list(errors(match(coco_results(scores.detections), splits["generalized"]), novel_names(), "fused"))
    assert [tuple(row) for row in rows] == [ERROR_COLUMNS] * len(KINDS) * 3
    table = {(row["group"], row["error"]): row for row in rows}
    for error in KINDS:
        novel, base, every = (table[group, error] for group in ("novel", "base", "all"))
        for group, row in (("novel", novel), ("base", base), ("all", every)):
            assert row["AP50"] == pytest.approx(scores.metrics[f"generalized_{group}_AP50"], abs=1e-3)
        for column in ("AP50", "corrected_AP50", "gain"):
            assert (48 * base[column] + 17 * novel[column]) / 65 == pytest.approx(every[column], abs=1e-3)
        assert base["count"] + novel["count"] == every["count"]

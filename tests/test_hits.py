import numpy as np
import pytest
from test_ap import dataset, pycocotools_eval, random_case, result, truth

from fvlm.evaluation.hits import HIT_IOU, NOTHING, RECALLS, match, precision_at_recalls


@pytest.mark.parametrize("seed", range(4))
def test_precision_at_every_recall_equals_pycocotools(seed):
    results, coco = random_case(seed)
    expected = pycocotools_eval(results, coco)["precision"][0, :, :, 0, -1]  # (101, K)
    matches = match(results, coco)
    for index, boxes in enumerate(matches.boxes):
        if boxes:
            counted = (matches.classes == index) & ~matches.on_crowd
            ours = precision_at_recalls(matches.scores[counted], matches.hit[counted], boxes)
            np.testing.assert_allclose(ours, expected[:, index], atol=1e-12)
        else:
            assert (expected[:, index] == -1).all()


def test_each_detection_takes_the_nearest_box_that_is_free_by_falling_score():
    coco = dataset([truth(1, 1, 1, [0, 0, 10, 10]), truth(2, 1, 1, [2, 0, 10, 10])])
    results = [
        result(1, 1, [2, 0, 10, 10], 0.5),  # its own box is taken by the better one: IoU 8/12 with the other
        result(1, 1, [2, 0, 10, 10], 0.9),
        result(1, 1, [2, 0, 10, 10], 0.1),  # nothing is left
    ]
    matches = match(results, coco)
    assert matches.scores.tolist() == [0.9, 0.5, 0.1]
    assert matches.truth.tolist() == [1, 0, NOTHING]
    assert matches.same_class_iou.tolist() == [1, 1, 1]
    assert matches.found.all()


def test_boxes_of_other_classes_and_pictures_are_near_but_never_hit():
    coco = dataset([truth(1, 1, 1, [0, 0, 10, 10]), truth(2, 2, 2, [0, 0, 10, 10])])
    matches = match([result(1, 2, [0, 0, 10, 5], 0.9), result(3, 1, [0, 0, 10, 10], 0.9)], coco)
    assert not matches.hit.any()
    assert matches.other_class_iou.tolist() == [0.5, 0]
    assert matches.other_class_truth.tolist() == [0, NOTHING]
    assert matches.same_class_truth.tolist() == [NOTHING, NOTHING]


def test_a_detection_on_a_crowd_is_neither_hit_nor_miss_and_a_free_box_goes_before_the_crowd():
    coco = dataset([truth(1, 1, 1, [0, 0, 100, 100], iscrowd=1), truth(2, 1, 1, [0, 0, 10, 10])])
    results = [
        result(1, 1, [0, 0, 10, 10], 0.9),
        result(1, 1, [50, 50, 10, 10], 0.8),  # inside the crowd: all of its area, though IoU is 0.01
        result(1, 2, [50, 50, 10, 10], 0.7),  # a crowd of another class
    ]
    matches = match(results, coco)
    assert matches.hit.tolist() == [True, False, False]
    assert matches.on_crowd.tolist() == [False, True, False]
    assert matches.boxes.tolist() == [1, 0, 0]


def test_of_a_picture_and_class_the_best_100_count_and_no_more():
    coco = dataset([truth(1, 1, 1, [0, 0, 10, 10])])
    wrong = [result(1, 1, [50, 50, 10, 10], 0.9)] * 100
    last = result(1, 1, [0, 0, 10, 10], 0.5)
    assert not match([*wrong, last], coco).hit.any()
    assert match([*wrong[1:], result(1, 2, [0, 0, 10, 10], 0.9), last], coco).hit.tolist() == [False] * 100 + [True]


def test_nothing_to_match_gives_empty_columns():
    matches = match([], dataset([]))
    assert matches.hit.shape == matches.found.shape == matches.other_class_iou.shape == (0,)
    assert match([], dataset([truth(1, 1, 1, [0, 0, 9, 9])])).found.tolist() == [False]


def test_precision_at_recalls_equals_a_value_worked_by_hand():
    # hit, miss, hit on two boxes: precision 1 up to recall 0.5 (51 of 101 recalls), then 2/3
    curve = precision_at_recalls(np.array([0.7, 0.9, 0.8]), np.array([True, True, False]), 2)
    np.testing.assert_allclose(curve, [1] * 51 + [2 / 3] * 50)
    assert precision_at_recalls(np.array([0.9]), np.array([True]), 3)[-1] == 0
    assert precision_at_recalls(np.array([0.9]), np.array([False]), 0).sum() == 0
    assert (len(RECALLS), HIT_IOU) == (101, 0.5)

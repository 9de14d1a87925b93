import numpy as np
import pytest
from test_ap import dataset as coco_of
from test_ap import pycocotools_eval, random_case, result, truth

from fvlm.errors import InputError
from fvlm.evaluation.ap import average_precision, proposal_recall
from fvlm.evaluation.matching import ANY_CLASS, Boxes, Truth, average_recall, class_scores, count


def boxes_of(results, category_id=None) -> Boxes:
    return Boxes(
        image_ids=np.array([r["image_id"] for r in results], dtype=np.int64),
        category_ids=np.array([category_id or r["category_id"] for r in results], dtype=np.int64),
        boxes_xywh=np.array([r["bbox"] for r in results], dtype=np.float64).reshape(-1, 4),
        scores=np.array([r["score"] for r in results], dtype=np.float64),
    )


def scores_of(results, coco, **options):
    of = Truth.of(coco)
    return class_scores(count(boxes_of(results), of, **options), of)


@pytest.mark.parametrize("seed", range(8))
def test_the_counts_are_pycocotools_own_ties_and_crowds_and_the_limit_included(seed):
    results, coco = random_case(seed)
    expected = pycocotools_eval(results, coco)
    found = count(boxes_of(results), Truth.of(coco))
    np.testing.assert_allclose(found.precision, expected["precision"][:, :, :, 0, -1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.recall, expected["recall"][:, :, 0, -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(8, 12))
def test_the_scores_are_those_of_the_reference(seed):
    results, coco = random_case(seed)
    reference = average_precision(results, coco)
    scores = scores_of(results, coco)
    assert scores.keys() == reference.keys()
    for name, score in scores.items():
        expected = reference[name]
        assert (score is None) == (expected is None)
        assert score is None or expected is None or tuple(score) == pytest.approx(tuple(expected), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_proposals_are_recalled_as_by_the_reference(seed):
    results, coco = random_case(seed)
    counts = count(boxes_of(results, ANY_CLASS), Truth.of_any_class(coco, {"b", "d"}))
    assert average_recall(counts) == pytest.approx(proposal_recall(results, coco, {"b", "d"}), abs=1e-9)
    assert average_recall(count(boxes_of(results, ANY_CLASS), Truth.of_any_class(coco, {"nothing"}))) is None


def test_many_boxes_on_many_equal_truths_are_matched_in_cocos_order():
    """Overlaps that tie: the last truth of the best is taken, and a crowd only where no other is left."""
    rng = np.random.default_rng(0)
    grid = [[float(x), float(y), 10.0, 10.0] for x in (0, 2, 4) for y in (0, 2)]
    annotations = [
        truth(n + 1, n % 4 + 1, 1, grid[rng.integers(len(grid))], int(rng.random() < 0.2)) for n in range(40)
    ]
    results = [result(n % 4 + 1, 1, grid[rng.integers(len(grid))], float(rng.integers(1, 4)) / 4) for n in range(120)]
    coco = coco_of(annotations, names=("a",), images=4)
    expected = pycocotools_eval(results, coco)["precision"][:, :, :, 0, -1]
    np.testing.assert_allclose(count(boxes_of(results), Truth.of(coco)).precision, expected, rtol=0, atol=1e-12)


def test_boxes_without_area_hit_nothing():
    coco = coco_of([truth(1, 1, 1, [0, 0, 0, 0]), truth(2, 1, 1, [5, 5, 10, 10])])
    flat = [result(1, 1, [0, 0, 0, 0], 0.9), result(1, 1, [5, 5, 10, 0], 0.8)]
    with np.errstate(all="raise"):
        assert scores_of(flat, coco)["cat"] == (0, 0)


def test_no_detections_and_no_truth_are_told_apart():
    coco = coco_of([truth(1, 1, 1, [0, 0, 10, 10]), truth(2, 1, 3, [0, 0, 10, 10], 1)])
    assert scores_of([], coco) == {"cat": (0, 0), "dog": None, "cow": None}


def test_pictures_without_boxes_count_their_detections_as_misses():
    coco = coco_of([truth(1, 1, 1, [0, 0, 10, 10])])
    results = [result(2, 1, [0, 0, 10, 10], 0.9), result(1, 1, [0, 0, 10, 10], 0.8)]
    of = Truth.of(coco, [1, 2])
    assert class_scores(count(boxes_of(results), of), of)["cat"] == pytest.approx((50, 50))
    of = Truth.of(coco, [1])
    with pytest.raises(InputError, match="detections on 1 images without ground truth, the first is image_id 2"):
        count(boxes_of(results), of)

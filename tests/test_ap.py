import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fvlm.errors import InputError
from fvlm.evaluation.ap import ClassScore, Detections, average_precision, best_detections, group_mean, proposal_recall


def pycocotools_eval(results, coco, **changes):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(coco)
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        for name, value in changes.items():
            setattr(evaluator.params, name, value)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval


def by_pycocotools(results, protocol, splits, images="split"):
    """AP50 and AP of each group of classes, percent, keyed as in metrics/<run>.json."""
    split = splits[protocol.split]
    chosen = split if images == "split" else {**split, "images": splits["all"]["images"]}
    evaluated = pycocotools_eval(results, chosen, areaRng=[[0, 1e10]], areaRngLbl=["all"])
    precision = evaluated["precision"][:, :, :, 0, -1]  # (T, 101, K), K by ascending category id
    names = [category["name"] for category in sorted(split["categories"], key=lambda c: c["id"])]
    means: dict[str, float] = {}
    for group, members in protocol.groups.items():
        of_group = 100 * precision[:, :, [name in members for name in names]]
        of_group = of_group[:, :, of_group[0, 0] > -1]
        means |= {f"{group}_AP50": of_group[0].mean(), f"{group}_AP": of_group.mean()}
    return means


def truth(number, image_id, category_id, bbox, iscrowd=0):
    area = bbox[2] * bbox[3]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": area,
        "iscrowd": iscrowd,
    }


def result(image_id, category_id, bbox, score):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


def dataset(annotations, names=("cat", "dog", "cow"), images=3):
    return {
        "images": [{"id": i, "width": 200, "height": 200} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
    }


def random_case(seed, images=25):
    """The hard cases: ties, crowds, no detection of "d", no ground truth, > 100 detections of a class on an image."""
    rng = np.random.default_rng(seed)
    annotations: list[dict] = []
    results: list[dict] = []
    for image_id in range(1, images + 1):
        for _ in range(rng.integers(0, 8)):
            category_id = int(rng.integers(1, 6))
            bbox = [*rng.uniform(0, 120, 2), *rng.uniform(15, 70, 2)]
            crowd = int(category_id == 5 or rng.random() < 0.15)
            annotations.append(truth(len(annotations) + 1, image_id, category_id, [float(v) for v in bbox], crowd))
            for _ in range(rng.integers(0, 4)):
                near = np.array(bbox) + rng.normal(0, 6, 4)
                if category_id != 4:
                    score = round(float(rng.beta(4, 2)), 1)
                    results.append(result(image_id, category_id, np.maximum(near, 1).tolist(), score))
        for _ in range(150 if image_id == 1 else rng.integers(0, 20)):
            category_id = 1 if image_id == 1 else int(rng.choice([1, 2, 3, 5, 6]))
            bbox = [float(v) for v in (*rng.uniform(0, 120, 2), *rng.uniform(15, 70, 2))]
            results.append(result(image_id, category_id, bbox, round(float(rng.beta(2, 4)), 1)))
    return results, dataset(annotations, names=("a", "b", "c", "d", "crowds", "nothing"), images=images)


def test_average_precision_equals_a_value_worked_by_hand():
    # hit, miss, hit on two boxes: precision 1 up to recall 0.5 (51 of 101 recalls), then 2/3 (50 of 101)
    coco = dataset([truth(1, 1, 1, [0, 0, 10, 10]), truth(2, 2, 1, [0, 0, 10, 10])])
    results = [
        result(1, 1, [0, 0, 10, 10], 0.9),
        result(1, 1, [100, 100, 10, 10], 0.8),
        result(2, 1, [0, 0, 10, 6], 0.7),  # IoU 0.6: a hit at .50, .55 and .60 of the ten thresholds
    ]
    both = 100 * (51 + 50 * 2 / 3) / 101
    one = 100 * 51 / 101
    scores = average_precision(results, coco)
    assert scores["cat"] == pytest.approx((both, 0.3 * both + 0.7 * one))
    assert scores["dog"] is None
    assert scores["cow"] is None
    assert average_precision(results, coco, iou_thresholds=(0.5,))["cat"] == pytest.approx((both, both))


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_pycocotools(seed):
    results, coco = random_case(seed)
    precision = pycocotools_eval(results, coco)["precision"][:, :, :, 0, -1]
    scores = average_precision(results, coco)
    assert scores["crowds"] is None
    assert scores["nothing"] is None
    assert scores["d"] == (0, 0)
    for k, category in enumerate(coco["categories"]):
        score = scores[category["name"]]
        if score is None:
            assert (precision[:, :, k] == -1).all()
        else:
            expected = (100 * precision[0, :, k].mean(), 100 * precision[:, :, k].mean())
            assert tuple(score) == pytest.approx(expected, abs=1e-9)
    mean = group_mean(scores, scores.keys())
    assert mean is not None
    assert 5 < mean.AP50 < 95  # the case is neither empty nor trivial


@pytest.mark.parametrize("seed", range(3))
def test_proposal_recall_equals_pycocotools_without_categories(seed):
    results, coco = random_case(seed)
    wanted = {"b", "d"}
    ids = {category["id"] for category in coco["categories"] if category["name"] in wanted}
    only = {**coco, "annotations": [a for a in coco["annotations"] if a["category_id"] in ids]}
    recall = pycocotools_eval(results, only, useCats=0)["recall"][:, :, 0, -1]
    ours = proposal_recall(results, coco, wanted)
    assert ours == pytest.approx(100 * recall.mean(), abs=1e-9)
    assert 5 < recall.mean() * 100 < 95


def test_proposals_on_boxes_of_other_classes_neither_help_nor_harm():
    coco = dataset([truth(1, 1, 1, [0, 0, 10, 10]), truth(2, 1, 2, [50, 50, 10, 10])])
    on_cat, on_dog = result(1, 1, [0, 0, 10, 10], 0.1), result(1, 1, [50, 50, 10, 10], 0.9)
    assert proposal_recall([on_cat, on_dog], coco, ["cat"]) == pytest.approx(100)
    assert proposal_recall([on_dog], coco, ["cat"]) == 0
    assert proposal_recall([on_cat], coco, ["cow"]) is None


def test_only_the_best_hundred_proposals_of_an_image_count():
    coco = dataset([truth(1, 1, 1, [0, 0, 10, 10])])
    others = [result(1, 1, [100, 100, 10, 10], 0.9)] * 100
    assert proposal_recall([*others, result(1, 1, [0, 0, 10, 10], 0.1)], coco, ["cat"]) == 0
    assert proposal_recall([*others[1:], result(1, 1, [0, 0, 10, 10], 0.1)], coco, ["cat"]) == pytest.approx(100)


def test_a_group_mean_is_over_the_classes_with_ground_truth():
    scores = {"cat": ClassScore(10, 4), "dog": ClassScore(20, 6), "cow": None}
    assert group_mean(scores, ["cat", "dog", "cow"]) == ClassScore(15, 5)
    assert group_mean(scores, ["cow"]) is None


def test_no_detections_score_zero_where_there_is_ground_truth():
    coco = dataset([truth(1, 1, 1, [0, 0, 10, 10])])
    assert average_precision([], coco) == {"cat": (0, 0), "dog": None, "cow": None}


def test_the_input_is_not_changed_and_nothing_is_printed(capfd):
    results, coco = random_case(0)
    before = copy.deepcopy((results, coco))
    average_precision(results, coco)
    proposal_recall(results, coco, ["a"])
    assert (results, coco) == before
    assert capfd.readouterr() == ("", "")


def test_an_annotation_with_id_zero_is_found_like_any_other():
    coco = dataset([truth(0, 1, 1, [0, 0, 10, 10])])
    assert average_precision([result(1, 1, [0, 0, 10, 10], 0.9)], coco)["cat"] == pytest.approx((100, 100))


def test_the_order_of_categories_and_other_categories_do_not_matter():
    results, coco = random_case(1)
    shuffled = {**coco, "categories": coco["categories"][::-1]}
    fewer = {
        **coco,
        "categories": coco["categories"][:2],
        "annotations": [a for a in coco["annotations"] if a["category_id"] < 3],
    }
    scores = average_precision(results, coco)
    assert average_precision(results, shuffled) == scores
    assert average_precision(results, fewer) == {name: scores[name] for name in ("a", "b")}


def test_a_detection_on_an_unknown_image_is_refused():
    with pytest.raises(InputError, match="detections on 1 images without ground truth, the first is image_id 9"):
        average_precision([result(9, 1, [0, 0, 1, 1], 0.5)], dataset([]))


def test_the_best_hundred_of_an_image_and_class_are_in_cocos_order():
    rng = np.random.default_rng(0)
    image_ids, category_ids, scores = rng.integers(1, 3, 900), rng.integers(5, 7, 900), rng.random(900).round(1)
    detections = Detections(
        image_ids=image_ids, category_ids=category_ids, boxes_xywh=np.zeros((900, 4)), scores=scores
    )
    expected: list[int] = []
    for category_id in (5, 6):
        for image_id in (1, 2):
            rows = np.flatnonzero((category_ids == category_id) & (image_ids == image_id))
            assert len(rows) > 100
            expected += rows[np.argsort(-scores[rows], kind="mergesort")][:100].tolist()
    assert best_detections(detections).tolist() == expected
    none = np.empty(0, np.int64)
    empty = Detections(image_ids=none, category_ids=none, boxes_xywh=np.empty((0, 4)), scores=np.empty(0))
    assert len(best_detections(empty)) == 0

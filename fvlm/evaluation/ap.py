"""Average precision and recall by COCO's rules, class by class.

faster-coco-eval does the counting; tests hold its numbers equal to pycocotools'.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from ..data.coco import CocoDict
from ..errors import InputError

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
MAX_DETECTIONS = 100  # COCO's: of an image and class; of an image where classes do not count


class ClassScore(NamedTuple):
    """Average precision in percent, 0 to 100."""

    AP50: float  # at IoU 0.5
    AP: float  # mean over the IoU thresholds, COCO's .50:.95 unless said


def average_precision(
    results: Iterable[Mapping[str, Any]], coco: CocoDict, iou_thresholds: Sequence[float] = IOU_THRESHOLDS
) -> dict[str, ClassScore | None]:
    """Score COCO results against ground truth, all areas, at most 100 detections of an image and class.

    Args:
        results: {"image_id", "category_id", "bbox": [x, y, w, h], "score"} each; categories that `coco` lacks are
            ignored.
        coco: "images", "annotations" and "categories"; `iscrowd` boxes count neither as hits nor as misses.
        iou_thresholds: rising, 0.5 first; (0.5,) where AP50 alone is wanted, in less time.

    Returns:
        For each category name of `coco` its score; None for a class without ground truth, which COCO leaves out of
        every mean (its -1). A class that has only crowd boxes is without ground truth. A class with ground truth and
        no detection scores 0.

    Raises:
        InputError: a result lies on an image that `coco` lacks.
    """
    categories = sorted(coco["categories"], key=lambda category: category["id"])
    category_ids = [category["id"] for category in categories]
    known = set(category_ids)
    results = [result for result in results if result["category_id"] in known]
    counts = _count(results, coco["annotations"], _image_ids(coco), category_ids, iou_thresholds)
    precision = 100 * counts["precision"][:, :, :, 0, 0].mean(
        axis=1
    )  # (T, K): the mean over 101 recalls; -100 if undefined
    return {
        category["name"]: ClassScore(float(of_class[0]), float(of_class.mean())) if of_class[0] >= 0 else None
        for category, of_class in zip(categories, precision.T, strict=True)
    }


def group_mean(scores: Mapping[str, ClassScore | None], names: Collection[str]) -> ClassScore | None:
    """The mean score over those of the classes `names` that have ground truth; None if none has."""
    defined = [score for name in names if (score := scores[name]) is not None]
    return ClassScore(*np.mean(defined, axis=0).tolist()) if defined else None


def proposal_recall(proposals: Iterable[Mapping[str, Any]], coco: CocoDict, names: Collection[str]) -> float | None:
    """Class-agnostic average recall (AR100) of proposals on the boxes of the classes `names`, in percent.

    The best 100 proposals of an image count, whatever their class; recall is averaged over IoU .50:.95. The boxes of
    other classes are neither to be found nor held against the proposals. None if the classes have no box.

    Source: COCO's AR@100 with useCats=0, on the ground truth of these classes only.
    """
    wanted = {category["id"] for category in coco["categories"] if category["name"] in set(names)}
    annotations = [{**a, "category_id": 1} for a in coco["annotations"] if a["category_id"] in wanted]
    objects = [{**proposal, "category_id": 1} for proposal in proposals]
    counts = _count(objects, annotations, _image_ids(coco), [1], IOU_THRESHOLDS)
    recall = float(counts["recall"].mean())
    return 100 * recall if recall >= 0 else None


def _image_ids(coco: CocoDict) -> list[int]:
    return [image["id"] for image in coco["images"]]


def _count(
    results: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    iou_thresholds: Sequence[float],
) -> dict[str, Any]:
    """COCOeval's "precision" (T, 101, K, 1, 1) and "recall" (T, K, 1, 1); -1 where a class has no ground truth."""
    if stray := {result["image_id"] for result in results} - set(image_ids):
        raise InputError(f"detections on {len(stray)} images without ground truth, the first is image_id {min(stray)}")
    evaluator = COCOeval_faster(
        _index(annotations, image_ids, category_ids), _index(results, image_ids, category_ids), iouType="bbox"
    )
    evaluator.params.iouThrs = np.array(iou_thresholds)
    evaluator.params.maxDets = [MAX_DETECTIONS]
    evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval


def _index(boxes: Sequence[Mapping[str, Any]], image_ids: Sequence[int], category_ids: Sequence[int]) -> COCO:
    """faster-coco-eval's view of annotations or results.

    It writes into the boxes, so it gets its own, numbered from 1: an annotation with id 0 would pass as unmatched.
    """
    own = [
        {
            "id": number,
            "image_id": box["image_id"],
            "category_id": box["category_id"],
            "bbox": box["bbox"],
            "area": box["bbox"][2] * box["bbox"][3],
            "iscrowd": box.get("iscrowd", 0),
            **({"score": box["score"]} if "score" in box else {}),
        }
        for number, box in enumerate(boxes, start=1)
    ]
    index = COCO()
    index.dataset = {
        "images": [{"id": image_id} for image_id in image_ids],
        "annotations": own,
        "categories": [{"id": category_id} for category_id in category_ids],
    }
    index.createIndex()
    return index

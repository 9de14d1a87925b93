"""Average precision and recall by COCO's rules, class by class.

faster-coco-eval does the counting; tests hold its numbers equal to pycocotools'. It gets one class at a time, so that
neither memory nor time grows with the number of classes times the number of images, which is 24 million in LVIS.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from ..data.coco import CocoDict
from ..errors import InputError

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
MAX_DETECTIONS = 100  # COCO's: of an image and class; of an image where classes do not count
AREA_RANGES = {  # square pixels, both ends included; COCO's. Of an annotation it is "area", of a detection its box
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
Boxes = Sequence[Mapping[str, Any]]


class ClassScore(NamedTuple):
    """Average precision in percent, 0 to 100."""

    AP50: float  # at IoU 0.5
    AP: float  # mean over the IoU thresholds, COCO's .50:.95 unless said


class SizeScore(NamedTuple):
    """Average precision and recall in percent, 0 to 100, over the boxes of one range of areas."""

    AP50: float  # at IoU 0.5
    AP: float  # mean over IoU .50:.95
    AR: float  # recall of the best 100 detections of an image and class, mean over IoU .50:.95


@dataclass(frozen=True, kw_only=True)
class Detections:
    """N detections as columns: 56 bytes each, where a dict takes 500."""

    image_ids: np.ndarray  # (N,) int64
    category_ids: np.ndarray  # (N,) int64
    boxes_xywh: np.ndarray  # (N, 4) float64, pixels
    scores: np.ndarray  # (N,) float64

    def __len__(self) -> int:
        return len(self.scores)


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


def scores_by_size(
    detections: Detections, best: np.ndarray, coco: CocoDict, category_ids: Collection[int]
) -> Iterator[tuple[int, dict[str, SizeScore | None]]]:
    """Score one class after another, by the size of its boxes.

    Args:
        detections: on images of `coco`; those of other classes are left out.
        best: what `best_detections` says of them.
        coco: "images" and "annotations", each annotation with "area" and "iscrowd"; those on other images or of other
            classes are left out.
        category_ids: the classes to score.

    Yields:
        category_id and, for each of `AREA_RANGES`, its score: None where the class has no ground truth of that size.

    Source: COCOeval with iouType bbox and its default params, of which these are AP, AP50, APs/m/l, AR100, ARs/m/l.
    """
    image_ids = set(_image_ids(coco))
    truths: dict[int, list[Mapping[str, Any]]] = {category_id: [] for category_id in category_ids}
    for annotation in coco["annotations"]:
        if annotation["category_id"] in truths and annotation["image_id"] in image_ids:
            truths[annotation["category_id"]].append(annotation)
    sorted_ids = detections.category_ids[best]
    areas = list(AREA_RANGES.values())
    for category_id, of_class in truths.items():
        own = best[slice(*np.searchsorted(sorted_ids, [category_id, category_id + 1]))]
        counts = _count_class(of_class, _as_dicts(detections, own), IOU_THRESHOLDS, areas)
        precision = 100 * counts["precision"][:, :, 0, :, 0].mean(axis=1)  # (T, A)
        recall = 100 * counts["recall"][:, 0, :, 0]  # (T, A)
        yield (
            category_id,
            {
                size: SizeScore(float(p[0]), float(p.mean()), float(r.mean())) if p[0] >= 0 else None
                for size, p, r in zip(AREA_RANGES, precision.T, recall.T, strict=True)
            },
        )


def mean_by_size(scores: Collection[Mapping[str, SizeScore | None]]) -> dict[str, SizeScore | None]:
    """For each of `AREA_RANGES` the mean over the classes that have ground truth of that size; None if none has."""
    means: dict[str, SizeScore | None] = {}
    for size in AREA_RANGES:
        defined = [score for of_class in scores if (score := of_class[size]) is not None]
        means[size] = SizeScore(*np.mean(defined, axis=0).tolist()) if defined else None
    return means


def best_detections(detections: Detections) -> np.ndarray:
    """Rows of the best 100 detections of each image and class: by class, image, then falling score; ties keep order.

    All that COCO looks at. Within an image and class that is its own order, so that ties fall as in pycocotools.
    """
    order = np.lexsort((-detections.scores, detections.image_ids, detections.category_ids))
    if not len(order):
        return order
    image_ids, category_ids = detections.image_ids[order], detections.category_ids[order]
    begins = np.concatenate([[True], (np.diff(image_ids) != 0) | (np.diff(category_ids) != 0)])
    first = np.flatnonzero(begins)
    rank = np.arange(len(order)) - np.repeat(first, np.diff([*first, len(order)]))
    return order[rank < MAX_DETECTIONS]


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


def _as_dicts(detections: Detections, rows: np.ndarray) -> list[dict[str, Any]]:
    columns = (detections.image_ids, detections.category_ids, detections.boxes_xywh, detections.scores)
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for image_id, category_id, box, score in zip(*(column[rows].tolist() for column in columns), strict=True)
    ]


def _count(
    results: Boxes,
    annotations: Boxes,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    iou_thresholds: Sequence[float],
) -> dict[str, Any]:
    """COCOeval's "precision" (T, 101, K, 1, 1) and "recall" (T, K, 1, 1); -1 where a class has no ground truth."""
    images = set(image_ids)
    if stray := {result["image_id"] for result in results} - images:
        raise InputError(f"detections on {len(stray)} images without ground truth, the first is image_id {min(stray)}")
    found: dict[int, list[Mapping[str, Any]]] = {category_id: [] for category_id in category_ids}
    truths: dict[int, list[Mapping[str, Any]]] = {category_id: [] for category_id in category_ids}
    for result in results:
        found[result["category_id"]].append(result)
    for annotation in annotations:
        if annotation["category_id"] in truths and annotation["image_id"] in images:
            truths[annotation["category_id"]].append(annotation)
    counts = [_count_class(truths[i], found[i], iou_thresholds, [AREA_RANGES["all"]]) for i in category_ids]
    return {
        "precision": np.concatenate([of_class["precision"] for of_class in counts], axis=2),
        "recall": np.concatenate([of_class["recall"] for of_class in counts], axis=1),
    }


def _count_class(
    truths: Boxes, found: Boxes, iou_thresholds: Sequence[float], areas: Sequence[tuple[float, float]]
) -> dict[str, np.ndarray]:
    """COCOeval's "precision" (T, 101, 1, A, 1) and "recall" (T, 1, A, 1) of one class; -1 without ground truth.

    Images with neither a box nor a detection of the class change nothing, and are not even named.
    """
    if not truths:
        return {
            "precision": -np.ones((len(iou_thresholds), 101, 1, len(areas), 1)),
            "recall": -np.ones((len(iou_thresholds), 1, len(areas), 1)),
        }
    image_ids = sorted({box["image_id"] for boxes in (truths, found) for box in boxes})
    evaluator = COCOeval_faster(_index(truths, image_ids), _index(found, image_ids), iouType="bbox")
    evaluator.params.catIds = [1]
    evaluator.params.iouThrs = np.array(iou_thresholds)
    evaluator.params.maxDets = [MAX_DETECTIONS]
    evaluator.params.areaRng = [list(area) for area in areas]
    evaluator.params.areaRngLbl = [str(number) for number in range(len(areas))]
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval


def _index(boxes: Boxes, image_ids: Sequence[int]) -> COCO:
    """faster-coco-eval's view of annotations or results of one class.

    It writes into the boxes, so it gets its own, numbered from 1: an annotation with id 0 would pass as unmatched.
    """
    own = [
        {
            "id": number,
            "image_id": box["image_id"],
            "category_id": 1,
            "bbox": box["bbox"],
            "iscrowd": box.get("iscrowd", 0),
            **(
                {"score": box["score"], "area": box["bbox"][2] * box["bbox"][3]}  # COCO's, whatever the file says
                if "score" in box
                else {"area": box.get("area", box["bbox"][2] * box["bbox"][3])}
            ),
        }
        for number, box in enumerate(boxes, start=1)
    ]
    index = COCO()
    index.dataset = {"images": [{"id": image_id} for image_id in image_ids], "annotations": own}
    index.dataset["categories"] = [{"id": 1}]
    index.createIndex()
    return index

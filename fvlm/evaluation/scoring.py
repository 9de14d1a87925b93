"""All scores of one detector, from its raw detections: every protocol, and each branch alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..data.coco import CocoDict
from ..errors import InputError
from ..params import Evaluate
from .ap import MAX_DETECTIONS, ClassScore, average_precision, group_mean, proposal_recall
from .protocols import CocoResult, detections_of, proposals_of, protocols
from .raw import REMEDY, RawDetections

DECIMALS = 4  # of a percentage
PER_CLASS_COLUMNS = (
    "name",
    "category_id",
    "group",
    "supervised",
    "val_boxes",
    "AP50",
    "AP",
    "detector_only_AP50",
    "vlm_only_AP50",
)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one detector reached.

    Args:
        metrics: the flat content of metrics/<setting>.json, percent.
        per_class: a row of `PER_CLASS_COLUMNS` for each of the 65 classes by ascending category id, generalized
            protocol; None where the class has no ground truth.
        detections: COCO results, generalized protocol, fused.
        detector_only: likewise, without the VLM.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    detections: list[CocoResult]
    detector_only: list[CocoResult]


def score(raw: RawDetections, splits: Mapping[str, CocoDict], evaluate: Evaluate) -> Scores:
    """Score `raw` under every protocol.

    `detector_only_*` and `vlm_only_*` are the generalized protocol with alpha = beta = 0 and alpha = beta = 1; the
    background stays the detector's in both, as fusion has it.

    Args:
        raw: raw detections of exactly the images of the generalized split.
        splits: validation splits by name: base, novel, generalized.
        evaluate: fusion weights, NMS and limits.

    Raises:
        InputError: the images of `raw` and `splits` differ, or a protocol has no ground truth to score.
    """
    _check_images(raw, splits)
    metrics: dict[str, float] = {}

    def scored(
        name: str, settings: Evaluate, prefix: str = ""
    ) -> tuple[list[CocoResult], dict[str, ClassScore | None]]:
        protocol = protocols()[name]
        coco = splits[protocol.split]
        detections = detections_of(raw, protocol.names, {image["id"] for image in coco["images"]}, settings)
        classes = average_precision(detections, coco)
        for group, names in protocol.groups.items():
            mean = group_mean(classes, names)
            if mean is None:
                raise InputError(_nothing_to_score(group, len(names)))
            metrics[f"{prefix}{group}_AP50"] = round(mean.AP50, DECIMALS)
            metrics[f"{prefix}{group}_AP"] = round(mean.AP, DECIMALS)
        return detections, classes

    scored("constrained_base", evaluate)
    scored("constrained_novel", evaluate)
    detections, fused = scored("generalized", evaluate)
    detector_only, of_detector = scored("generalized", replace(evaluate, alpha=0.0, beta=0.0), "detector_only_")
    _, of_vlm = scored("generalized", replace(evaluate, alpha=1.0, beta=1.0), "vlm_only_")

    novel = protocols()["constrained_novel"].names
    recall = proposal_recall(proposals_of(raw, MAX_DETECTIONS), splits["generalized"], novel)
    assert recall is not None, "constrained_novel has ground truth, the generalized split has it too"
    metrics["AR100_novel_proposals"] = round(recall, DECIMALS)

    return Scores(
        metrics=metrics,
        per_class=_per_class(raw, splits["generalized"], fused, of_detector, of_vlm),
        detections=detections,
        detector_only=detector_only,
    )


def _check_images(raw: RawDetections, splits: Mapping[str, CocoDict]) -> None:
    detected = set(raw.image_ids.tolist())
    for name, coco in splits.items():
        images = {image["id"] for image in coco["images"]}
        missing = len(images - detected)
        surplus = len(detected - images) if name == "generalized" else 0
        if missing or surplus:
            raise InputError(
                f"raw detections of {raw.setting}: expected the images of the {name} validation split, "
                f"{missing} are missing and {surplus} are not in it; {REMEDY}"
            )


def _nothing_to_score(group: str, classes: int) -> str:
    return (
        f"{group}: expected boxes of its {classes} classes in the validation pictures, found none; "
        "use annotations that have some"
    )


def _per_class(
    raw: RawDetections,
    coco: CocoDict,
    fused: Mapping[str, ClassScore | None],
    of_detector: Mapping[str, ClassScore | None],
    of_vlm: Mapping[str, ClassScore | None],
) -> list[dict[str, Any]]:
    novel = set(protocols()["constrained_novel"].names)
    boxes = [a["category_id"] for a in coco["annotations"] if not a["iscrowd"]]  # a crowd is nothing to find
    rows = []
    for category in sorted(coco["categories"], key=lambda category: category["id"]):
        name = category["name"]
        rows.append(
            {
                "name": name,
                "category_id": category["id"],
                "group": "novel" if name in novel else "base",
                "supervised": "true" if name in raw.supervised else "false",
                "val_boxes": boxes.count(category["id"]),
                "AP50": _rounded(fused[name], "AP50"),
                "AP": _rounded(fused[name], "AP"),
                "detector_only_AP50": _rounded(of_detector[name], "AP50"),
                "vlm_only_AP50": _rounded(of_vlm[name], "AP50"),
            }
        )
    return rows


def _rounded(score: ClassScore | None, metric: str) -> float | None:
    return None if score is None else round(getattr(score, metric), DECIMALS)

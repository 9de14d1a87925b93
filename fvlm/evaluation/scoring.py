"""All scores of one detector, from its raw detections: every protocol, and each branch alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..data.coco import CocoDict
from ..errors import InputError
from ..params import Evaluate
from .ap import MAX_DETECTIONS, ClassScore, group_mean
from .detections import detect_cases, proposals_of
from .matching import Boxes, Truth, average_recall, class_scores, count
from .protocols import Case, case_of, protocols
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
        detections: generalized protocol, fused.
        detector_only: likewise, without the VLM.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    detections: Boxes
    detector_only: Boxes


def score(raw: RawDetections, splits: Mapping[str, CocoDict], evaluate: Evaluate, progress: str = "") -> Scores:
    """Score `raw` under every protocol.

    `detector_only_*` and `vlm_only_*` are the generalized protocol with alpha = beta = 0 and alpha = beta = 1; the
    background stays the detector's in both, as fusion has it.

    Args:
        raw: raw detections of exactly the validation pictures.
        splits: validation splits by name: base, novel, generalized, all.
        evaluate: the rules: pictures, softmax, fusion weights, NMS and limits.
        progress: what a bar is to be called; none without it.

    Raises:
        InputError: the images of `raw` and `splits` differ, or a protocol has no ground truth to score.
    """
    check_images(raw, splits)
    scored = {  # prefix of the metrics' names, protocol, rules
        "constrained_base": ("", protocols()["constrained_base"], evaluate),
        "constrained_novel": ("", protocols()["constrained_novel"], evaluate),
        "fused": ("", protocols()["generalized"], evaluate),
        "detector_only": ("detector_only_", protocols()["generalized"], replace(evaluate, alpha=0.0, beta=0.0)),
        "vlm_only": ("vlm_only_", protocols()["generalized"], replace(evaluate, alpha=1.0, beta=1.0)),
    }
    cases = [case_of(protocol, splits, rules) for _, protocol, rules in scored.values()]
    found = dict(zip(scored, detect_cases(raw, cases, evaluate.processes, progress), strict=True))
    metrics: dict[str, float] = {}
    classes: dict[str, dict[str, ClassScore | None]] = {}
    for (name, (prefix, protocol, _)), case in zip(scored.items(), cases, strict=True):
        truth = Truth.of(splits[protocol.split], case.image_ids)
        classes[name] = class_scores(count(found[name], truth), truth)
        for group, names in protocol.groups.items():
            mean = group_mean(classes[name], names)
            if mean is None:
                raise InputError(_nothing_to_score(group, len(names)))
            metrics[f"{prefix}{group}_AP50"] = round(mean.AP50, DECIMALS)
            metrics[f"{prefix}{group}_AP"] = round(mean.AP, DECIMALS)

    generalized = splits["generalized"]
    proposals = proposals_of(raw, MAX_DETECTIONS, {image["id"] for image in generalized["images"]})
    recall = average_recall(count(proposals, Truth.of_any_class(generalized, protocols()["constrained_novel"].names)))
    assert recall is not None, "constrained_novel has ground truth, the generalized split has it too"
    metrics["AR100_novel_proposals"] = round(recall, DECIMALS)

    return Scores(
        metrics=metrics,
        per_class=_per_class(raw, generalized, classes["fused"], classes["detector_only"], classes["vlm_only"]),
        detections=found["fused"],
        detector_only=found["detector_only"],
    )


def headline(metrics: Mapping[str, float]) -> str:
    """A run's three numbers that are quoted first, in words."""
    shown = ", ".join(f"{group} {metrics[f'generalized_{group}_AP50']:.1f}" for group in ("novel", "base", "all"))
    return f"generalized AP50 {shown}"


def generalized_ap50(
    raw: RawDetections,
    splits: Mapping[str, CocoDict],
    cases: Sequence[Case],
    processes: int,
    progress: str = "",
) -> list[dict[str, float | None]]:
    """generalized_{base,novel,all}_AP50 of each of `cases`, in percent; None for a group without ground truth."""
    groups = protocols()["generalized"].groups
    truths: dict[frozenset[int], Truth] = {}
    rows = []
    for case, found in zip(cases, detect_cases(raw, cases, processes, progress), strict=True):
        if case.image_ids not in truths:
            truths[case.image_ids] = Truth.of(splits["generalized"], case.image_ids)
        truth = truths[case.image_ids]
        scores = class_scores(count(found, truth, iou_thresholds=(0.5,)), truth)
        means = {group: group_mean(scores, names) for group, names in groups.items()}
        rows.append({f"{group}_AP50": mean and round(mean.AP50, DECIMALS) for group, mean in means.items()})
    return rows


def check_images(raw: RawDetections, splits: Mapping[str, CocoDict]) -> None:
    """Raise InputError where `raw` is not of exactly the validation pictures, among which every split's are."""
    detected = set(raw.image_ids.tolist())
    for name, coco in splits.items():
        images = {image["id"] for image in coco["images"]}
        missing = len(images - detected)
        surplus = len(detected - images) if name == "all" else 0
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

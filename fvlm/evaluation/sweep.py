"""Fusion weights, VLM temperature and NMS on a grid, from raw detections alone.

The grid is scored on validation boxes, novel ones included: choosing a point by it is tuning on the test set. The
headline is the point declared in params; the sweep is reported beside it.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..data.coco import CocoDict
from ..params import Evaluate
from .protocols import case_of, protocols
from .raw import RawDetections
from .scoring import check_images, generalized_ap50

AXES = ("vlm_temperature", "nms_iou", "alpha", "beta")  # the last varies fastest
COLUMNS = (
    "alpha",
    "beta",
    "vlm_temperature",
    "nms_iou",
    "generalized_base_AP50",
    "generalized_novel_AP50",
    "generalized_all_AP50",
)


def sweep_fusion(
    raw: RawDetections, splits: Mapping[str, CocoDict], evaluate: Evaluate, progress: str = ""
) -> list[dict[str, Any]]:
    """Score every point of `evaluate.sweep` under the generalized protocol.

    Args:
        raw: raw detections of all validation pictures.
        splits: validation splits by name: base, novel, generalized, all.
        evaluate: the grid, and all that is held fixed. The headline's values are points of every axis, whether or not
            the grid names them.
        progress: what a bar is to be called; none without it.

    Returns:
        Rows of `COLUMNS`; AP50 in percent, None for a group without ground truth. The headline's temperature and NMS
        come first, as a whole map of alpha (the outer loop) and beta.
    """
    check_images(raw, splits)
    generalized = protocols()["generalized"]
    points: list[dict[str, Any]] = [
        dict(zip(AXES, point, strict=True)) for point in itertools.product(*grid_of(raw, evaluate))
    ]
    cases = [case_of(generalized, splits, replace(evaluate, **point)) for point in points]
    scores = generalized_ap50(raw, splits, cases, evaluate.processes, progress)
    return [
        {**{axis: point[axis] for axis in COLUMNS[:4]}, **of_groups}
        for point, of_groups in zip(points, scores, strict=True)
    ]


def grid_of(raw: RawDetections, evaluate: Evaluate) -> list[list[float]]:
    """The values of each of `AXES`, each once: the headline's first of temperature and NMS, alpha and beta rising."""
    own_temperature = raw.vlm_temperature if evaluate.vlm_temperature is None else evaluate.vlm_temperature
    sweep = evaluate.sweep
    temperatures = [own_temperature if value is None else value for value in sweep.vlm_temperature]
    overlaps = [evaluate.nms_iou if value is None else value for value in sweep.nms_iou]
    return [
        list(dict.fromkeys([own_temperature, *temperatures])),
        list(dict.fromkeys([evaluate.nms_iou, *overlaps])),
        sorted({*sweep.alpha, evaluate.alpha}),
        sorted({*sweep.beta, evaluate.beta}),
    ]

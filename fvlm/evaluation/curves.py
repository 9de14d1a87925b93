"""Precision against recall at IoU 0.5: of every class, and the mean over base, novel and all."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from .hits import RECALLS, Floats, Matches, precision_at_recalls

CURVE_COLUMNS = ("name", "group", "recall", "precision")
MEAN = "mean"  # the name of a group's rows
DECIMALS = 6


def precision_recall(matches: Matches, novel: Collection[str]) -> Iterator[dict[str, Any]]:
    """Rows of `CURVE_COLUMNS`: 101 for each class that has ground truth, then for the means of novel, base and all.

    A class's mean precision is its AP50, and a group's is the group's, as a share (0 to 1).

    Args:
        matches: of the generalized protocol.
        novel: names of the novel classes; the others are base.
    """
    curves: dict[str, Floats] = {}
    for index, (name, boxes) in enumerate(zip(matches.names, matches.boxes.tolist(), strict=True)):
        if boxes:
            counted = (matches.classes == index) & ~matches.on_crowd
            curves[name] = precision_at_recalls(matches.scores[counted], matches.hit[counted], boxes)
            yield from _rows(name, "novel" if name in novel else "base", curves[name])
    for group, wanted in (
        ("novel", [name for name in curves if name in novel]),
        ("base", [name for name in curves if name not in novel]),
        ("all", list(curves)),
    ):
        if wanted:
            yield from _rows(MEAN, group, np.mean([curves[name] for name in wanted], axis=0))


def _rows(name: str, group: str, curve: Floats) -> Iterator[dict[str, Any]]:
    for recall, precision in zip(RECALLS.tolist(), curve.tolist(), strict=True):
        yield {"name": name, "group": group, "recall": round(recall, 2), "precision": round(precision, DECIMALS)}

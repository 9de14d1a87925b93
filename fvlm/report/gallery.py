"""The page's gallery: the best, the worst and random validation pictures, ground truth beside detections.

A picture is stored once; its boxes are vector graphics on top, which stay sharp and can be told apart by class.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..data.coco import CocoDict
from ..evaluation.hits import NOTHING, Matches, match
from .pictures import PANEL_SIDE, XYXY, Group, label_places

Kind = Literal["best", "worst", "random"]

RULES: dict[Kind, str] = {
    "best": "The highest F1 of the fused detections; of equals those with more novel boxes, then more boxes.",
    "worst": "The lowest F1 of the fused detections; of equals those with more novel boxes, then more boxes.",
    "random": "Drawn from the others with a fixed seed, without a look at scores: the fairest impression.",
}


@dataclass(frozen=True)
class Mark:
    """A box on a panel, in the panel's pixels."""

    name: str
    group: Group
    text: str  # of the label
    right: bool  # a detection that hit; a ground-truth box that was found
    xyxy: XYXY
    label: XYXY  # where the text stands


@dataclass(frozen=True)
class Panel:
    """One view of a picture: its boxes, and the same in words."""

    title: str
    marks: Sequence[Mark]
    words: str


@dataclass(frozen=True)
class Exhibit:
    """A picture with its panels: ground truth, fused, detector only."""

    image_id: int
    kind: Kind
    f1: float  # of the fused detections, 0..1
    picture: Image.Image  # as stored, or scaled down to PANEL_SIDE
    size: tuple[int, int]  # width and height of a panel
    panels: Sequence[Panel]

    @property
    def names(self) -> list[str]:
        """The classes on the picture, by ground truth or by detections."""
        return sorted({mark.name for panel in self.panels for mark in panel.marks})


def f1_by_image(matches: Matches) -> dict[int, float]:
    """2 hits / (detections + boxes) of every picture that has either; detections on crowds do not count."""
    kept = ~matches.on_crowd
    ids = np.unique(np.concatenate([matches.image_ids[kept], matches.truth_image_ids]))

    def count(image_ids: np.ndarray) -> np.ndarray:
        return np.bincount(np.searchsorted(ids, image_ids), minlength=len(ids))

    f1 = 2 * count(matches.image_ids[matches.hit]) / (count(matches.image_ids[kept]) + count(matches.truth_image_ids))
    return dict(zip(ids.tolist(), f1.tolist(), strict=True))


def choose(fused: Matches, novel: Collection[str], of_each: int) -> list[tuple[Kind, int]]:
    """`of_each` pictures of each kind by RULES, fewer where there are not enough; none is shown twice.

    Args:
        fused: matches of the detections that are drawn.
        novel: names of the novel classes.
    """
    f1 = f1_by_image(fused)
    boxes, novel_boxes = dict.fromkeys(f1, 0), dict.fromkeys(f1, 0)
    for image_id, index in zip(fused.truth_image_ids.tolist(), fused.truth_classes.tolist(), strict=True):
        boxes[image_id] += 1
        novel_boxes[image_id] += fused.names[index] in novel
    with_truth = [image_id for image_id in sorted(f1) if boxes[image_id]]
    best = sorted(with_truth, key=lambda i: (-f1[i], -novel_boxes[i], -boxes[i], i))[:of_each]
    left = [image_id for image_id in with_truth if image_id not in best]
    worst = sorted(left, key=lambda i: (f1[i], -novel_boxes[i], -boxes[i], i))[:of_each]
    left = [image_id for image_id in left if image_id not in worst]
    drawn = random.Random(0).sample(left, min(of_each, len(left)))
    chosen: list[tuple[Kind, int]] = [("best", image_id) for image_id in best]
    chosen += [("worst", image_id) for image_id in worst]
    return chosen + [("random", image_id) for image_id in drawn]


def exhibits(
    coco: CocoDict,
    fused: Iterable[Mapping[str, Any]],
    detector_only: Iterable[Mapping[str, Any]],
    novel: Collection[str],
    *,
    of_each: int,
    score_threshold: float,
    read: Callable[[int], np.ndarray],
) -> list[Exhibit]:
    """The gallery: for each kind `of_each` pictures.

    Args:
        coco: the generalized validation split.
        fused, detector_only: COCO results on it.
        novel: names of the novel classes.
        score_threshold: detections below it are neither drawn nor counted.
        read: gives the picture (H, W, 3) uint8 RGB of an image id.
    """
    matched = [
        match([result for result in results if result["score"] >= score_threshold], coco)
        for results in (fused, detector_only)
    ]
    f1 = f1_by_image(matched[0])
    shown = []
    for kind, image_id in choose(matched[0], novel, of_each):
        picture = Image.fromarray(read(image_id))
        scale = PANEL_SIDE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        if scale < 1:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        panels = [_truth_panel(matched[0], image_id, novel, scale, size)]
        for title, matches in zip(("fused", "detector only"), matched, strict=True):
            panels.append(_detections_panel(title, matches, image_id, novel, scale, size))
        shown.append(Exhibit(image_id, kind, f1[image_id], picture, size, panels))
    return shown


def _truth_panel(matches: Matches, image_id: int, novel: Collection[str], scale: float, size: tuple[int, int]) -> Panel:
    rows = np.flatnonzero(matches.truth_image_ids == image_id)
    names = [matches.names[index] for index in matches.truth_classes[rows]]
    marks = _marks(names, names, matches.found[rows].tolist(), matches.truth_boxes_xywh[rows], novel, scale, size)
    return Panel("ground truth", marks, _in_words(marks, "found", "not found"))


def _detections_panel(
    title: str, matches: Matches, image_id: int, novel: Collection[str], scale: float, size: tuple[int, int]
) -> Panel:
    rows = np.flatnonzero((matches.image_ids == image_id) & ~matches.on_crowd)
    names = [matches.names[index] for index in matches.classes[rows]]
    texts = [f"{name} {score:.2f}" for name, score in zip(names, matches.scores[rows], strict=True)]
    right = (matches.truth[rows] != NOTHING).tolist()
    marks = _marks(names, texts, right, matches.boxes_xywh[rows], novel, scale, size)
    return Panel(title, marks, _in_words(marks, "right", "wrong"))


def _marks(
    names: Sequence[str],
    texts: Sequence[str],
    right: Sequence[bool],
    boxes_xywh: np.ndarray,
    novel: Collection[str],
    scale: float,
    size: tuple[int, int],
) -> list[Mark]:
    limits = np.array([*size, *size], dtype=float)
    corners = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1) * scale
    boxes: list[XYXY] = [(x0, y0, x1, y1) for x0, y0, x1, y1 in corners.clip(0, limits).round(1).tolist()]
    labels = label_places(list(zip(texts, boxes, strict=True)), size)
    groups = [_group(name, novel) for name in names]
    return [Mark(*parts) for parts in zip(names, groups, texts, right, boxes, labels, strict=True)]


def _group(name: str, novel: Collection[str]) -> Group:
    return "novel" if name in novel else "base"


def _in_words(marks: Sequence[Mark], yes: str, no: str) -> str:
    told = Counter((mark.name, mark.right) for mark in marks)
    novel = {mark.name for mark in marks if mark.group == "novel"}
    parts = [
        f"{count} {name}{' (novel)' if name in novel else ''} {yes if right else no}"
        for (name, right), count in sorted(told.items(), key=lambda item: (item[0][0] not in novel, item[0]))
    ]
    return ", ".join(parts) or "nothing"

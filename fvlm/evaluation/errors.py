"""What keeps the AP50 down: the errors of detections by kind, and the AP50 that would be reached without each kind.

Source: TIDE (Bolya et al., ECCV 2020), section 3, and where the paper leaves it open its authors' code (tidecv 1.0.1:
errors/main_errors.py, quantify.py), which was last released in 2020 and brings OpenCV and seaborn along, so it is no
dependency. Departures: matching is COCO's, with its limit of 100 detections of an image and class; a
detection on a crowd is no error, where that release counts it as one; a negative gain is written as it is, not as 0.
"""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from .hits import HIT_IOU, NOTHING, Bools, Floats, Ints, Matches, precision_at_recalls

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
ERROR_COLUMNS = ("scores", "group", "error", "count", "AP50", "corrected_AP50", "gain")
BACKGROUND_IOU = 0.1
DECIMALS = 4  # of a percentage


def kinds_of(matches: Matches) -> Ints:
    """(D,) the index into `KINDS` of each detection's error; NOTHING for a hit and for a detection on a crowd.

    The first that fits, with tf = 0.5, tb = 0.1 and IoU with the nearest box of the same or of other classes:

    localisation    of the same class, tb to tf
    classification  of another class, from tf on
    duplicate       of the same class, from tf on: that box has been found by a better detection
    background      of no class above tb
    both            what remains: of another class, tb to tf
    """
    same, other = matches.same_class_iou, matches.other_class_iou
    wrong = ~matches.hit & ~matches.on_crowd
    kinds = np.select(
        [
            ~wrong,
            (same >= BACKGROUND_IOU) & (same < HIT_IOU),
            other >= HIT_IOU,
            same >= HIT_IOU,
            other <= BACKGROUND_IOU,
        ],
        [NOTHING, *(KINDS.index(kind) for kind in ("localisation", "classification", "duplicate", "background"))],
        default=KINDS.index("both"),
    )
    return kinds.astype(np.int64)


def missed(matches: Matches) -> Bools:
    """(G,) boxes that no detection found and that no correction of a class or of a place would find."""
    kinds, nearby = kinds_of(matches), np.zeros(len(matches.truth_classes), dtype=bool)
    nearby[_meant(matches, kinds)[_correctable(kinds)]] = True
    return ~matches.found & ~nearby


def errors(matches: Matches, novel: Collection[str], scores: str) -> Iterator[dict[str, Any]]:
    """Rows of `ERROR_COLUMNS`: every kind for novel, base and all classes that have ground truth.

    `count` is of detections of the group's classes, whatever their score (for `missed`: of boxes of these classes).
    `corrected_AP50` is the group's AP50 if all errors of that kind, in all classes, were put right:

    classification, localisation   the detection becomes a hit of the box that it meant; it is taken away if that box
                                   has been found, or if a better detection with either of the two errors means it
    both, duplicate, background    the detection is taken away
    missed                         the box need not be found; a class of which all boxes were missed stays at 0

    `gain` is `corrected_AP50` - `AP50`. Gains do not add up to 100 - AP50: one correction may need another.

    Args:
        matches: of the generalized protocol.
        novel: names of the novel classes; the others are base.
        scores: says of which detections, in the first column.
    """
    kinds, is_missed, boxes = kinds_of(matches), missed(matches), matches.boxes
    meant = _meant(matches, kinds)
    correctable = _becomes_a_hit(matches, kinds, meant)
    defined = boxes > 0
    is_novel = np.array([name in novel for name in matches.names])
    keep = ~matches.on_crowd
    before = _average_precisions(matches.classes, matches.scores, matches.hit, keep, boxes)
    for number, kind in enumerate(KINDS):
        if kind == "missed":
            fewer = boxes - np.bincount(matches.truth_classes[is_missed], minlength=len(boxes))
            after = _average_precisions(matches.classes, matches.scores, matches.hit, keep, fewer)
            counts = boxes - fewer
        else:
            right = correctable & (kinds == number)
            classes = matches.classes.copy()
            classes[right] = matches.truth_classes[meant[right]]
            kept = keep & ((kinds != number) | right)
            after = _average_precisions(classes, matches.scores, matches.hit | right, kept, boxes)
            counts = np.bincount(matches.classes[kinds == number], minlength=len(boxes))
        for group, among in (("novel", is_novel), ("base", ~is_novel), ("all", is_novel | ~is_novel)):
            if (among & defined).any():
                old, new = (float(100 * ap[among & defined].mean()) for ap in (before, after))
                yield {
                    "scores": scores,
                    "group": group,
                    "error": kind,
                    "count": int(counts[among].sum()),
                    "AP50": round(old, DECIMALS),
                    "corrected_AP50": round(new, DECIMALS),
                    "gain": round(new - old, DECIMALS),
                }


def _correctable(kinds: Ints) -> Bools:
    return np.isin(kinds, [KINDS.index("localisation"), KINDS.index("classification")])


def _meant(matches: Matches, kinds: Ints) -> Ints:
    """(D,) the box that a wrongly placed or wrongly named detection meant; of no meaning for the others."""
    return np.where(kinds == KINDS.index("localisation"), matches.same_class_truth, matches.other_class_truth)


def _becomes_a_hit(matches: Matches, kinds: Ints, meant: Ints) -> Bools:
    """(D,) whether correcting the detection gives a hit: it is the best of those that mean a box which none found."""
    rows = np.flatnonzero(_correctable(kinds))
    rows = rows[~matches.found[meant[rows]]]
    _, first = np.unique(meant[rows], return_index=True)  # detections stand by falling score within their picture
    best = np.zeros(len(kinds), dtype=bool)
    best[rows[first]] = True
    return best


def _average_precisions(classes: Ints, scores: Floats, hits: Bools, kept: Bools, boxes: Ints) -> Floats:
    """(K,) AP of every class from the detections `kept`, 0..1; 0 for a class without boxes."""
    order = np.flatnonzero(kept)
    order = order[np.argsort(classes[order], kind="stable")]
    starts = np.searchsorted(classes[order], np.arange(len(boxes) + 1))
    return np.array(
        [
            precision_at_recalls(scores[rows], hits[rows], int(count)).mean()
            for rows, count in zip(np.split(order, starts[1:-1]), boxes, strict=True)
        ]
    )

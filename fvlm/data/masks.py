"""Masks in COCO's terms: boxes, polygons and run lengths, all of them exact."""

from typing import Any

import contourpy
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]  # (H, W)


def tight_box(mask: Mask) -> tuple[int, int, int, int]:
    """xyxy, in whole pixels, of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def run_lengths(mask: Mask) -> dict[str, Any]:
    """COCO's form for crowds: the lengths of runs, column by column, the first of them outside the mask."""
    column_wise = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(column_wise)) + 1
    runs = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if column_wise[0] else runs}


def polygons(mask: Mask, left: int = 0, top: int = 0) -> list[list[float]]:
    """COCO's form for single objects: rings [x, y, x, y, ...] that pycocotools turns back into exactly this mask.

    Args:
        mask: (H, W), the part of a picture that begins at column `left` and row `top`.

    The rings run half-way between the centres of the pixels inside and outside. COCO's polygons know no holes: where a
    ring has one, the mask is cut in two through it.
    """
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2))
    padded[1:-1, 1:-1] = mask
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    rings = []
    for points, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
        if len(offsets) > 2:
            # In contourpy's coordinates pixel j of the mask is at j + 1, so the left half has the hole's middle column
            cut = int(points[offsets[1] : offsets[2], 0].mean())
            return polygons(mask[:, :cut], left, top) + polygons(mask[:, cut:], left + cut, top)
        ring = points[:-1] + np.array([left - 0.5, top - 0.5])  # the centre of pixel 0 is at 0.5
        step = np.diff(ring, axis=0, append=ring[:1])
        before = np.concatenate([step[-1:], step[:-1]])
        bends = before[:, 0] * step[:, 1] != before[:, 1] * step[:, 0]
        rings.append(ring[bends].ravel().tolist())
    return rings

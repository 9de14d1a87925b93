"""Detections under many protocols at once: softmax, fusion and NMS over raw detections, pictures in blocks.

What the protocols share is computed once for a block: the softmax of each branch serves all fusion weights, and the
fused scores serve all NMS thresholds and limits. A block is about as large as the processor's cache. Blocks do not
depend on each other, so that several processes share them, and the result does not depend on how many.
"""

import multiprocessing
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..detector.scores import class_log_probs, fuse_scores
from ..errors import InputError
from ..params import Evaluate
from .best import Overlaps, best_detections
from .matching import ANY_CLASS, Boxes
from .protocols import Case
from .raw import RawDetections

CocoResult = dict[str, Any]  # {"image_id", "category_id", "bbox": [x, y, w, h], "score"}
BOX_DECIMALS = 2  # of an exported coordinate, pixels; what is exported is what is scored
BLOCK_REGIONS = 4096  # 4096 x 66 float32 are one MiB


def detections_of(
    raw: RawDetections, names: Sequence[str], image_ids: Collection[int], rules: Evaluate
) -> list[CocoResult]:
    """Detections of the classes `names` on the images `image_ids`, as a COCO results list; see `detect_cases`."""
    [found] = detect_cases(raw, [Case(tuple(names), frozenset(image_ids), rules)])
    return coco_results(found)


def detect_cases(raw: RawDetections, cases: Sequence[Case], processes: int = 1, progress: str = "") -> Iterator[Boxes]:
    """Detections of each of `cases`.

    Both branches take the softmax over background and the classes that compete (`evaluate.vocabulary`); classes in
    `raw.supervised` are fused with alpha, the others with beta. The boxes are class-agnostic: one refined box of a
    region serves all of its classes.

    Args:
        raw: of the images of all cases, and perhaps more.
        cases: classes (in any order), images and rules: alpha and beta in [0, 1]; vlm_temperature, None for the VLM's
            own; vocabulary, renormalise, vlm_background as in params; the limits as in `best_detections`.
        processes: that share the work.
        progress: what a bar is to be called; none without it.

    Yields:
        For each case, by image in the order of `raw`, then by falling score. Coordinates are rounded to 0.01 pixel.

    Raises:
        InputError: a class has no column in `raw`, or one of the processes was killed.

    Source: `__call__` and `ensemble_class_outputs` in the authors' task_heads.py. No objectness enters the score.
    """
    different = list(dict.fromkeys(cases))
    images = frozenset().union(*(case.image_ids for case in different))
    wanted = [index for index, image_id in enumerate(raw.image_ids.tolist()) if image_id in images]
    blocks = list(_blocks(raw, wanted))
    parts: list[list[_Found]] = []
    with tqdm(total=len(wanted), desc=progress, unit="image", disable=None if progress else True) as bar:
        for block, found in zip(blocks, _on_processes(raw, different, blocks, processes), strict=True):
            parts.append(found)
            bar.update(len(block))
    for case in cases:
        number = different.index(case)
        yield _boxes(raw, case, [found[number] for found in parts])


def proposals_of(raw: RawDetections, top_n: int, image_ids: Collection[int]) -> Boxes:
    """The `top_n` proposals of each of the images by objectness, as boxes of the one class `ANY_CLASS`."""
    rows, owners = [], []
    for index, image_id in enumerate(raw.image_ids.tolist()):
        if image_id in image_ids:
            of_image = raw.rows(index)
            best = raw.proposal_scores[of_image].argsort(descending=True, stable=True)[:top_n]
            rows.append(best + of_image.start)
            owners += [image_id] * len(best)
    chosen = torch.cat([torch.zeros(0, dtype=torch.int64), *rows])
    return Boxes(
        image_ids=np.array(owners, dtype=np.int64),
        category_ids=np.full(len(chosen), ANY_CLASS),
        boxes_xywh=_rounded_xywh(raw.proposals[chosen]),
        scores=raw.proposal_scores[chosen].double().numpy(),
    )


def coco_results(found: Boxes) -> list[CocoResult]:
    """As a COCO results list: what is written here is, to the last bit, what is scored."""
    columns = zip(
        found.image_ids.tolist(),
        found.category_ids.tolist(),
        found.boxes_xywh.tolist(),
        found.scores.tolist(),
        strict=True,
    )
    return [{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in columns]


class _Found(NamedTuple):
    """The detections of one case in one block, without their boxes: they are the regions'."""

    images: NDArray[np.int32]  # (D,) index in raw
    regions: NDArray[np.int32]  # (D,) row in raw
    classes: NDArray[np.int16]  # (D,) index in the case's names
    scores: NDArray[np.float32]  # (D,)


def _blocks(raw: RawDetections, images: Sequence[int]) -> Iterator[list[int]]:
    """`images` in runs that are neighbours in `raw` and have about `BLOCK_REGIONS` regions."""
    offsets = raw.offsets.tolist()
    block: list[int] = []
    for image in images:
        if block and (image != block[-1] + 1 or offsets[image + 1] - offsets[block[0]] > BLOCK_REGIONS):
            yield block
            block = []
        block.append(image)
    if block:
        yield block


def _on_processes(
    raw: RawDetections, cases: Sequence[Case], blocks: Sequence[Sequence[int]], processes: int
) -> Iterator[list[_Found]]:
    """`_detect_block` of all blocks, in order."""
    processes = min(processes, len(blocks))
    if processes < 2:
        yield from map(_detect_block, repeat(raw), repeat(cases), blocks)
        return
    # a forked process shares the memory of `raw`; elsewhere (macOS, Windows) it is sent to each, once
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(processes, context, _take_work, (raw, cases)) as pool:
        try:
            yield from pool.map(_detect_own_block, blocks, chunksize=4)
        except BrokenProcessPool:
            raise InputError(
                "params.yaml: evaluate.processes: one of the processes was ended, perhaps for want of memory; lower it"
            ) from None


_work: tuple[RawDetections, Sequence[Case]]  # of a process of the pool


def _take_work(raw: RawDetections, cases: Sequence[Case]) -> None:
    global _work
    torch.set_num_threads(1)
    _work = raw, cases


def _detect_own_block(block: Sequence[int]) -> list[_Found]:
    return _detect_block(*_work, block)


@dataclass(frozen=True)
class _Fusion:
    """What decides the fused scores: cases that have it in common share them."""

    names: tuple[str, ...]
    vocabulary: str
    vlm_temperature: float
    vlm_background: bool
    alpha: float
    beta: float
    renormalise: bool


def _fusion(raw: RawDetections, case: Case) -> _Fusion:
    rules = case.rules
    competing = case.names if rules.vocabulary != "all" else raw.names[1:]
    return _Fusion(
        case.names,
        rules.vocabulary,
        raw.vlm_temperature if rules.vlm_temperature is None else rules.vlm_temperature,
        rules.vlm_background,
        rules.alpha,
        # where every class was supervised (ovod), beta weighs nothing: its values share their scores
        rules.beta if set(competing) - set(raw.supervised) else 0.0,
        rules.renormalise,
    )


def _detect_block(raw: RawDetections, cases: Sequence[Case], block: Sequence[int]) -> list[_Found]:
    """The detections of every case on the images `block`, which are neighbours in `raw`."""
    rows = slice(raw.rows(block[0]).start, raw.rows(block[-1]).stop)
    image_ids = raw.image_ids.tolist()
    of_fusion: dict[_Fusion, list[int]] = {}
    for number, case in enumerate(cases):
        of_fusion.setdefault(_fusion(raw, case), []).append(number)
    branches: dict[Any, Tensor] = {}
    overlaps: dict[tuple[int, float], Overlaps] = {}
    found: dict[int, _Found] = {}
    for fusion, numbers in of_fusion.items():
        probs = _fused(raw, rows, fusion, branches)
        scored = len(fusion.names)
        done: dict[Any, tuple[Tensor, Tensor, Tensor]] = {}
        for number in numbers:
            case, rules = cases[number], cases[number].rules
            limits = (rules.nms_iou, rules.score_threshold, rules.max_detections)
            parts = []
            for image in block:
                if image_ids[image] not in case.image_ids:
                    continue
                key = (image, *limits)
                own = raw.rows(image)
                if key not in done:
                    done[key] = best_detections(
                        raw.boxes[own],
                        probs[own.start - rows.start : own.stop - rows.start],
                        nms_iou=rules.nms_iou,
                        score_threshold=rules.score_threshold,
                        max_detections=rules.max_detections,
                        overlaps=overlaps.setdefault((image, rules.nms_iou), Overlaps(raw.boxes[own], rules.nms_iou)),
                    )
                regions, classes, scores = done[key]
                counted = classes < scored  # other classes competed for their places, and are not wanted
                if not counted.all():
                    regions, classes, scores = regions[counted], classes[counted], scores[counted]
                parts.append((torch.full_like(regions, image), regions + own.start, classes, scores))
            found[number] = _join(parts)
    return [found[number] for number in range(len(cases))]


def _fused(raw: RawDetections, rows: slice, fusion: _Fusion, branches: dict[Any, Tensor]) -> Tensor:
    """(R, K) fused scores of the competing classes, those of `fusion.names` first; `branches` keeps what is reused."""
    others = tuple(name for name in raw.names[1:] if name not in fusion.names)
    names = fusion.names if fusion.vocabulary == "scored" else fusion.names + others
    masked = len(others) if fusion.vocabulary == "masked" else 0

    def log_probs(field: str, temperature: float, background: bool) -> Tensor:
        key = (field, names, masked, temperature, background)
        if key not in branches:
            columns = torch.tensor(raw.columns(names))
            similarity = getattr(raw, field)[rows].index_select(1, columns).float()
            if masked:
                similarity[:, -masked:] = -torch.inf
            branches[key] = class_log_probs(similarity, temperature, background=background)
        return branches[key]

    fused = fuse_scores(
        log_probs("detector_similarity", raw.detector_temperature, True),
        log_probs("vlm_similarity", fusion.vlm_temperature, fusion.vlm_background),
        torch.tensor([name in raw.supervised for name in names], dtype=torch.bool),
        alpha=fusion.alpha,
        beta=fusion.beta,
        renormalise=fusion.renormalise,
    )
    return fused[:, 1 : len(names) - masked + 1].contiguous()


def _join(parts: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> _Found:
    columns: Iterable[Sequence[Tensor]] = zip(*parts, strict=True) if parts else [[torch.zeros(0)]] * 4
    images, regions, classes, scores = (torch.cat(list(column)).numpy() for column in columns)
    return _Found(
        images.astype(np.int32), regions.astype(np.int32), classes.astype(np.int16), scores.astype(np.float32)
    )


def _boxes(raw: RawDetections, case: Case, parts: Sequence[_Found]) -> Boxes:
    empty = _join([])
    images, regions, classes, scores = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    category_of = np.array([raw.category_ids[column - 1] for column in raw.columns(case.names)[1:]], dtype=np.int64)
    return Boxes(
        image_ids=raw.image_ids.numpy()[images],
        category_ids=category_of[classes],
        boxes_xywh=_rounded_xywh(raw.boxes[torch.from_numpy(regions.astype(np.int64))]),
        scores=scores.astype(np.float64),
    )


def _rounded_xywh(boxes_xyxy: Tensor) -> NDArray[np.float64]:
    corners = boxes_xyxy.double()
    return torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).round(decimals=BOX_DECIMALS).numpy()

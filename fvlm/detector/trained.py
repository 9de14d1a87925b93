"""A trained detector: from its file, and what it sees in pictures as raw detections keep it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.transforms import scale_xyxy
from ..errors import InputError
from ..params import Model
from ..tensors import load_tensors, sha256_of_tensors
from ..vlm.clip import VlmCard, build_clip, differences
from .detector import FVLM, Regions, build_detector

FIELDS = ("proposals", "proposal_scores", "boxes", "detector_similarity", "vlm_similarity")


def load_trained(path: Path, remedy: str) -> tuple[FVLM, VlmCard, dict[str, Any], str]:
    """The trained detector of a model file, in eval mode; its VLM's card, the file's metadata and its tensors' hash.

    Raises:
        InputError: the file is missing, damaged, not a detector, or of another architecture than it says.
    """
    tensors, metadata = load_tensors(path, "detector", remedy)
    if not {"model", "vlm_card", "supervised", "setting"} <= metadata.keys():
        raise InputError(
            f"{path}: expected a detector written by fvlm, found a safetensors file without its metadata; {remedy}"
        )
    card = VlmCard.from_dict(metadata["vlm_card"], f"{path}: vlm_card")
    try:
        model = Model(**metadata["model"])
    except TypeError as error:
        raise InputError(f"{path}: model params of another version of fvlm ({error}); {remedy}") from None
    with torch.random.fork_rng(devices=[]):  # the random start is overwritten at once
        detector = build_detector(model, card, build_clip(card.model_config).visual)
    expected = {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise InputError(f"{path}: a model of another architecture: {differences(expected, found)}; {remedy}")
    detector.load_state_dict(tensors)
    return detector.eval(), card, metadata, sha256_of_tensors(tensors)


def detect_batch(
    detector: FVLM,
    images: Tensor,
    sizes_hw: Sequence[tuple[int, int]],
    stored_hw: Sequence[tuple[int, int]],
    text: Tensor,
) -> list[Regions]:
    """`FVLM.detect` as `RawDetections` keeps it: on the CPU, boxes in pixels of the stored pictures, similarities in
    float16.

    Args:
        images: (N, 3, S, S) canvases of `render`.
        sizes_hw: of the pictures on their canvases, pixels.
        stored_hw: of the pictures themselves.
        text: (1 + K, D), row 0 background, on the device of `images`.
    """
    found = detector.detect(images, sizes_hw, text)
    scales = map(scale_xyxy, stored_hw, sizes_hw)
    return [_stored(regions, scale) for regions, scale in zip(found, scales, strict=True)]


def _stored(regions: Regions, scale: Tensor) -> Regions:
    return Regions(
        proposals=regions.proposals.cpu() / scale,
        proposal_scores=regions.proposal_scores.cpu(),
        boxes=regions.boxes.cpu() / scale,
        detector_similarity=regions.detector_similarity.half().cpu(),
        vlm_similarity=regions.vlm_similarity.half().cpu(),
    )


def joined(regions: Sequence[Regions]) -> dict[str, Tensor]:
    """Those of I >= 1 pictures as the tensors of `RawDetections`: offsets (I + 1,) and (R, ...) of each field."""
    counts = torch.tensor([0, *(len(r.proposals) for r in regions)])
    return {
        "offsets": counts.cumsum(0),
        **{field: torch.cat([getattr(r, field) for r in regions]) for field in FIELDS},
    }

"""Raw detections: what one inference leaves behind for every protocol, before softmax, fusion and NMS."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..tensors import load_tensors, save_tensors

REMEDY = "run detect again"
BLOCK_ROWS = 8192  # that are looked through at once: of COCO's five million rows the flags alone would take 0.4 GiB
TENSOR_DTYPES = {
    "image_ids": torch.int64,
    "image_sizes_hw": torch.int64,
    "offsets": torch.int64,
    "proposals": torch.float32,
    "proposal_scores": torch.float32,
    "boxes": torch.float32,
    "detector_similarity": torch.float16,
    "vlm_similarity": torch.float16,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class RawDetections:
    """Proposals, boxes and both branches' similarities to all texts, of I images with R proposals in all.

    Image i owns the rows offsets[i]:offsets[i + 1] of every (R, ...) tensor. Boxes are xyxy in pixels of the original
    picture. Similarities are cosines; column 0 is background, column c is the class names[c], for all K classes of the
    text embeddings: a protocol takes the columns of its own classes.

    Args:
        image_ids: (I,) int64, COCO's, each once.
        image_sizes_hw: (I, 2) int64, pixels.
        offsets: (I + 1,) int64, from 0 to R, never falling.
        proposals: (R, 4) float32, the RPN's boxes, on which both branches scored.
        proposal_scores: (R,) float32, objectness probabilities, falling within each image.
        boxes: (R, 4) float32, the proposals refined by the box head and clipped; shared by all classes.
        detector_similarity: (R, 1 + K) float16.
        vlm_similarity: (R, 1 + K) float16.
        names: 1 + K, of the columns; names[0] stands for background.
        category_ids: K, COCO's, of the columns from 1 on.
        detector_temperature: detector_similarity / this = logits.
        vlm_temperature: vlm_similarity / this = logits; 1 / the VLM's logit scale.
        supervised: names of the classes that had boxes in training.
        setting: the training setting.
        model_sha256: of the detector's weights.

    Raises:
        ValueError: the parts do not fit together; one line a finding.
    """

    image_ids: Tensor
    image_sizes_hw: Tensor
    offsets: Tensor
    proposals: Tensor
    proposal_scores: Tensor
    boxes: Tensor
    detector_similarity: Tensor
    vlm_similarity: Tensor
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    detector_temperature: float
    vlm_temperature: float
    supervised: tuple[str, ...]
    setting: str
    model_sha256: str

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ValueError("\n".join(problems))

    def _problems(self) -> list[str]:
        images, regions, columns = len(self.image_ids), len(self.proposals), len(self.names)
        shapes = {
            "image_ids": (images,),
            "image_sizes_hw": (images, 2),
            "offsets": (images + 1,),
            "proposals": (regions, 4),
            "proposal_scores": (regions,),
            "boxes": (regions, 4),
            "detector_similarity": (regions, columns),
            "vlm_similarity": (regions, columns),
        }
        problems = []
        for name, shape in shapes.items():
            tensor: Tensor = getattr(self, name)
            if tensor.shape != shape or tensor.dtype != TENSOR_DTYPES[name]:
                wanted, got = f"{shape} {TENSOR_DTYPES[name]}", f"{tuple(tensor.shape)} {tensor.dtype}"
                problems.append(f"{name}: expected {wanted} for {images} images and {columns} names, got {got}")
            elif tensor.is_floating_point() and not all(
                torch.isfinite(part).all() for part in tensor.split(BLOCK_ROWS)
            ):
                problems.append(f"{name}: expected finite numbers, got NaN or infinity")
        if problems:
            return problems  # the checks below index by these shapes
        if self.offsets[0] != 0 or self.offsets[-1] != regions or (self.offsets.diff() < 0).any():
            problems.append(
                f"offsets: expected a rise from 0 to {regions} regions, got {_brief(self.offsets.tolist())}"
            )
        if len(self.image_ids.unique()) != images:
            problems.append("image_ids: expected each image once")
        if len(self.category_ids) != columns - 1:
            problems.append(
                f"category_ids: expected {columns - 1}, one for each name but background, got {len(self.category_ids)}"
            )
        if len(set(self.names[1:])) != columns - 1:
            problems.append("names: expected each class name once")
        if unknown := sorted(set(self.supervised) - set(self.names[1:])):
            problems.append(f"supervised: not among the names: {', '.join(unknown)}")
        for name in ("detector_temperature", "vlm_temperature"):
            if not getattr(self, name) > 0:
                problems.append(f"{name}: expected a number > 0, got {getattr(self, name)}")
        return problems

    def rows(self, image_index: int) -> slice:
        """The rows of image `image_index` (0..I-1) in every (R, ...) tensor."""
        return slice(int(self.offsets[image_index]), int(self.offsets[image_index + 1]))

    def columns(self, names: Sequence[str]) -> list[int]:
        """The columns of background and the classes `names`, in that order.

        Raises:
            InputError: a name has no column.
        """
        column_of = {name: column for column, name in enumerate(self.names) if column > 0}
        if missing := [name for name in names if name not in column_of]:
            raise InputError(
                f"raw detections of {self.setting}: no similarities to {', '.join(missing)}; run text and detect again"
            )
        return [0, *(column_of[name] for name in names)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file."""
        content = {name: getattr(self, name) for name in TENSOR_DTYPES}
        metadata = {name: value for name, value in vars(self).items() if name not in TENSOR_DTYPES}
        save_tensors(path, content, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "RawDetections":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, unreadable, or its parts do not fit together; one line a finding.
        """
        tensors, metadata = load_tensors(path, "raw detections", REMEDY)
        missing = [name for name in cls.__dataclass_fields__ if name not in tensors and name not in metadata]
        if missing:
            raise InputError(f"{path}: raw detections without {', '.join(missing)}; {REMEDY}")
        try:
            return cls(
                **{name: tensors[name] for name in TENSOR_DTYPES},
                names=tuple(metadata["names"]),
                category_ids=tuple(metadata["category_ids"]),
                detector_temperature=metadata["detector_temperature"],
                vlm_temperature=metadata["vlm_temperature"],
                supervised=tuple(metadata["supervised"]),
                setting=metadata["setting"],
                model_sha256=metadata["model_sha256"],
            )
        except ValueError as error:
            findings = str(error).splitlines()
            raise InputError(
                "\n".join(f"{path}: raw detections: {finding}; {REMEDY}" for finding in findings)
            ) from None


def _brief(values: list[Any]) -> str:
    return str(values) if len(values) <= 6 else f"[{', '.join(map(str, values[:3]))}, ..., {values[-1]}]"

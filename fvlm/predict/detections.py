"""What was found in a picture, and how it is decided from the raw similarities."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..evaluation.detections import BOX_DECIMALS, CocoResult, detections_of
from ..evaluation.raw import RawDetections
from ..params import Evaluate


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """D boxes of one picture, the best score first.

    Args:
        boxes: (D, 4) float32 xyxy, pixels of the picture, within it.
        scores: (D,) float32 in [0, 1].
        classes: (D,) int64, places in `vocabulary`, from 0.
        vocabulary: the names that competed.
        size_hw: height and width of the picture, pixels.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    vocabulary: tuple[str, ...]
    size_hw: tuple[int, int]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Of each box."""
        return [self.vocabulary[place] for place in self.classes.tolist()]

    def above(self, threshold: float) -> "Detections":
        """Those with at least this score."""
        kept = self.scores >= threshold
        return Detections(
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            classes=self.classes[kept],
            vocabulary=self.vocabulary,
            size_hw=self.size_hw,
        )

    def to_coco(self, image_id: int, category_ids: Mapping[str, int] | None = None) -> list[CocoResult]:
        """As entries of a COCO results list: bbox is [x, y, width, height], rounded as the pipeline rounds it.

        Args:
            category_ids: of the names; None for their places in the vocabulary, from 1.

        Raises:
            InputError: a name that was found has no id.
        """
        ids = category_ids or {name: place for place, name in enumerate(self.vocabulary, start=1)}
        if missing := sorted(set(self.names) - ids.keys()):
            raise InputError(f"category_ids: expected one for each name, got none for {', '.join(missing)}")
        corners = self.boxes.double()
        xywh = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).round(decimals=BOX_DECIMALS)
        rows = zip(self.names, xywh.tolist(), self.scores.tolist(), strict=True)
        return [{"image_id": image_id, "category_id": ids[n], "bbox": box, "score": score} for n, box, score in rows]

    def to_supervision(self) -> Any:
        """As `supervision.Detections`, with the names under data["class_name"].

        Raises:
            InputError: the package supervision, which fvlm does not depend on, is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise InputError(
                "to_supervision: the package supervision is not installed; pip install supervision"
            ) from None
        import numpy as np

        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.classes.numpy(),
            data={"class_name": np.array(self.names, dtype=object if not self.names else None)},
        )


def decide(raw: RawDetections, evaluate: Evaluate, names: Sequence[str] | None = None) -> list[Detections]:
    """Softmax, fusion and NMS over raw similarities: milliseconds, and no inference.

    The same `raw` may be decided again and again, with other weights, thresholds, or fewer names.

    Args:
        raw: of any number of pictures.
        evaluate: alpha, beta and the rest; alpha = beta = 0 is the detector alone, 1 the VLM alone.
        names: which of `raw`'s compete; None for all.

    Returns:
        One for each picture, in the order of `raw`; as `detections_of` gives them, coordinates in steps of 0.01 pixel.
    """
    vocabulary = tuple(raw.names[1:] if names is None else names)
    place_of_name = {name: place for place, name in enumerate(vocabulary)}
    place_of = {
        category_id: place_of_name[name]
        for category_id, name in zip(raw.category_ids, raw.names[1:], strict=True)
        if name in place_of_name
    }
    image_ids = raw.image_ids.tolist()
    of_image: dict[int, list[CocoResult]] = {image_id: [] for image_id in image_ids}
    rules = dataclasses.replace(evaluate, vocabulary="scored")  # names that were not asked for do not compete
    for result in detections_of(raw, vocabulary, image_ids, rules):
        of_image[result["image_id"]].append(result)
    return [
        _as_detections(of_image[image_id], place_of, vocabulary, (height, width))
        for image_id, (height, width) in zip(image_ids, raw.image_sizes_hw.tolist(), strict=True)
    ]


def _as_detections(
    results: Sequence[CocoResult], place_of: Mapping[int, int], vocabulary: tuple[str, ...], size_hw: tuple[int, int]
) -> Detections:
    xywh = torch.tensor([result["bbox"] for result in results], dtype=torch.float64).reshape(-1, 4)
    return Detections(
        boxes=torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1).float(),
        scores=torch.tensor([result["score"] for result in results], dtype=torch.float32),
        classes=torch.tensor([place_of[result["category_id"]] for result in results], dtype=torch.int64),
        vocabulary=vocabulary,
        size_hw=size_hw,
    )

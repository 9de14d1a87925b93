"""What lies below a detector's scores: the VLM alone on ground-truth boxes, and the proposals alone."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from ..data.coco import CocoDict
from ..data.loading import ValidationBatch
from ..data.transforms import scale_xyxy
from ..detector.detector import FVLM, cosine
from ..vlm.clip import C5_STRIDE
from .ap import IOU_THRESHOLDS
from .raw import RawDetections

SHIFT = 0.1  # of a box's width and height
# what is done to the boxes before they are cropped: (K, 4) xyxy pixels of the network input -> (K, 4)
VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as_it_is": lambda boxes: boxes,
    "left": lambda boxes: boxes - SHIFT * _sides(boxes) * boxes.new_tensor([1, 0, 1, 0]),
    "right": lambda boxes: boxes + SHIFT * _sides(boxes) * boxes.new_tensor([1, 0, 1, 0]),
    "up": lambda boxes: boxes - SHIFT * _sides(boxes) * boxes.new_tensor([0, 1, 0, 1]),
    "down": lambda boxes: boxes + SHIFT * _sides(boxes) * boxes.new_tensor([0, 1, 0, 1]),
    "half_a_cell_up_left": lambda boxes: boxes - C5_STRIDE / 2,
    "half_a_cell_down_right": lambda boxes: boxes + C5_STRIDE / 2,
}
TENTHS = ("left", "right", "up", "down")  # the variants that move a box by `SHIFT`


@dataclass(frozen=True, kw_only=True)
class BoxClasses:
    """What the VLM called G ground-truth boxes, among K class names and without background.

    truths: (G,) class indices 0..K-1. guesses: for each of `VARIANTS` (G,), likewise.
    """

    truths: Tensor
    guesses: Mapping[str, Tensor]

    def top1(self, variant: str, among: Collection[int]) -> float | None:
        """Share of the boxes of the classes `among` that are named rightly, in percent; None without a box."""
        rows = self._rows(among)
        return 100 * self._hits(variant)[rows].mean().item() if len(rows) else None

    def class_mean(self, variant: str, among: Collection[int]) -> float | None:
        """The same for each class, then the mean over those of `among` that have a box: 100 / K by guessing.

        Where one class has most boxes (COCO's person: two of five base boxes), naming everything so gives a high
        `top1`; here it still gives no more than chance.
        """
        hits = self._hits(variant)
        of_class = [hits[self.truths == c].mean().item() for c in among if (self.truths == c).any()]
        return 100 * float(np.mean(of_class)) if of_class else None

    def largest_share(self, among: Collection[int]) -> float | None:
        """`top1` of naming every box after the most frequent class of `among`, in percent."""
        rows = self._rows(among)
        return 100 * self.truths[rows].bincount().max().item() / len(rows) if len(rows) else None

    def count(self, among: Collection[int]) -> int:
        return len(self._rows(among))

    def _hits(self, variant: str) -> Tensor:
        return (self.guesses[variant] == self.truths).float()

    def _rows(self, among: Collection[int]) -> Tensor:
        return torch.isin(self.truths, torch.tensor(sorted(among))).nonzero()[:, 0]


@torch.no_grad()
def classify_boxes(
    detector: FVLM, batches: Iterable[ValidationBatch], coco: CocoDict, text: Tensor, names: Sequence[str]
) -> BoxClasses:
    """Name ground-truth boxes by the VLM alone: RoIAlign, attention pool, nearest text.

    Args:
        detector: of whose parts only the tower and the crop convention are used; its head may be untrained.
        batches: pictures on the detector's device.
        coco: the boxes of these pictures; crowds and boxes without width or height are left out.
        text: (K, D) embeddings of `names`, on the detector's device.
        names: K names that compete.
    """
    class_of = {c["id"]: names.index(c["name"]) for c in coco["categories"] if c["name"] in names}
    of_image = _objects_by_image(coco, class_of)
    truths: list[int] = []
    guesses: dict[str, list[Tensor]] = {variant: [] for variant in VARIANTS}
    for batch in batches:
        crops, counts = [], []
        for image_id, stored_hw, size_hw in zip(batch.image_ids, batch.stored_hw, batch.sizes_hw, strict=True):
            annotations = [a for a in of_image.get(image_id, []) if min(a["bbox"][2:]) > 0]
            boxes = _boxes_xyxy(annotations) * scale_xyxy(stored_hw, size_hw)
            crops.append(torch.cat([variant(boxes) for variant in VARIANTS.values()]).to(text.device))
            counts.append(len(boxes))
            truths += [class_of[a["category_id"]] for a in annotations]
        c5 = detector.tower(batch.images)["C5"]
        named = cosine(detector.embed_by_vlm(c5, crops), text).argmax(dim=1).cpu()
        for of_picture, count in zip(named.split([len(c) for c in crops]), counts, strict=True):
            for variant, part in zip(VARIANTS, of_picture.split([count] * len(VARIANTS)), strict=True):
                guesses[variant].append(part)
    none = torch.zeros(0, dtype=torch.int64)
    return BoxClasses(
        truths=torch.tensor(truths, dtype=torch.int64),
        guesses={variant: torch.cat([none, *parts]) for variant, parts in guesses.items()},
    )


def _objects_by_image(coco: CocoDict, category_ids: Collection[int]) -> dict[int, list[dict[str, Any]]]:
    """Annotations of these categories by image id, crowds left out."""
    of_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in coco["annotations"]:
        if annotation["category_id"] in category_ids and not annotation["iscrowd"]:
            of_image.setdefault(annotation["image_id"], []).append(annotation)
    return of_image


def _boxes_xyxy(annotations: Sequence[Mapping[str, Any]]) -> Tensor:
    """(K, 4) boxes of K annotations, in pixels of the stored picture; K may be 0."""
    xywh = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
    return box_convert(xywh, "xywh", "xyxy")


def _sides(boxes: Tensor) -> Tensor:
    """(K, 4) xyxy -> (K, 4) width, height, width, height."""
    return (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)


def best_overlaps(raw: RawDetections, coco: CocoDict, names: Collection[str], *, swapped: bool = False) -> Tensor:
    """(G,) IoU of each ground-truth box of the classes `names` with the nearest proposal of its picture, crowds apart.

    With `swapped`, the proposals are those of the next picture, stretched to this one's size: boxes of the right sizes
    and places in general that have not seen the picture. What they cover by luck is the chance level of a recall.
    """
    wanted = {c["id"] for c in coco["categories"] if c["name"] in set(names)}
    of_image = _objects_by_image(coco, wanted)
    overlaps = []
    images = len(raw.image_ids)
    for index, image_id in enumerate(raw.image_ids.tolist()):
        if image_id not in of_image:
            continue
        source = (index + 1) % images if swapped else index
        stretch = (raw.image_sizes_hw[index] / raw.image_sizes_hw[source]).flip(0).repeat(2)
        boxes = _boxes_xyxy(of_image[image_id])
        iou = box_iou(boxes, raw.proposals[raw.rows(source)] * stretch)
        overlaps.append(iou.max(dim=1).values if iou.shape[1] else torch.zeros(len(boxes)))
    return torch.cat([torch.zeros(0), *overlaps])


def average_recall(overlaps: Tensor) -> float | None:
    """Share of boxes with an overlap of at least IoU .50, .55, .. .95, averaged, in percent; None without a box.

    Unlike COCO's AR a proposal may serve two boxes; among hundreds of proposals that hardly ever happens.
    """
    if not len(overlaps):
        return None
    return 100 * float(np.mean([(overlaps >= threshold).float().mean().item() for threshold in IOU_THRESHOLDS]))

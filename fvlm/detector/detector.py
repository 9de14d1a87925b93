"""F-VLM in one class: a frozen CLIP tower, a detector head on it, and CLIP's own attention pool over the proposals.

    images -> tower -> C2..C5 -> FPN -> P2..P6 -> RPN -> proposals -> box head -> boxes, region embeddings
                          C5 ------------------------------> attention pool -> VLM embeddings

Both embeddings are compared with the same text embeddings. Training reads the first only; `scores.py` fuses the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from ..params import Compute, Model, Train
from ..vlm.clip import C5_STRIDE, ImageTower, VlmCard
from ..vlm.pooling import pool_regions
from .box_head import REGION_CODER, BoxHead, pool_pyramid
from .fpn import STRIDES, FeaturePyramid
from .losses import (
    LossSums,
    Normalisers,
    box_sum,
    box_term,
    class_sum,
    rpn_box_elements,
    rpn_box_sums,
    rpn_score_sum,
)
from .rpn import RpnHead, anchors_on, propose
from .targets import AnchorTargets, assign_anchors, sample_regions


@dataclass(frozen=True)
class Regions:
    """What the detector sees in one picture, R regions, before any choice of vocabulary or fusion.

    proposals: (R, 4) xyxy pixels of the network input; proposal_scores: (R,) objectness, descending.
    boxes: (R, 4) the refined proposals, clipped; detector_similarity, vlm_similarity: (R, 1 + K) cosines in [-1, 1].
    """

    proposals: Tensor
    proposal_scores: Tensor
    boxes: Tensor
    detector_similarity: Tensor
    vlm_similarity: Tensor


class FVLM(nn.Module):
    """The detector. `losses` trains it, `detect` runs it.

    Args:
        tower: the frozen image tower.
        embed_dim: D, size of the text embeddings.
        grid: side of the attention pool's positional grid, and so of the VLM crop: 7 for RN50.
        model: sizes and constants.

    Source: F-VLM sections 3.1-3.3 and the authors' `modeling/task_heads.py`.
    """

    def __init__(self, tower: ImageTower, embed_dim: int, grid: int, model: Model) -> None:
        super().__init__()
        self.tower = tower
        self.grid = grid
        self.model = model
        norm = {"norm_momentum": model.norm_momentum, "norm_eps": model.norm_eps}
        self.fpn = FeaturePyramid(tower.channels, model.fpn_channels, **norm)
        self.rpn = RpnHead(model.fpn_channels, **norm)
        self.box_head = BoxHead(model.fpn_channels, model.head_channels, model.head_fc_dim, embed_dim, **norm)
        self.temperature_scale = nn.Parameter(torch.ones(()))

    @property
    def temperature(self) -> Tensor:
        """Cosine / temperature = the detector's logits. A scalar; learned as a factor on `model.temperature`."""
        return self.model.temperature * self.temperature_scale

    def losses(
        self,
        images: Tensor,
        targets: Sequence[tuple[Tensor, Tensor]],
        text: Tensor,
        train: Train,
        generators: Sequence[torch.Generator] | None = None,
    ) -> dict[str, Tensor]:
        """The four terms whose sum is minimised: rpn_score, rpn_box, class, box; float32 scalars.

        This is a whole batch in one piece. For a part of one, see `anchor_targets` and `loss_sums`.

        Args:
            images: (N, 3, S, S) CLIP-normalised, padded with zeros.
            targets: for each image boxes (G, 4) xyxy pixels and labels (G,) in 1..K; G may be 0.
            text: (1 + K, D) embeddings of background and the K supervised classes.
            train: sample sizes and the background weight.
            generators: what the anchors and regions of each image are sampled from; None for torch's global one.
        """
        canvas_hw = (images.shape[-2], images.shape[-1])
        anchor_targets = self.anchor_targets([boxes for boxes, _ in targets], canvas_hw, train, generators)
        elements = self.rpn_box_elements(anchor_targets, canvas_hw)
        sums = self.loss_sums(images, targets, anchor_targets, text, train, generators)
        terms = normalisers(len(images), elements, train).early_terms(sums)
        return terms | {"box": box_term(sums.box, sums.foreground)}

    @torch.no_grad()
    def anchor_targets(
        self,
        boxes: Sequence[Tensor],
        canvas_hw: tuple[int, int],
        train: Train,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[AnchorTargets]:
        """What the RPN shall say of images with these ground-truth boxes (G, 4). The network has no part in it."""
        anchors = torch.cat(self._anchors(canvas_hw))
        return [
            assign_anchors(
                anchors,
                of_image,
                sample_size=train.rpn_anchors_per_image,
                positive_fraction=train.rpn_positive_fraction,
                generator=generator,
            )
            for of_image, generator in zip(boxes, _each(generators, len(boxes)), strict=True)
        ]

    @torch.no_grad()
    def rpn_box_elements(self, targets: Sequence[AnchorTargets], canvas_hw: tuple[int, int]) -> Tensor:
        """(5,) int64: how many elements of these targets the RPN's box loss counts, on each level."""
        counts = [len(anchors) for anchors in self._anchors(canvas_hw)]
        return torch.stack(
            [rpn_box_elements(list(t.deltas.split(counts)), list(t.positive.split(counts))) for t in targets]
        ).sum(0)

    def loss_sums(
        self,
        images: Tensor,
        targets: Sequence[tuple[Tensor, Tensor]],
        anchor_targets: Sequence[AnchorTargets],
        text: Tensor,
        train: Train,
        generators: Sequence[torch.Generator] | None = None,
    ) -> LossSums:
        """The sums of the four losses over `images`, which may be a part of the batch; arguments as in `losses`.

        Under autocast the network runs in its precision; matching, losses and cosines are float32 all the same.
        """
        pyramid = self.fpn(self._tower_features(images))
        logits, deltas = self.rpn(pyramid)
        canvas_hw = (images.shape[-2], images.shape[-1])
        anchors = self._anchors(canvas_hw)
        proposals = self._propose(logits, deltas, anchors, [canvas_hw] * len(images))
        with torch.no_grad():
            regions = [
                sample_regions(
                    boxes,
                    *gt,
                    sample_size=train.rois_per_image,
                    positive_fraction=train.roi_positive_fraction,
                    generator=generator,
                )
                for (boxes, _), gt, generator in zip(proposals, targets, _each(generators, len(images)), strict=True)
            ]
        labels = torch.cat([r.labels for r in regions])
        pooled = self._pool(pyramid, [r.boxes for r in regions])
        del pyramid  # nobody reads it after this: at 1024 px 85 MiB an image, at the step's peak of memory
        embeddings, box_deltas = self.box_head(pooled)

        counts = [len(a) for a in anchors]
        positive = torch.stack([t.positive for t in anchor_targets])
        with _float32(images.device):
            return LossSums(
                rpn_score=rpn_score_sum(
                    torch.cat(logits, dim=1), positive, torch.stack([t.sampled for t in anchor_targets])
                ),
                rpn_box=rpn_box_sums(
                    deltas,
                    list(torch.stack([t.deltas for t in anchor_targets]).split(counts, dim=1)),
                    list(positive.split(counts, dim=1)),
                ),
                classes=class_sum(cosine(embeddings, text) / self.temperature, labels, train.background_weight),
                box=box_sum(box_deltas, torch.cat([r.deltas for r in regions]), labels),
                foreground=(labels > 0).sum(),
            )

    @torch.no_grad()
    def detect(self, images: Tensor, sizes_hw: Sequence[tuple[int, int]], text: Tensor) -> list[Regions]:
        """Regions of each image, with both branches' similarities to every text.

        Args:
            images: (N, 3, S, S) CLIP-normalised, padded with zeros.
            sizes_hw: height and width of each picture inside its canvas, pixels.
            text: (1 + K, D), row 0 background.

        Both branches look at the proposals, not at the refined boxes (F-VLM's `task_heads.py`).
        """
        features = self._tower_features(images)
        pyramid = self.fpn(features)
        logits, deltas = self.rpn(pyramid)
        canvas_hw = (images.shape[-2], images.shape[-1])
        proposals = self._propose(logits, deltas, self._anchors(canvas_hw), sizes_hw)
        boxes = [b for b, _ in proposals]
        counts = [len(b) for b in boxes]
        embeddings, box_deltas = self.box_head(self._pool(pyramid, boxes))
        vlm_embeddings = self.embed_by_vlm(features["C5"], boxes)
        rows = zip(
            proposals,
            sizes_hw,
            box_deltas.split(counts),
            cosine(embeddings, text).split(counts),
            cosine(vlm_embeddings, text).split(counts),
            strict=True,
        )
        return [
            Regions(
                proposals=proposal,
                proposal_scores=score,
                boxes=clip_boxes_to_image(REGION_CODER.decode_single(delta, proposal), size_hw),
                detector_similarity=detector_similarity,
                vlm_similarity=vlm_similarity,
            )
            for (proposal, score), size_hw, delta, detector_similarity, vlm_similarity in rows
        ]

    def embed_by_vlm(self, c5: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """CLIP's own embeddings of boxes: C5 (N, C, H, W) and N x (R_i, 4) xyxy pixels -> (R, D), not normalised.

        In float32, whatever `c5` is and under autocast too.
        """
        shift = C5_STRIDE / 2 if self.model.vlm_crop == "aligned" else 0.0
        with _float32(c5.device):
            return pool_regions(self.tower.attnpool, c5, [b - shift for b in boxes], grid=self.grid, stride=C5_STRIDE)

    def _tower_features(self, images: Tensor) -> dict[str, Tensor]:
        """C2..C5. A frozen tower keeps no activation for a backward pass that would have nothing to do."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.tower.mode != "all"):
            return self.tower(images)

    def _anchors(self, canvas_hw: tuple[int, int]) -> list[Tensor]:
        sizes_hw = tuple((canvas_hw[0] // stride, canvas_hw[1] // stride) for stride in STRIDES)
        return anchors_on(self.temperature_scale.device, sizes_hw, self.model.anchor_scale)

    def _propose(
        self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], sizes_hw: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        return propose(
            logits,
            deltas,
            anchors,
            sizes_hw,
            pre_nms_top_n=self.model.rpn_pre_nms_top_n,
            post_nms_top_n=self.model.rpn_post_nms_top_n,
            nms_iou=self.model.rpn_nms_iou,
        )

    def _pool(self, pyramid: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        return pool_pyramid(pyramid, boxes, self.model.canonical_box_size)


def cosine(embeddings: Tensor, text: Tensor) -> Tensor:
    """(R, D) and (1 + K, D) -> (R, 1 + K) cosines, in float32 whatever the inputs' precision, also under autocast."""
    with _float32(embeddings.device):
        return F.normalize(embeddings.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T


def normalisers(images: int, rpn_box_elements: Tensor, train: Train) -> Normalisers:
    """Those of a batch of `images`, whose RPN box loss counts `rpn_box_elements` (5,)."""
    return Normalisers(
        rpn_score=images * train.rpn_anchors_per_image,
        rpn_box=rpn_box_elements,
        classes=images * train.rois_per_image,
    )


def _each(generators: Sequence[torch.Generator] | None, count: int) -> Sequence[torch.Generator | None]:
    return [None] * count if generators is None else generators


def _float32(device: torch.device) -> torch.autocast:
    """No autocast inside: matrix products are computed in the precision of what they are given."""
    return torch.autocast(device.type, enabled=False)


def build_detector(model: Model, card: VlmCard, visual: ModifiedResNet) -> FVLM:
    """A detector on the image tower `visual` of the VLM `card`, its head drawn from torch's global generator."""
    return FVLM(ImageTower(visual, model.freeze), card.model_config["embed_dim"], card.grid, model)


def arrange(detector: FVLM, compute: Compute) -> None:
    """Lay `detector` out in memory and compile it, as `compute` says; in place, names in the state dict stay.

    Its four parts with weights are compiled one by one. What lies between them (proposals, matching, RoIAlign) has
    sizes that depend on the picture and is fused by no compiler. The number of regions may change from batch to batch,
    so the box head is compiled for any. Where processes train together only the tower is compiled: the other parts'
    batch norms talk to the other processes, which a compiled graph cannot.
    """
    if compute.channels_last:
        detector.to(memory_format=torch.channels_last)
    if compute.compile:
        detector.tower.compile(dynamic=False)
        if compute.processes == 1:
            detector.fpn.compile(dynamic=False)
            detector.rpn.compile(dynamic=False)
            detector.box_head.compile(dynamic=True)

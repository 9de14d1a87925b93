"""F-VLM in one class: a frozen CLIP tower, a detector head on it, and CLIP's own attention pool over the proposals.

    images -> tower -> C2..C5 -> FPN -> P2..P6 -> RPN -> proposals -> box head -> boxes, region embeddings
                          C5 ------------------------------> attention pool -> VLM embeddings

Both embeddings are compared with the same text embeddings. Training reads the first only; `scores.py` fuses the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from ..params import Model, Train
from ..vlm.clip import C5_STRIDE, ImageTower, VlmCard
from ..vlm.pooling import pool_regions
from .box_head import REGION_CODER, BoxHead, pool_pyramid
from .fpn import FeaturePyramid
from .losses import box_loss, class_loss, rpn_box_loss, rpn_score_loss
from .rpn import RpnHead, anchors_on, propose
from .targets import assign_anchors, sample_regions


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
        self, images: Tensor, targets: Sequence[tuple[Tensor, Tensor]], text: Tensor, train: Train
    ) -> dict[str, Tensor]:
        """The four terms whose sum is minimised: rpn_score, rpn_box, class, box; float32 scalars.

        Args:
            images: (N, 3, S, S) CLIP-normalised, padded with zeros.
            targets: for each image boxes (G, 4) xyxy pixels and labels (G,) in 1..K; G may be 0.
            text: (1 + K, D) embeddings of background and the K supervised classes.
            train: sample sizes and the background weight.

        Anchors and regions are sampled from torch's global generator: seed it for a repeatable step.
        """
        pyramid = self.fpn(self.tower(images))
        logits, deltas = self.rpn(pyramid)
        anchors = self._anchors(pyramid)
        canvas = [cast(tuple[int, int], tuple(images.shape[-2:]))] * len(images)
        proposals = self._propose(logits, deltas, anchors, canvas)

        flat_anchors = torch.cat(anchors)
        per_image = [
            assign_anchors(
                flat_anchors,
                boxes,
                sample_size=train.rpn_anchors_per_image,
                positive_fraction=train.rpn_positive_fraction,
            )
            for boxes, _ in targets
        ]
        positive = torch.stack([t.positive for t in per_image])
        counts = [len(a) for a in anchors]
        regions = [
            sample_regions(boxes, *gt, sample_size=train.rois_per_image, positive_fraction=train.roi_positive_fraction)
            for (boxes, _), gt in zip(proposals, targets, strict=True)
        ]
        labels = torch.cat([r.labels for r in regions])
        embeddings, box_deltas = self._embed([r.boxes for r in regions], pyramid)
        return {
            "rpn_score": rpn_score_loss(
                torch.cat(logits, dim=1),
                positive,
                torch.stack([t.sampled for t in per_image]),
                train.rpn_anchors_per_image,
            ),
            "rpn_box": rpn_box_loss(
                deltas,
                list(torch.stack([t.deltas for t in per_image]).split(counts, dim=1)),
                list(positive.split(counts, dim=1)),
            ),
            "class": class_loss(cosine(embeddings, text) / self.temperature, labels, train.background_weight),
            "box": box_loss(box_deltas, torch.cat([r.deltas for r in regions]), labels),
        }

    @torch.no_grad()
    def detect(self, images: Tensor, sizes_hw: Sequence[tuple[int, int]], text: Tensor) -> list[Regions]:
        """Regions of each image, with both branches' similarities to every text.

        Args:
            images: (N, 3, S, S) CLIP-normalised, padded with zeros.
            sizes_hw: height and width of each picture inside its canvas, pixels.
            text: (1 + K, D), row 0 background.

        Both branches look at the proposals, not at the refined boxes (F-VLM's `task_heads.py`).
        """
        features = self.tower(images)
        pyramid = self.fpn(features)
        logits, deltas = self.rpn(pyramid)
        proposals = self._propose(logits, deltas, self._anchors(pyramid), sizes_hw)
        boxes = [b for b, _ in proposals]
        counts = [len(b) for b in boxes]
        embeddings, box_deltas = self._embed(boxes, pyramid)
        shift = C5_STRIDE / 2 if self.model.vlm_crop == "aligned" else 0.0
        vlm_embeddings = pool_regions(
            self.tower.attnpool, features["C5"], [b - shift for b in boxes], grid=self.grid, stride=C5_STRIDE
        )
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

    def _anchors(self, pyramid: dict[str, Tensor]) -> list[Tensor]:
        sizes = tuple((x.shape[-2], x.shape[-1]) for x in pyramid.values())
        return anchors_on(pyramid["P2"].device, sizes, self.model.anchor_scale)

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

    def _embed(self, boxes: list[Tensor], pyramid: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.box_head(pool_pyramid(pyramid, boxes, self.model.canonical_box_size))


def cosine(embeddings: Tensor, text: Tensor) -> Tensor:
    """(R, D) and (1 + K, D) -> (R, 1 + K) cosines, in float32 whatever the inputs' precision."""
    return F.normalize(embeddings.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T


def build_detector(model: Model, card: VlmCard, visual: ModifiedResNet) -> FVLM:
    """A detector on the image tower `visual` of the VLM `card`, its head drawn from torch's global generator."""
    return FVLM(ImageTower(visual, model.freeze), card.model_config["embed_dim"], card.grid, model)

"""Anchors and proposals, by hand."""

import math
from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from fvlm.detector.rpn import RpnHead, anchors_on, make_anchors, propose

SIZES = [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
NO_LIMIT: dict[str, Any] = {"pre_nms_top_n": 2000, "post_nms_top_n": 1000, "nms_iou": 0.7}


def test_anchors_are_centred_on_cells_and_have_the_paper_s_sides():
    levels = make_anchors(SIZES, scale=8)
    assert [len(a) for a in levels] == [8 * 8 * 3, 4 * 4 * 3, 2 * 2 * 3, 3, 3]
    assert levels[0][0].tolist() == [2 - 16, 2 - 16, 2 + 16, 2 + 16]  # stride 4: centre 2, side 32
    assert levels[4][0].tolist() == [32 - 256, 32 - 256, 32 + 256, 32 + 256]  # stride 64: side 512


def test_anchors_run_by_row_then_column_then_aspect():
    p2 = make_anchors(SIZES, scale=8)[0]
    centres = (p2[:, :2] + p2[:, 2:]) / 2
    assert centres[3].tolist() == pytest.approx([6, 2])  # next column
    assert centres[8 * 3].tolist() == pytest.approx([2, 6])  # next row
    sides = p2[:3, 2:] - p2[:3, :2]
    assert (sides[:, 0] / sides[:, 1]).tolist() == pytest.approx([1.0, 2.0, 0.5])  # width / height
    assert (sides[:, 0] * sides[:, 1]).tolist() == pytest.approx([1024.0] * 3)  # equal area


def test_anchors_are_made_once_for_each_size_of_pyramid():
    device, other = torch.device("cpu"), tuple((h, w + 1) for h, w in SIZES)
    first = anchors_on(device, tuple(SIZES), 8)
    assert all(torch.equal(a, b) for a, b in zip(first, make_anchors(SIZES, 8), strict=True))
    assert anchors_on(device, tuple(SIZES), 8)[0] is first[0]
    assert len(anchors_on(device, other, 8)[0]) == 8 * 9 * 3
    assert anchors_on(device, tuple(SIZES), 4)[0][0].tolist() == [2 - 8, 2 - 8, 2 + 8, 2 + 8]


def test_the_head_orders_its_outputs_as_the_anchors():
    head: Any = RpnHead(4, norm_momentum=0.1, norm_eps=1e-4).eval()
    with torch.no_grad():
        head.score.weight.zero_()
        head.score.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        head.box.weight.zero_()
        head.box.bias.copy_(torch.arange(12.0))
        logits, deltas = head({f"P{i}": torch.randn(2, 4, *s) for i, s in enumerate(SIZES, 2)})
    assert [tuple(x.shape) for x in logits] == [(2, h * w * 3) for h, w in SIZES]
    assert logits[0][0, :6].tolist() == [1, 2, 3, 1, 2, 3]
    assert deltas[0][1, :2].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_norms_are_separate_for_levels_and_convolutions_are_shared():
    head: Any = RpnHead(4, norm_momentum=0.5, norm_eps=1e-4).train()
    head({f"P{i}": torch.randn(2, 4, 4, 4) + i for i in range(2, 7)})
    means = [norm.running_mean for norm in head.norms[0]]
    assert all(not torch.equal(a, b) for i, a in enumerate(means) for b in means[:i])
    assert len(head.convs) == 2


def flat_outputs(value: float = -10.0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    counts = [h * w * 3 for h, w in SIZES]
    return [torch.full((1, n), value) for n in counts], [torch.zeros(1, n, 4) for n in counts]


def test_a_zero_delta_gives_the_anchor_clipped_to_the_picture():
    logits, deltas = flat_outputs()
    logits[0][0, 0] = 5.0
    [(boxes, scores)] = propose(logits, deltas, make_anchors(SIZES, 8), [(32, 24)], **NO_LIMIT)
    assert boxes[0].tolist() == [0, 0, 18, 18]
    assert scores[0].item() == pytest.approx(torch.tensor(5.0).sigmoid().item())
    assert boxes[:, 2].max() <= 24 and boxes[:, 3].max() <= 32
    assert (scores[:-1] >= scores[1:]).all()


def test_anchors_beside_the_picture_are_no_proposals():
    """Clipped, they are lines at its border, which nothing suppresses."""
    logits, deltas = flat_outputs()
    logits[0][0, -3:] = 5.0  # of the last cell: boxes from 27 to 29 and beyond on a canvas of 32
    for size_hw in ((32, 24), (24, 32), (1, 32)):
        [(boxes, scores)] = propose(logits, deltas, make_anchors(SIZES, 1), [size_hw], **NO_LIMIT)
        assert len(boxes) > 0 and (boxes[:, 2:] > boxes[:, :2]).all()
        assert scores.max() < 0.5


def test_overlapping_boxes_are_suppressed_within_a_level_only():
    logits, deltas = flat_outputs()
    anchors = [torch.tensor([[0.0, 0, 32, 32]]).repeat(x.shape[1], 1) for x in logits]  # all the same box
    [(boxes, _)] = propose(logits, deltas, anchors, [(32, 32)], **NO_LIMIT)
    assert len(boxes) == len(SIZES)  # one survivor a level
    assert box_iou(boxes, boxes).min() == 1


def test_each_level_may_contribute_only_its_best_before_suppression():
    logits, deltas = flat_outputs()
    logits[0] += torch.arange(logits[0].shape[1]) * 0.01 + 10  # the finest level outscores all others
    [(boxes, _)] = propose(
        logits, deltas, make_anchors(SIZES, 1), [(32, 32)], pre_nms_top_n=2, post_nms_top_n=100, nms_iou=1.0
    )
    assert len(boxes) == 2 * len(SIZES)


def test_images_of_a_batch_are_proposed_for_each_by_itself():
    torch.manual_seed(0)
    anchors = make_anchors(SIZES, 4)
    logits = [torch.randn(3, len(a)) for a in anchors]
    deltas = [0.3 * torch.randn(3, len(a), 4) for a in anchors]
    sizes = [(32, 32), (32, 24), (20, 32)]
    limit: dict[str, Any] = {"pre_nms_top_n": 40, "post_nms_top_n": 30, "nms_iou": 0.7}
    together = propose(logits, deltas, anchors, sizes, **limit)
    for i, (boxes, scores) in enumerate(together):
        only = slice(i, i + 1)
        [alone] = propose([x[only] for x in logits], [x[only] for x in deltas], anchors, sizes[only], **limit)
        assert torch.equal(boxes, alone[0]) and torch.equal(scores, alone[1])
        assert boxes[:, 2].max() <= sizes[i][1] and boxes[:, 3].max() <= sizes[i][0]


def test_no_more_than_post_nms_top_n_proposals_are_kept():
    logits, deltas = flat_outputs()
    [(boxes, _)] = propose(
        logits, deltas, make_anchors(SIZES, 8), [(32, 32)], pre_nms_top_n=50, post_nms_top_n=7, nms_iou=0.9
    )
    assert len(boxes) == 7


def test_a_network_that_gives_nan_proposes_boxes_inside_the_picture():
    logits, deltas = flat_outputs()
    for x in (*logits, *deltas):
        x.fill_(math.nan)
    [(boxes, _)] = propose(logits, deltas, make_anchors(SIZES, 8), [(32, 24)], **NO_LIMIT)
    assert len(boxes) and boxes.isfinite().all() and boxes.min() >= 0 and boxes.max() <= 32

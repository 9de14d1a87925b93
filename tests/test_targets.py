"""Which anchor and which region learns what, on boxes laid out by hand."""

from typing import Any

import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from fvlm.detector.box_head import REGION_CODER
from fvlm.detector.rpn import ANCHOR_CODER
from fvlm.detector.targets import assign_anchors, sample_regions

GT = torch.tensor([[0.0, 0, 10, 10]])
SAMPLE: dict[str, Any] = {"sample_size": 4, "positive_fraction": 0.5}


def test_anchors_between_the_thresholds_do_not_learn():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 2], [50, 50, 60, 60]])  # IoU 1, 0.5, 0.2, 0
    targets = assign_anchors(anchors, GT, **SAMPLE)
    assert targets.positive.tolist() == [True, False, False, False]
    assert targets.negative.tolist() == [False, False, True, True]
    assert targets.sampled.tolist() == [True, False, True, True]


def test_the_best_anchor_of_a_box_is_positive_however_small_its_overlap():
    anchors = torch.tensor([[0.0, 0, 10, 4], [0, 0, 10, 2], [50, 50, 60, 60]])  # IoU 0.4, 0.2, 0
    targets = assign_anchors(anchors, GT, **SAMPLE)
    assert targets.positive.tolist() == [True, False, False]
    assert targets.deltas[0].tolist() != [0, 0, 0, 0]
    assert targets.deltas[1].tolist() == [0, 0, 0, 0]


def test_an_image_without_boxes_makes_every_anchor_negative():
    targets = assign_anchors(torch.rand(6, 4), torch.zeros(0, 4), **SAMPLE)
    assert targets.negative.all() and not targets.positive.any()
    assert targets.sampled.sum() == 4


def test_positives_fill_no_more_than_their_fraction():
    anchors = GT.repeat(10, 1)
    targets = assign_anchors(torch.cat([anchors, anchors + 100]), GT, **SAMPLE)
    assert (targets.sampled & targets.positive).sum() == 2
    assert (targets.sampled & targets.negative).sum() == 2


def test_ground_truth_joins_the_proposals():
    regions = sample_regions(torch.zeros(0, 4), GT, torch.tensor([7]), sample_size=8, positive_fraction=1.0)
    assert regions.boxes.tolist() == GT.tolist()
    assert regions.labels.tolist() == [7]
    assert regions.deltas.tolist() == [[0, 0, 0, 0]]


def test_an_overlap_of_exactly_one_half_is_background():
    half = torch.tensor([[0.0, 0, 10, 5]])
    regions = sample_regions(half, GT, torch.tensor([7]), sample_size=8, positive_fraction=1.0)
    assert sorted(regions.labels.tolist()) == [0, 7]


def test_region_deltas_lead_back_to_the_box():
    proposal = torch.tensor([[1.0, 1, 11, 9]])
    regions = sample_regions(proposal, GT, torch.tensor([2]), sample_size=8, positive_fraction=1.0)
    row = (regions.boxes == proposal[0]).all(dim=1).nonzero()[0, 0]
    torch.testing.assert_close(REGION_CODER.decode_single(regions.deltas[row][None], proposal), GT)
    torch.testing.assert_close(regions.deltas[row, 0], torch.tensor(10 * (5 - 6) / 10))  # weight 10 on dx / width


def test_regions_without_ground_truth_are_all_background():
    regions = sample_regions(
        torch.rand(5, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), sample_size=3, positive_fraction=0.25
    )
    assert regions.labels.tolist() == [0, 0, 0]


def test_anchors_match_as_torchvisions_matcher_says():
    generator = torch.Generator().manual_seed(0)
    corners = 50 * torch.rand(300, 2, generator=generator)
    anchors = torch.cat([corners, corners + 5 + 20 * torch.rand(300, 2, generator=generator)], dim=1)
    gt = torch.cat([anchors[:3] + 1, anchors[5:6], anchors[5:6]])  # two boxes in one place too
    match = Matcher(0.7, 0.3, allow_low_quality_matches=True)(box_iou(gt, anchors))
    targets = assign_anchors(anchors, gt, **SAMPLE)
    assert torch.equal(targets.positive, match >= 0)
    assert torch.equal(targets.negative, match == Matcher.BELOW_LOW_THRESHOLD)
    expected = ANCHOR_CODER.encode_single(gt[match.clamp(min=0)], anchors)
    assert torch.equal(targets.deltas[targets.positive], expected[targets.positive])
    assert (targets.deltas[~targets.positive] == 0).all()


def test_a_sample_is_the_generators_and_every_candidate_can_be_in_it():
    def sample(seed):
        generator = torch.Generator().manual_seed(seed)
        return assign_anchors(torch.rand(6, 4), torch.zeros(0, 4), generator=generator, **SAMPLE).sampled

    torch.manual_seed(1)
    first = sample(7)
    torch.manual_seed(2)
    assert torch.equal(sample(7), first)
    assert torch.stack([sample(seed) for seed in range(50)]).float().mean(0).sub(4 / 6).abs().max() < 0.25

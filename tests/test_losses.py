"""The authors' normalisers, worked by hand. Each test fails if torch's usual reduction is put in its place."""

import math

import pytest
import torch

from fvlm.detector.losses import box_loss, class_loss, rpn_box_loss, rpn_score_loss


def test_rpn_score_loss_divides_by_the_nominal_sample_not_by_the_sampled():
    logits = torch.tensor([[0.0, 0.0, 7.0]])
    positive = torch.tensor([[True, False, False]])
    sampled = torch.tensor([[True, True, False]])  # the third would cost much
    assert rpn_score_loss(logits, positive, sampled, 256).item() == pytest.approx(2 * math.log(2) / 256)


def test_rpn_score_loss_divides_by_the_batch():
    logits, positive = torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.bool)
    assert rpn_score_loss(logits, positive, ~positive, 2).item() == pytest.approx(math.log(2))


def test_rpn_box_loss_is_a_mean_per_level_then_a_sum_over_levels():
    # level 1: errors 1 and 0.05 on two elements; level 2: error 1 on each of four elements
    deltas = [torch.zeros(1, 2, 4), torch.zeros(1, 1, 4)]
    targets = [torch.tensor([[[1.0, 0.05, 0, 0], [9, 9, 9, 9]]]), torch.ones(1, 1, 4)]
    positive = [torch.tensor([[True, False]]), torch.tensor([[True]])]
    huber = 0.111 * (1 - 0.111 / 2)
    expected = (huber + 0.5 * 0.05**2) / 2 + huber
    assert rpn_box_loss(deltas, targets, positive).item() == pytest.approx(expected)


def test_rpn_box_loss_is_nine_times_smaller_than_smooth_l1():
    deltas, targets = [torch.zeros(1, 1, 4)], [torch.full((1, 1, 4), 0.5)]
    ours = rpn_box_loss(deltas, targets, [torch.tensor([[True]])])
    torch_s = torch.nn.functional.smooth_l1_loss(deltas[0], targets[0], beta=0.111)
    assert (torch_s / ours).item() == pytest.approx(1 / 0.111)


def test_rpn_box_loss_without_positives_is_zero_and_has_a_gradient():
    deltas = torch.zeros(1, 2, 4, requires_grad=True)
    loss = rpn_box_loss([deltas], [torch.zeros(1, 2, 4)], [torch.zeros(1, 2, dtype=torch.bool)])
    loss.backward()
    assert loss.item() == 0 and deltas.grad is not None and deltas.grad.abs().sum() == 0


def test_class_loss_weighs_background_and_divides_by_the_number_of_regions():
    logits = torch.zeros(4, 3)  # every term is log 3
    labels = torch.tensor([1, 0, 0, 0])
    assert class_loss(logits, labels, 0.2).item() == pytest.approx((1 + 3 * 0.2) * math.log(3) / 4)


def test_box_loss_averages_over_foreground_elements_only():
    deltas = torch.zeros(3, 4)
    targets = torch.tensor([[2.0, 0, 0, 0], [0.5, 0, 0, 0], [100, 100, 100, 100]])
    labels = torch.tensor([3, 1, 0])
    assert box_loss(deltas, targets, labels).item() == pytest.approx((2 - 0.5 + 0.125) / 8)


def test_box_loss_without_foreground_is_exactly_zero():
    assert box_loss(torch.ones(2, 4), torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)).item() == 0

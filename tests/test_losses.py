"""The authors' normalisers, worked by hand. Each test fails if torch's usual reduction is put in its place."""

import math

import pytest
import torch

from fvlm.detector.losses import (
    LossSums,
    Normalisers,
    box_sum,
    box_term,
    class_sum,
    rpn_box_elements,
    rpn_box_sums,
    rpn_score_sum,
)


def terms(normalisers, **sums):
    """The early terms of these sums; those not given are 0."""
    zero = torch.zeros(())
    names = ("rpn_score", "rpn_box", "classes", "box", "foreground")
    return normalisers.early_terms(LossSums(**{name: sums.get(name, zero) for name in names}))


def rpn_box_loss(deltas, targets, positive):
    elements = rpn_box_elements(targets, positive)
    return terms(Normalisers(1, elements, 1), rpn_box=rpn_box_sums(deltas, targets, positive))["rpn_box"]


def box_loss(deltas, targets, labels):
    return box_term(box_sum(deltas, targets, labels), (labels > 0).sum())


def test_rpn_score_sum_is_over_the_sampled_anchors_alone():
    logits = torch.tensor([[0.0, 0.0, 7.0]])
    positive = torch.tensor([[True, False, False]])
    sampled = torch.tensor([[True, True, False]])  # the third would cost much
    assert rpn_score_sum(logits, positive, sampled).item() == pytest.approx(2 * math.log(2))


def test_an_infinite_logit_that_is_not_sampled_costs_nothing_and_has_no_gradient():
    logits = torch.tensor([[0.0, math.inf]], requires_grad=True)
    no = torch.zeros(1, 2, dtype=torch.bool)
    loss = rpn_score_sum(logits, no, torch.tensor([[True, False]]))
    loss.backward()
    assert logits.grad is not None
    assert loss.item() == pytest.approx(math.log(2)) and logits.grad.tolist() == [[0.5, 0]]


def test_score_and_class_terms_are_divided_by_the_nominal_samples_of_the_batch():
    of_batch = Normalisers(rpn_score=4 * 256, rpn_box=torch.ones(5), classes=4 * 512)
    found = terms(of_batch, rpn_score=torch.tensor(512.0), classes=torch.tensor(512.0))
    assert found["rpn_score"] == 0.5 and found["class"] == 0.25


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


def test_class_sum_weighs_background():
    logits = torch.zeros(4, 3)  # every term is log 3
    labels = torch.tensor([1, 0, 0, 0])
    assert class_sum(logits, labels, 0.2).item() == pytest.approx((1 + 3 * 0.2) * math.log(3))


def test_box_loss_averages_over_foreground_elements_only():
    deltas = torch.zeros(3, 4)
    targets = torch.tensor([[2.0, 0, 0, 0], [0.5, 0, 0, 0], [100, 100, 100, 100]])
    labels = torch.tensor([3, 1, 0])
    assert box_loss(deltas, targets, labels).item() == pytest.approx((2 - 0.5 + 0.125) / 8)


def test_box_loss_without_foreground_is_exactly_zero():
    assert box_loss(torch.ones(2, 4), torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)).item() == 0

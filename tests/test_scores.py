import math
from functools import partial

import pytest
import torch

from fvlm.detector.scores import class_log_probs, fuse_scores

# one region, background and two classes; the first class had boxes in training
DETECTOR = torch.tensor([[0.5, 0.4, 0.1]])
VLM = torch.tensor([[0.1, 0.1, 0.8]])
SUPERVISED = torch.tensor([True, False])


def fuse(detector=DETECTOR, vlm=VLM, supervised=SUPERVISED, *, alpha, beta):
    return fuse_scores(detector.log(), vlm.log(), supervised, alpha=alpha, beta=beta)


def test_fusion_equals_a_value_worked_by_hand():
    # class 1: 0.4^0.75 * 0.1^0.25 = 0.28284, class 2: 0.1^0.5 * 0.8^0.5 = 0.28284, background stays 0.5
    unnormalised = [0.5, 0.4**0.75 * 0.1**0.25, 0.08**0.5]
    expected = torch.tensor([[score / sum(unnormalised) for score in unnormalised]])
    torch.testing.assert_close(fuse(alpha=0.25, beta=0.5), expected)


def test_background_is_the_detectors_whatever_the_vlm_says_of_it():
    other_background = torch.tensor([[0.9, 0.1, 0.8]])  # only the ratio of classes to background may not change
    torch.testing.assert_close(fuse(alpha=0.2, beta=0.45), fuse(vlm=other_background, alpha=0.2, beta=0.45))
    vlm_only = fuse(alpha=1.0, beta=1.0)
    torch.testing.assert_close(vlm_only, torch.tensor([[0.5, 0.1, 0.8]]) / 1.4)


def test_weight_zero_gives_the_detector_and_fused_rows_sum_to_one():
    generator = torch.Generator().manual_seed(0)
    detector, vlm = torch.rand(2, 50, 66, generator=generator).mul(20).log_softmax(dim=2)
    supervised = torch.rand(65, generator=generator) < 0.7
    torch.testing.assert_close(fuse_scores(detector, vlm, supervised, alpha=0, beta=0), detector.exp())
    sums = fuse_scores(detector, vlm, supervised, alpha=0.2, beta=0.45).sum(dim=1)
    torch.testing.assert_close(sums, torch.ones(50))


def test_alpha_goes_to_supervised_classes_and_beta_to_the_others():
    only_alpha, only_beta = fuse(alpha=1.0, beta=0.0), fuse(alpha=0.0, beta=1.0)
    torch.testing.assert_close(only_alpha[0, 1] / only_alpha[0, 0], VLM[0, 1] / DETECTOR[0, 0])
    torch.testing.assert_close(only_alpha[0, 2] / only_alpha[0, 0], DETECTOR[0, 2] / DETECTOR[0, 0])
    torch.testing.assert_close(only_beta[0, 1] / only_beta[0, 0], DETECTOR[0, 1] / DETECTOR[0, 0])
    torch.testing.assert_close(only_beta[0, 2] / only_beta[0, 0], VLM[0, 2] / DETECTOR[0, 0])


def test_with_all_classes_supervised_beta_has_no_effect():
    everything = torch.ones(2, dtype=torch.bool)
    a = fuse(supervised=everything, alpha=0.2, beta=0.0)
    b = fuse(supervised=everything, alpha=0.2, beta=1.0)
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_probability_of_zero_under_weight_zero_is_not_nan():
    vlm_has_a_zero = torch.tensor([[0.2, 0.0, 0.8]])
    torch.testing.assert_close(fuse(vlm=vlm_has_a_zero, alpha=0.0, beta=0.0), DETECTOR)
    detector_has_a_zero = torch.tensor([[0.5, 0.0, 0.5]])
    fused = fuse(detector=detector_has_a_zero, alpha=1.0, beta=1.0)
    torch.testing.assert_close(fused, torch.tensor([[0.5, 0.1, 0.8]]) / 1.4)


def test_a_score_survives_where_one_branchs_probability_underflows():
    detector = class_log_probs(torch.tensor([[1.0, -0.25, -1.0]], dtype=torch.float16), 0.01)  # logits 100, -25, -100
    vlm = class_log_probs(torch.tensor([[-0.25, 1.0, -1.0]], dtype=torch.float16), 0.01)
    assert detector.exp()[0, 1] == 0  # e^-125 is below float32's least number
    fused = fuse_scores(detector, vlm, SUPERVISED, alpha=0.5, beta=0.5)
    assert fused[0, 1].item() == pytest.approx(math.exp(-62.5), rel=1e-3)
    assert torch.isfinite(fused).all()


def test_float16_similarities_are_softmaxed_in_float32():
    similarity = torch.linspace(-1, 1, 66, dtype=torch.float16).repeat(3, 1)
    log_probs = class_log_probs(similarity, 0.01)
    assert log_probs.dtype == torch.float32
    expected = torch.log_softmax(similarity.double() / 0.01, dim=1).float()
    torch.testing.assert_close(log_probs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [48, 17, 65])
def test_background_and_each_protocols_classes_share_one_softmax(classes):
    log_probs = class_log_probs(torch.zeros(2, 1 + classes), 0.01)
    torch.testing.assert_close(log_probs, torch.full((2, 1 + classes), -math.log(1 + classes)))


def test_no_regions_give_no_scores():
    nothing = torch.zeros(0, 3)
    assert fuse_scores(class_log_probs(nothing, 0.01), nothing, SUPERVISED, alpha=0.2, beta=0.4).shape == (0, 3)


def test_wrong_shapes_weights_and_temperatures_are_named():
    with pytest.raises(ValueError, match=r"\(R, 3\) for 2 classes plus background, got \(1, 3\) and \(1, 2\)"):
        fuse_scores(DETECTOR.log(), VLM[:, :2].log(), SUPERVISED, alpha=0.2, beta=0.4)
    with pytest.raises(ValueError, match=r"got alpha=1\.5, beta=0\.4"):
        fuse(alpha=1.5, beta=0.4)
    with pytest.raises(ValueError, match="temperature > 0, got 0"):
        class_log_probs(DETECTOR, 0)


def test_without_renormalising_the_weighted_mean_is_the_score():
    fused = fuse_scores(DETECTOR.log(), VLM.log(), SUPERVISED, alpha=0.25, beta=0.5, renormalise=False)
    torch.testing.assert_close(fused, torch.tensor([[0.5, 0.4**0.75 * 0.1**0.25, 0.08**0.5]]))


def test_without_background_the_classes_share_all_the_probability():
    similarity = torch.tensor([[0.9, 0.2, 0.4]])
    log_probs = class_log_probs(similarity, 0.1, background=False)
    torch.testing.assert_close(log_probs[:, 1:], torch.log_softmax(similarity[:, 1:] / 0.1, dim=1))
    assert similarity[0, 0] == 0.9  # a float32 argument is not written into
    fused = fuse_scores(DETECTOR.log(), log_probs, SUPERVISED, alpha=0.3, beta=0.6, renormalise=False)
    assert fused[0, 0].item() == pytest.approx(0.5)  # the detector's, though the VLM has none


@pytest.mark.parametrize("renormalise", [True, False])
def test_a_masked_class_is_as_if_it_were_not_there(renormalise):
    generator = torch.Generator().manual_seed(1)
    detector, vlm = torch.rand(2, 20, 6, generator=generator)
    few = class_log_probs(detector[:, :4], 0.1), class_log_probs(vlm[:, :4], 0.1)
    detector[:, 4:] = vlm[:, 4:] = -torch.inf
    masked = class_log_probs(detector, 0.1), class_log_probs(vlm, 0.1)
    for alpha, beta in ((0.0, 0.0), (0.2, 0.6), (1.0, 1.0)):
        supervised = torch.tensor([True, False, True, True, False])
        weigh = partial(fuse_scores, alpha=alpha, beta=beta, renormalise=renormalise)
        fused = weigh(*masked, supervised)
        torch.testing.assert_close(fused[:, :4], weigh(*few, supervised[:3]))
        assert (fused[:, 4:] == 0).all()

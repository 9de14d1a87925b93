"""The whole detector, small: what trains, what does not, and what it predicts."""

import dataclasses
import functools

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet

from fvlm.compute import autocast
from fvlm.detector import recompute
from fvlm.detector.detector import FVLM, arrange, cosine
from fvlm.params import FreezeMode, load_params
from fvlm.vlm.clip import ImageTower
from fvlm.vlm.pooling import pool_crops

EMBED_DIM = 16


@pytest.fixture(scope="module")
def params():
    return load_params("recipes/emoji.yaml")


def make_detector(params, freeze: FreezeMode = "all", **changes) -> FVLM:
    torch.manual_seed(0)
    visual = ModifiedResNet([1, 1, 1, 1], EMBED_DIM, 4, image_size=64, width=8)
    sizes = {"fpn_channels": 16, "head_channels": 16, "head_fc_dim": 32, "image_size": 128} | changes
    model = dataclasses.replace(params.model, **sizes)
    return FVLM(ImageTower(visual, freeze), EMBED_DIM, 2, model)


def make_batch() -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """Two pictures: a bright square of class 2, and nothing."""
    torch.manual_seed(1)
    images = 0.1 * torch.randn(2, 3, 128, 128)
    images[0, :, 32:80, 24:72] += 2.0
    targets = [
        (torch.tensor([[24.0, 32, 72, 80]]), torch.tensor([2])),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    ]
    return images, targets, torch.randn(4, EMBED_DIM)


def test_losses_are_four_finite_scalars_also_for_a_picture_without_boxes(params):
    images, targets, text = make_batch()
    losses = make_detector(params).train().losses(images, targets, text, params.train)
    assert set(losses) == {"rpn_score", "rpn_box", "class", "box"}
    assert all(loss.ndim == 0 and torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())
    empty = make_detector(params).train().losses(images[1:], targets[1:], text, params.train)
    assert empty["box"] == 0 and empty["rpn_box"] == 0


@pytest.mark.parametrize(("freeze", "tower_trains"), [("all", False), ("norm_eval", True), ("none", True)])
def test_gradients_reach_every_part_of_the_head_and_of_the_tower_only_where_it_is_not_frozen(
    params, freeze, tower_trains
):
    detector = make_detector(params, freeze).train()
    images, targets, text = make_batch()
    torch.stack(list(detector.losses(images, targets, text, params.train).values())).sum().backward()
    for name, parameter in detector.named_parameters():
        if name.startswith("tower."):
            assert (parameter.grad is not None) == (tower_trains and "attnpool" not in name), name
        else:
            assert parameter.grad is not None, name


def test_overfitting_one_picture_finds_its_object_and_nothing_moves_in_the_tower(params):
    detector = make_detector(params).train()
    images, targets, text = make_batch()
    before = detector.tower.hash()
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=3e-3)
    for step in range(100):
        torch.manual_seed(step)
        loss = torch.stack(list(detector.losses(images, targets, text, params.train).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert detector.tower.hash() == before
    found, empty = detector.eval().detect(images, [(128, 128)] * 2, text)
    probabilities = (found.detector_similarity / detector.temperature).softmax(dim=1)
    best = probabilities[:, 1:].max(dim=1).values.argmax()
    assert probabilities[best].argmax() == 2
    torch.testing.assert_close(found.boxes[best], targets[0][0][0], atol=6, rtol=0)
    assert (empty.detector_similarity / detector.temperature).softmax(dim=1)[:, 0].min() > 0.5


def test_regions_come_ordered_with_both_similarities_to_every_text(params):
    detector = make_detector(params, rpn_post_nms_top_n=20).eval()
    images, _, text = make_batch()
    for regions in detector.detect(images, [(128, 96), (64, 128)], text):
        assert len(regions.proposals) <= 20
        assert regions.detector_similarity.shape == regions.vlm_similarity.shape == (len(regions.proposals), 4)
        assert (regions.proposal_scores.diff() <= 0).all()
        assert regions.vlm_similarity.abs().max() <= 1 + 1e-6


def test_boxes_are_clipped_to_the_picture_inside_its_canvas(params):
    detector = make_detector(params).eval()
    images, _, text = make_batch()
    [regions] = detector.detect(images[:1], [(128, 96)], text)
    for boxes in (regions.proposals, regions.boxes):
        assert boxes.min() >= 0 and boxes[:, 2].max() <= 96 and boxes[:, 3].max() <= 128


def test_a_picture_gives_the_same_regions_alone_and_in_a_batch(params):
    detector = make_detector(params).eval()
    images, _, text = make_batch()
    together = detector.detect(images, [(128, 128)] * 2, text)[0]
    [alone] = detector.detect(images[:1], [(128, 128)], text)
    torch.testing.assert_close(together.boxes, alone.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(together.vlm_similarity, alone.vlm_similarity, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("vlm_crop", "shift"), [("authors", 0), ("aligned", 16)])
def test_both_branches_look_at_the_proposals(params, vlm_crop, shift):
    detector = make_detector(params, vlm_crop=vlm_crop).eval()
    with torch.no_grad():
        detector.box_head.box.bias.copy_(torch.tensor([3.0, 0, 0, 0]))  # every refined box moves by 0.3 widths
    images, _, text = make_batch()
    [regions] = detector.detect(images[:1], [(128, 128)], text)
    features = detector.tower(images[:1])
    expected = pool_crops(detector.tower.attnpool, features["C5"], [regions.proposals - shift], grid=2, stride=32)
    torch.testing.assert_close(regions.vlm_similarity, cosine(expected, text).detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(regions.boxes, regions.proposals)


def test_cosine_is_computed_in_float32():
    a, b = torch.tensor([[3.0, 4.0]], dtype=torch.float16), torch.tensor([[3.0, 4.0], [-4, 3]], dtype=torch.float16)
    assert cosine(a, b).dtype == torch.float32
    torch.testing.assert_close(cosine(a, b), torch.tensor([[1.0, 0.0]]))


def test_the_temperature_is_a_learned_factor_on_the_param(params):
    detector = make_detector(params)
    assert detector.temperature.item() == pytest.approx(params.model.temperature)
    assert detector.temperature_scale.requires_grad


def stop(*args):
    raise AssertionError("a frozen tower kept a tensor for the backward pass")


def test_a_frozen_tower_keeps_no_activation_and_a_free_one_does(params):
    images, _, _ = make_batch()
    with torch.autograd.graph.saved_tensors_hooks(stop, stop):
        features = make_detector(params).train()._tower_features(images)
        assert not any(feature.requires_grad for feature in features.values())
        with pytest.raises(AssertionError, match="kept a tensor"):
            make_detector(params, "norm_eval").train()._tower_features(images)


def test_under_autocast_layers_are_bfloat16_and_cosines_losses_and_boxes_float32(params):
    detector = make_detector(params)
    images, targets, text = make_batch()
    seen = {}
    for name in ("tower", "fpn", "rpn"):
        getattr(detector, name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update(
                {name: (output["C5"] if name == "tower" else output["P3"] if name == "fpn" else output[0][0]).dtype}
            )
        )
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.train().losses(images, targets, text, params.train)
        [regions, _] = detector.eval().detect(images, [(128, 128)] * 2, text)
        a = torch.randn(3, EMBED_DIM)
        under_autocast = cosine(a, text)
    assert set(seen.values()) == {torch.bfloat16} and len(seen) == 3
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    for tensor in (regions.proposals, regions.boxes, regions.detector_similarity, regions.vlm_similarity):
        assert tensor.dtype == torch.float32
    assert torch.equal(under_autocast, cosine(a, text))
    # a product in bfloat16 would have at most 8 significant bits
    assert not torch.equal(regions.vlm_similarity, regions.vlm_similarity.bfloat16().float())
    assert not torch.equal(regions.detector_similarity, regions.detector_similarity.bfloat16().float())


def test_bfloat16_and_channels_last_change_the_losses_by_rounding_only(params):
    images, targets, text = make_batch()

    def losses(precision="float32", **changes):
        detector = make_detector(params).train()
        arrange(detector, dataclasses.replace(params.compute, **changes))
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        with autocast(torch.device("cpu"), precision):
            return detector.losses(images, targets, text, params.train, generators)

    expected = losses()
    for name, loss in losses(channels_last=True).items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-3, atol=1e-5)
    for name, loss in losses("bfloat16").items():
        torch.testing.assert_close(loss, expected[name], rtol=0.1, atol=0.02)


def test_channels_last_lays_out_every_convolution_of_the_detector(params):
    detector = make_detector(params)
    arrange(detector, dataclasses.replace(params.compute, channels_last=True))
    weights = [p for p in detector.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


@pytest.mark.slow
def test_a_compiled_detector_has_the_same_names_and_losses(params, monkeypatch):
    # traced as for the real back end, which takes minutes to write and build its C++
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    images, targets, text = make_batch()
    plain, compiled = make_detector(params).train(), make_detector(params).train()
    arrange(compiled, dataclasses.replace(params.compute, compile=True))
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    of_plain, of_compiled = (
        d.losses(images, targets, text, params.train, [torch.Generator().manual_seed(i) for i in range(2)])
        for d in (plain, compiled)
    )
    for name, loss in of_compiled.items():
        torch.testing.assert_close(loss, of_plain[name], rtol=1e-3, atol=1e-5)


def test_an_images_samples_do_not_depend_on_the_images_beside_it(params):
    detector = make_detector(params)
    boxes = [torch.tensor([[24.0, 32, 72, 80]]), torch.zeros(0, 4)]

    def sampled(of_images, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return [t.sampled for t in detector.anchor_targets(of_images, (128, 128), params.train, generators)]

    first, second = sampled(boxes, [1, 2])
    assert torch.equal(sampled(boxes[1:], [2])[0], second)
    assert torch.equal(sampled(boxes[:1], [1])[0], first)
    assert not torch.equal(sampled(boxes[:1], [3])[0], first)


def test_a_step_has_the_gradients_and_statistics_of_one_that_keeps_every_activation(params, monkeypatch):
    def step() -> dict[str, torch.Tensor]:
        detector = make_detector(params).train()
        images, targets, text = make_batch()
        torch.manual_seed(0)
        torch.stack(list(detector.losses(images, targets, text, params.train).values())).sum().backward()
        gradients = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
        return gradients | dict(detector.named_buffers())

    found = step()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # then nothing is made again
    with monkeypatch.context() as without:
        without.setattr(recompute._Recipe, "use", None)
        expected = step()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)

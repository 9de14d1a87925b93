"""The detector on a CUDA device: the CPU's numbers in float32, finite ones in bfloat16."""

import dataclasses
from typing import Any

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet

from fvlm.compute import set_up
from fvlm.detector.box_head import pool_pyramid
from fvlm.detector.detector import FVLM
from fvlm.params import load_params
from fvlm.vlm.clip import ImageTower
from fvlm.vlm.pooling import pool_crops, pool_regions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
SIDE, EMBED_DIM = 128, 16


@pytest.fixture(scope="module")
def params():
    return load_params("recipes/emoji.yaml")


@pytest.fixture(autouse=True)
def settings(params):
    """Those of the pipeline, and float32 that is float32: convolutions would take TF32."""
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()
    set_up(dataclasses.replace(params.compute, device="cuda"))
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_num_threads(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.use_deterministic_algorithms(before[2])


def make_detector(params, device, **changes):
    torch.manual_seed(0)
    visual = ModifiedResNet([1, 1, 1, 1], EMBED_DIM, 4, image_size=64, width=8)
    sizes = {"fpn_channels": 16, "head_channels": 16, "head_fc_dim": 32, "image_size": SIDE} | changes
    detector = FVLM(ImageTower(visual, "all"), EMBED_DIM, 2, dataclasses.replace(params.model, **sizes))
    return detector.to(device)


def make_batch(device):
    torch.manual_seed(1)
    images = torch.randn(2, 3, SIDE, SIDE)
    images[0, :, 32:80, 24:72] += 2.0
    targets = [
        (torch.tensor([[24.0, 32, 72, 80]]), torch.tensor([2])),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    ]
    text = torch.randn(4, EMBED_DIM)
    return images.to(device), [(boxes.to(device), labels.to(device)) for boxes, labels in targets], text.to(device)


def everything_sampled(params):
    """The two devices draw different samples, so that all must be drawn where their losses are compared."""
    return dataclasses.replace(
        params.train,
        rpn_anchors_per_image=20_000,
        rpn_positive_fraction=0.5,
        rois_per_image=2 * params.model.rpn_post_nms_top_n + 10,
        roi_positive_fraction=0.5,
    )


def losses_on(device, params):
    torch.manual_seed(2)
    detector = make_detector(params, device).train()
    losses = detector.losses(*make_batch(device), everything_sampled(params))
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad.cpu() for name, p in detector.named_parameters() if p.grad is not None}
    return {name: loss.detach().cpu() for name, loss in losses.items()}, gradients


def test_losses_and_gradients_are_those_of_the_cpu(params):
    losses, gradients = losses_on("cuda", params)
    expected, expected_gradients = losses_on("cpu", params)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-3, atol=1e-5, msg=name)
    for name, gradient in gradients.items():
        error = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm().clamp(min=1e-6)
        assert error < 1e-2, f"{name}: relative error {error:.2e}"


def test_detections_are_those_of_the_cpu(params):
    found: list[Any] = []
    expected: list[Any] = []
    for device, into in (("cuda", found), ("cpu", expected)):
        images, _, text = make_batch(device)
        into.extend(make_detector(params, device).eval().detect(images, [(SIDE, SIDE), (96, SIDE)], text))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.proposal_scores.cpu(), theirs.proposal_scores, rtol=1e-3, atol=1e-4)
        # where two scores are nearly equal the devices may order them differently: compare box with equal box
        distance, match = torch.cdist(ours.proposals.cpu(), theirs.proposals, p=float("inf")).min(dim=1)
        same = distance < 0.01
        assert same.float().mean() > 0.95
        for name in ("boxes", "detector_similarity", "vlm_similarity"):
            a, b = getattr(ours, name).cpu()[same], getattr(theirs, name)[match[same]]
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2, msg=name)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_steps_in_bfloat16_are_finite_and_detections_too(params, memory_format):
    detector = make_detector(params, "cuda").to(memory_format=memory_format).train()
    images, targets, text = make_batch("cuda")
    images = images.contiguous(memory_format=memory_format)
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            losses = detector.losses(images, targets, text, params.train)
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    assert all(bool(p.isfinite().all()) for p in detector.parameters())
    with torch.autocast("cuda", torch.bfloat16):
        found = detector.eval().detect(images, [(SIDE, SIDE)] * 2, text)
    for regions in found:
        assert len(regions.boxes) and all(bool(x.isfinite().all()) for x in vars(regions).values())


def test_regions_of_the_pyramid_and_of_c5_are_those_of_the_cpu(params):
    detector = make_detector(params, "cpu").eval()
    images, *_ = make_batch("cpu")
    corners = 80 * torch.rand(50, 2, generator=torch.Generator().manual_seed(3))
    boxes = [torch.cat([corners, corners + 5 + corners.flip(1) / 2], dim=1)] * 2
    with torch.no_grad():
        features = detector.tower(images)
        pyramid = detector.fpn(features)
        expected = pool_pyramid(pyramid, boxes, 40.0), pool_crops(detector.tower.attnpool, features["C5"], boxes, **C5)
        detector.cuda()
        on_device = [b.cuda() for b in boxes]
        found = (
            pool_pyramid({level: x.cuda() for level, x in pyramid.items()}, on_device, 40.0),
            pool_regions(detector.tower.attnpool, features["C5"].cuda(), on_device, **C5),
        )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)


C5 = {"grid": 2, "stride": 32}

"""Region features of the pyramid against RoIAlign level by level, and the box head."""

import pytest
import torch

from fvlm.detector.box_head import REGION_CODER, ROI_SIZE, BoxHead, level_of_boxes, pool_pyramid
from fvlm.detector.fpn import LEVELS, STRIDES
from fvlm.vlm.pooling import roi_align_at_centres

CANONICAL = 56.0


def make_pyramid(height=128, width=192, images=2, channels=5):
    torch.manual_seed(0)
    return {
        level: torch.randn(images, channels, height // stride, width // stride)
        for level, stride in zip(LEVELS, STRIDES, strict=True)
    }


def make_boxes(height=128, width=192, count=60):
    """Boxes of every level, inside the picture and across its edges, down to points."""
    torch.manual_seed(1)
    sides = 300 * torch.rand(count, 2) * torch.logspace(-2, 0, count)[:, None]
    centres = torch.rand(count, 2) * torch.tensor([width, height])
    special = torch.tensor([[0.0, 0, width, height], [-90, -90, width + 90, height + 90], [40.25, 40, 40.25, 40]])
    return torch.cat([torch.cat([centres - sides / 2, centres + sides / 2], dim=1), special])


def pool_level_by_level(pyramid, boxes):
    """`pool_pyramid` by its definition."""
    crops = []
    for image, of_image in enumerate(boxes):
        for box, level in zip(of_image, level_of_boxes(of_image, CANONICAL).tolist(), strict=True):
            features = pyramid[f"P{level}"][image : image + 1]
            crops.append(roi_align_at_centres(features, [box[None]], ROI_SIZE, STRIDES[level - 2]))
    return torch.cat(crops)


def test_a_box_of_the_canonical_size_is_pooled_from_p4_and_each_doubling_is_a_level():
    sides = torch.tensor([27.9, 28.0, 55.9, 56.0, 112.0, 224.0, 9999.0, 0.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    assert level_of_boxes(boxes, CANONICAL).tolist() == [2, 3, 3, 4, 5, 6, 6, 2]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_one_look_up_is_roi_align_of_each_box_on_its_own_level(memory_format):
    pyramid = {level: x.contiguous(memory_format=memory_format) for level, x in make_pyramid().items()}
    boxes = [make_boxes(), make_boxes()[7:40:3]]
    assert set(level_of_boxes(boxes[0], CANONICAL).tolist()) == {2, 3, 4, 5, 6}
    pooled = pool_pyramid(pyramid, boxes, CANONICAL)
    torch.testing.assert_close(pooled, pool_level_by_level(pyramid, boxes), rtol=0, atol=2e-5)


def test_gradients_are_those_of_roi_align():
    boxes = [make_boxes(), make_boxes()[::2]]
    pyramid = {level: x.requires_grad_() for level, x in make_pyramid().items()}
    pooled = pool_pyramid(pyramid, boxes, CANONICAL)
    upstream = torch.randn_like(pooled)
    found = torch.autograd.grad(pooled, list(pyramid.values()), upstream)
    expected = torch.autograd.grad(pool_level_by_level(pyramid, boxes), list(pyramid.values()), upstream)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_images_without_boxes_give_no_features():
    none = torch.empty(0, 4)
    assert pool_pyramid(make_pyramid(), [none, none], CANONICAL).shape == (0, 5, ROI_SIZE, ROI_SIZE)
    pooled = pool_pyramid(make_pyramid(), [none, make_boxes()[:3]], CANONICAL)
    torch.testing.assert_close(pooled, pool_level_by_level(make_pyramid(), [none, make_boxes()[:3]]))


def test_features_keep_the_pyramid_s_precision_and_boxes_are_read_in_float32():
    pyramid = {level: x.bfloat16() for level, x in make_pyramid().items()}
    boxes = [make_boxes(), make_boxes()]
    pooled = pool_pyramid(pyramid, boxes, CANONICAL)
    assert pooled.dtype == torch.bfloat16
    exact = pool_pyramid({level: x.float() for level, x in pyramid.items()}, boxes, CANONICAL)
    torch.testing.assert_close(pooled.float(), exact, rtol=0, atol=0.05)


def test_the_head_gives_signed_embeddings_and_four_deltas_in_float32():
    torch.manual_seed(0)
    head = BoxHead(5, 8, 16, 12, norm_momentum=0.1, norm_eps=1e-4)
    embeddings, deltas = head(torch.randn(9, 5, ROI_SIZE, ROI_SIZE))
    assert embeddings.shape == (9, 12) and deltas.shape == (9, 4)
    assert embeddings.min() < 0  # a projection after the last ReLU
    assert embeddings.dtype == deltas.dtype == torch.float32


def test_region_deltas_are_decoded_with_the_paper_s_weights():
    box = torch.tensor([[0.0, 0, 20, 10]])
    moved = REGION_CODER.decode_single(torch.tensor([[1.0, -1.0, 0.0, 0.0]]), box)
    torch.testing.assert_close(moved, torch.tensor([[2.0, -1, 22, 9]]))  # a tenth of a side

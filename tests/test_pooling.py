"""RoIAlign's convention, and region embeddings against open_clip's own attention pool."""

import pytest
import torch
from open_clip.modified_resnet import AttentionPool2d
from torchvision.ops import roi_align

from fvlm.vlm import pooling
from fvlm.vlm.clip import ImageTower, build_clip
from fvlm.vlm.pooling import pool_crops, pool_regions, roi_align_at_centres

STRIDE = 32


def peaked_pool(grid, channels=32, heads=4, dim=12):
    """A random attention pool whose attention is far from uniform, so that a wrong score shows."""
    torch.manual_seed(grid)
    pool = AttentionPool2d(grid, channels, heads, dim).requires_grad_(False)
    for projection in (pool.q_proj, pool.k_proj):
        projection.weight.mul_(4)
    pool.positional_embedding.mul_(3)
    return pool


def odd_boxes(width, height, count=60):
    """Boxes of every kind on a picture of `width` x `height` pixels: ordinary, tiny, huge, half and far outside."""
    torch.manual_seed(1)
    corner = torch.rand(count, 2) * torch.tensor([width, height])
    sides = torch.rand(count, 2) * torch.tensor([width, height]) * torch.logspace(-3, 0.5, count)[:, None]
    boxes = torch.cat([corner, corner + sides], dim=1)
    special = [
        [0, 0, width, height],
        [-16, -16, width - 16, height - 16],
        [-200, -200, width + 200, height + 200],
        [-90, -90, -70, -70],
        [width + 70, 0, width + 90, height],
        [width - 1, height - 1, width, height],
        [10.25, 7.5, 10.25, 7.5],
        [-31, -31, 31, 31],
        [-33, -33, 33, 33],
    ]
    return torch.cat([boxes, torch.tensor(special, dtype=torch.float32)])


def ramp(height=4, width=5):
    """(1, 1, H, W) with value 10 y + x at cell (y, x): a bilinear sample at (y, x) is 10 y + x."""
    return (10.0 * torch.arange(height)[:, None] + torch.arange(width)).view(1, 1, height, width)


def test_a_bin_is_sampled_once_at_its_centre_without_a_half_pixel_shift():
    crop = roi_align_at_centres(ramp(), [torch.tensor([[32.0, 0.0, 96.0, 64.0]])], 2, STRIDE)
    # x from 1 to 3 cells, so bin centres 1.5 and 2.5; y from 0 to 2, so 0.5 and 1.5
    torch.testing.assert_close(crop[0, 0], torch.tensor([[6.5, 7.5], [16.5, 17.5]]))


def test_a_box_smaller_than_a_cell_is_not_stretched_to_one():
    crop = roi_align_at_centres(ramp(), [torch.tensor([[32.0, 64.0, 36.0, 72.0]])], 1, STRIDE)
    torch.testing.assert_close(crop.flatten(), torch.tensor([10 * (68 / 32) + 34 / 32]))


@pytest.mark.parametrize(
    ("centre", "value"),
    [(-1.01, 0.0), (-0.99, 10.0), (0.0, 10.0), (3.5, 13.5), (4.0, 14.0), (4.99, 14.0), (5.01, 0.0)],
)
def test_points_beyond_the_map_take_the_edge_for_one_cell_and_are_then_zero(centre, value):
    x, y = centre * STRIDE, 1.0 * STRIDE  # a point box on row 1 of a map 5 cells wide
    crop = roi_align_at_centres(ramp(), [torch.tensor([[x, y, x, y]])], 1, STRIDE)
    torch.testing.assert_close(crop.item(), value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_rows_times_map_times_columns_is_torchvision_s_roi_align(size):
    torch.manual_seed(0)
    height, width = 6, 9
    features = torch.randn(1, 3, height, width)
    boxes = odd_boxes(width * STRIDE, height * STRIDE)
    rows = pooling._bin_weights(boxes[:, 1], boxes[:, 3], size, height, STRIDE)
    columns = pooling._bin_weights(boxes[:, 0], boxes[:, 2], size, width, STRIDE)
    crops = torch.einsum("rih,chw,rjw->rcij", rows, features[0], columns)
    torch.testing.assert_close(crops, roi_align_at_centres(features, [boxes], size, STRIDE), rtol=0, atol=2e-5)
    official = roi_align(features, [boxes], size, 1 / STRIDE, sampling_ratio=1, aligned=False)  # stretches small boxes
    large = (boxes[:, 2:] - boxes[:, :2] >= STRIDE).all(dim=1)
    torch.testing.assert_close(crops[large], official[large], rtol=0, atol=5e-5)
    assert large.sum() > 10


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_two_taps_of_a_bin_are_its_weights_without_the_zeros(size):
    boxes = odd_boxes(9 * STRIDE, 6 * STRIDE)
    low, high, cells = boxes[:, 0], boxes[:, 2], torch.full((len(boxes),), 9.0)
    taps, weights = pooling.bin_taps(low, high, size, cells, torch.full_like(cells, STRIDE))
    assert taps.shape == weights.shape == (len(boxes), size, 2)
    assert taps.min() >= 0 and taps.max() <= 8
    dense = torch.zeros(len(boxes), size, 9).scatter_add(2, taps, weights)
    torch.testing.assert_close(dense, pooling._bin_weights(low, high, size, 9, STRIDE), rtol=0, atol=1e-6)
    assert (weights.sum(dim=2) == 0).any()  # some bins are beyond the map


@pytest.mark.parametrize(("grid", "heads"), [(2, 1), (2, 8), (3, 4), (7, 2), (7, 4)])
def test_regions_have_the_embedding_of_their_crops_by_open_clip_s_all_token_pool(grid, heads):
    pool = peaked_pool(grid, heads=heads)
    features = torch.randn(3, 32, 6, 9).relu()
    boxes = odd_boxes(9 * STRIDE, 6 * STRIDE)
    per_image = [boxes, boxes[:0], boxes[5:25]]
    crops = pool_crops(pool, features, per_image, grid=grid, stride=STRIDE)
    regions = pool_regions(pool, features, per_image, grid=grid, stride=STRIDE)
    assert regions.shape == (len(boxes) + 20, 12)
    torch.testing.assert_close(regions, crops, rtol=0, atol=1e-5)
    assert crops.std(dim=0).min() > 0.01  # regions do differ


def test_regions_taken_in_chunks_are_the_same(monkeypatch):
    pool, features = peaked_pool(3), torch.randn(1, 32, 6, 9)
    boxes = [odd_boxes(9 * STRIDE, 6 * STRIDE)]
    whole = pool_regions(pool, features, boxes, grid=3, stride=STRIDE)
    for regions_at_a_time in (1, 7):
        monkeypatch.setattr(pooling, "CHUNK_FLOATS", regions_at_a_time * 4 * 6 * 9)
        chunked = pool_regions(pool, features, boxes, grid=3, stride=STRIDE)
        torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool_them", [pool_crops, pool_regions])
def test_images_without_boxes_give_no_embeddings(pool_them):
    none = torch.empty(0, 4)
    embeddings = pool_them(peaked_pool(3), torch.randn(2, 32, 4, 4), [none, none], grid=3, stride=STRIDE)
    assert embeddings.shape == (0, 12)


@pytest.mark.parametrize("pool_them", [pool_crops, pool_regions])
def test_the_whole_image_moved_by_half_a_cell_has_clip_s_image_embedding(pool_them):
    torch.manual_seed(0)
    size = 96
    clip = build_clip(
        {
            "embed_dim": 16,
            "quick_gelu": True,
            "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": size},
            "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
        }
    )
    images = 3000 * torch.randn(2, 3, size, size)  # an untrained tower is nearly silent
    tower = ImageTower(clip.visual, "all")
    with torch.no_grad():
        expected = clip.encode_image(images)
        c5 = tower(images)["C5"]
        on_cells = torch.tensor([[0.0, 0.0, size, size]]) - STRIDE / 2
        regions = pool_them(tower.attnpool, c5, [on_cells, on_cells], grid=3, stride=STRIDE)
        torch.testing.assert_close(regions, expected, rtol=0, atol=1e-5)
        # F-VLM's convention samples the unmoved image between the cells, so it is near CLIP's embedding, not on it
        unmoved = torch.tensor([[0.0, 0.0, size, size]])
        between = pool_them(tower.attnpool, c5, [unmoved, unmoved], grid=3, stride=STRIDE)
        assert (between - expected).abs().max() > 1e-2


def test_half_precision_features_are_pooled_in_float32():
    pool, boxes = peaked_pool(3), [odd_boxes(128, 128)]
    features = torch.randn(1, 32, 4, 4).half()
    regions = pool_regions(pool, features, boxes, grid=3, stride=STRIDE)
    assert regions.dtype == torch.float32
    expected = pool_regions(pool, features.float(), boxes, grid=3, stride=STRIDE)
    torch.testing.assert_close(regions, expected, rtol=0, atol=0)


@pytest.mark.parametrize("pool_them", [pool_crops, pool_regions])
def test_a_grid_that_the_pool_was_not_trained_with_is_refused(pool_them):
    with pytest.raises(ValueError, match=r"grid=7 needs 50 positions, .* trained with 10; use grid=3"):
        pool_them(peaked_pool(3), torch.randn(1, 32, 4, 4), [torch.rand(2, 4)], grid=7, stride=STRIDE)

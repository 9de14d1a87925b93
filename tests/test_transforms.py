import pytest
import torch
from torch.nn import functional as F

from fvlm.data.transforms import fit, render, scale_jitter, scale_xyxy, visible

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def picture(height, width, seed=0):
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def picture_with_a_block(height, width, box):
    """A black picture, white inside `box` (whole pixels)."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = 255
    return image


def drawn(crop, canvas_size=32, mean=MEAN, std=STD):
    """(3, S, S): the canvas of one crop."""
    return render([crop], canvas_size, mean, std)[0]


def crop_of(image, boxes=(), *, seed=0, canvas_size=32, scale_range=(1.0, 1.0), flip=0.0):
    return scale_jitter(
        image,
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.Generator().manual_seed(seed),
        canvas_size=canvas_size,
        scale_range=scale_range,
        flip=flip,
    )


def jittered(image, boxes, *, mean=MEAN, std=STD, **options):
    crop, boxes = crop_of(image, boxes, **options)
    return drawn(crop, options.get("canvas_size", 32), mean, std), boxes


def resize_then_crop(image, *, seed, canvas_size, scale_range, flip, mean=MEAN, std=STD):
    """The reference: the whole picture resized, mirrored, cropped, normalised and padded, in the authors' order."""
    draws = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    side = round((scale_range[0] + (scale_range[1] - scale_range[0]) * draws[0]) * canvas_size)
    stored_hw = image.shape[1:]
    size_hw = [max(round(s * (side / max(stored_hw))), 1) for s in stored_hw]
    resized = F.interpolate(image[None].float(), size=size_hw, mode="bilinear", align_corners=False)[0]
    if draws[1] < flip:
        resized = resized.flip(2)
    top, left = (int(d * (max(s - canvas_size, 0) + 1)) for d, s in zip(draws[2:], size_hw, strict=True))
    shown = resized[:, top : top + canvas_size, left : left + canvas_size]
    normalised = (shown / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    canvas = torch.zeros(3, canvas_size, canvas_size)
    canvas[:, : shown.shape[1], : shown.shape[2]] = normalised
    return canvas


def smooth_picture(height, width):
    """Waves of some ten pixels, as photographs have: a place off by a rounding error changes no grey level."""
    y, x = torch.arange(height)[:, None], torch.arange(width)
    waves = [(x * a + y * b).sin() for a, b in ((0.6, 0.2), (0.1, 0.7), (0.4, 0.5))]
    return (127 + 100 * torch.stack(waves)).to(torch.uint8)


@pytest.mark.parametrize("size_hw", [(48, 64), (61, 37), (20, 20), (1, 90), (50, 2)])
@pytest.mark.parametrize("scale_range", [(0.1, 2.0), (1.0, 1.0), (2.0, 2.0), (0.1, 0.1)])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_drawing_only_the_crop_equals_resizing_the_whole_picture_and_then_cropping(size_hw, scale_range, flip):
    image = picture(*size_hw)
    for seed in range(12):
        options = {"seed": seed, "canvas_size": 40, "scale_range": scale_range, "flip": flip}
        canvas, _ = jittered(image, [], **options)
        torch.testing.assert_close(canvas, resize_then_crop(image, **options), rtol=0, atol=3e-4)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_at_full_size_a_canvas_is_within_a_hundredth_of_a_grey_level_of_the_reference(flip):
    image = smooth_picture(480, 640)
    for seed in (0, 4):
        options = {"seed": seed, "canvas_size": 1024, "scale_range": (1.3, 2.0), "flip": flip, "std": (1.0,) * 3}
        canvas, _ = jittered(image, [], **options)
        torch.testing.assert_close(canvas, resize_then_crop(image, **options), rtol=0, atol=0.01 / 255)


def test_a_crop_holds_the_stored_pixels_that_are_sampled_and_no_others():
    image = picture(480, 640)
    for seed in range(20):
        crop, _ = crop_of(image, seed=seed, canvas_size=1024, scale_range=(2.0, 2.0), flip=0.5)
        assert crop.size_hw == (1024, 1024)
        assert crop.pixels.dtype == torch.uint8
        # 1024 samples, 0.3125 stored pixels apart, of which each reads the two around it
        assert all(320 <= side <= 322 for side in crop.pixels.shape[1:])
        for side, start, step in zip(crop.pixels.shape[1:], crop.start_yx, crop.step_yx, strict=True):
            ends = sorted((start, start + 1023 * step))
            assert -0.5 <= ends[0] < 1
            assert side - 2 <= ends[1] < side
    assert fit(image, 1024).pixels.shape == image.shape


def test_a_canvas_depends_neither_on_its_neighbours_nor_on_the_number_of_threads():
    crops = [crop_of(picture(50, 70, seed), seed=seed, scale_range=(0.5, 2.0), flip=0.5)[0] for seed in range(4)]
    together = render(crops, 32, MEAN, STD)
    assert together.shape == (4, 3, 32, 32)
    assert all(torch.equal(canvas, drawn(crop)) for canvas, crop in zip(together, crops, strict=True))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert torch.equal(render(crops, 32, MEAN, STD), together)
    finally:
        torch.set_num_threads(threads)


def test_the_longest_side_fills_the_canvas_and_the_aspect_is_kept():
    crop = fit(picture(20, 40), 64)
    assert crop.size_hw == (32, 64)
    canvas = drawn(crop, 64)
    assert canvas.shape == (3, 64, 64)
    assert canvas.dtype == torch.float32
    torch.testing.assert_close(scale_xyxy((20, 40), crop.size_hw), torch.full((4,), 1.6))


def test_values_are_normalised_with_mean_and_std_and_the_padding_is_zero_afterwards():
    image = torch.full((3, 8, 16), 255, dtype=torch.uint8)
    canvas = drawn(fit(image, 16), 16)
    expected = torch.tensor([(1 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    torch.testing.assert_close(canvas[:, 3, 3], expected)
    assert canvas[:, 8:].eq(0).all()
    assert canvas[:, :8].ne(0).all()


def test_a_picture_of_the_canvas_size_passes_unresampled():
    image = picture(16, 16)
    canvas = drawn(fit(image, 16), 16, (0.0,) * 3, (1.0,) * 3)
    torch.testing.assert_close(canvas, image / 255, rtol=0, atol=1e-6)


def test_resizing_is_bilinear_without_antialias():
    columns = torch.tensor([0, 100, 200, 40, 80, 120, 60, 20], dtype=torch.uint8).expand(3, 8, 8)
    canvas = drawn(fit(columns, 2), 2, (0.0,) * 3, (1.0,) * 3)
    # cell 0 is centred between 100 and 200; an antialiased resize would average in the other pixels as well
    torch.testing.assert_close(canvas[0, 0] * 255, torch.tensor([150.0, 90.0]))


def test_boxes_map_to_the_canvas_and_back_by_axis():
    size_hw = fit(picture(33, 50), 32).size_hw  # 21.12 rows are rounded to 21
    assert size_hw == (21, 32)
    scale, whole = scale_xyxy((33, 50), size_hw), torch.tensor([0.0, 0.0, 50.0, 33.0])
    torch.testing.assert_close(whole * scale, torch.tensor([0.0, 0.0, 32.0, 21.0]))
    torch.testing.assert_close(whole * scale / scale, whole)


@pytest.mark.parametrize("size_hw", [(20, 40), (70, 31), (32, 32), (1, 90)])
def test_jitter_of_scale_one_without_flip_equals_the_test_time_form(size_hw):
    image = picture(*size_hw)
    expected = fit(image, 32)
    crop, boxes = crop_of(image, [[1, 0, size_hw[1], size_hw[0]]])
    assert torch.equal(crop.pixels, expected.pixels)
    assert crop[1:] == expected[1:]
    scale = scale_xyxy(size_hw, expected.size_hw)
    torch.testing.assert_close(boxes[0], torch.tensor([1.0, 0, size_hw[1], size_hw[0]]) * scale)


def test_the_same_generator_seed_gives_the_same_crop_and_another_a_different_one():
    first, second, third = (
        jittered(picture(40, 30), [], seed=s, scale_range=(0.5, 2.0), flip=0.5)[0] for s in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_jitter_takes_four_numbers_from_its_generator_whatever_the_picture_and_none_from_elsewhere():
    global_state = torch.get_rng_state()
    states = []
    for image, scale_range, flip in ((picture(8, 8), (1.0, 1.0), 0.0), (picture(90, 20), (0.1, 2.0), 1.0)):
        generator = torch.Generator().manual_seed(3)
        scale_jitter(image, torch.zeros(0, 4), generator, canvas_size=16, scale_range=scale_range, flip=flip)
        states.append(generator.get_state())
    assert torch.equal(*states)
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_follow_their_pixels_through_scale_crop_and_flip(flip):
    block = [6, 4, 44, 34]
    image = picture_with_a_block(40, 60, block)
    cropped = 0
    for seed in range(30):
        canvas, boxes = jittered(
            image, [block], seed=seed, scale_range=(0.3, 2.0), flip=flip, mean=(0.0,) * 3, std=(1.0,) * 3
        )
        bright = (canvas[0] > 0.5).nonzero()
        if not len(bright):
            continue
        seen = torch.cat([bright.amin(0).flip(0), bright.amax(0).flip(0) + 1]).float()
        cropped += int(bright.amin() == 0 or bright.amax() == 31)
        torch.testing.assert_close(boxes[0], seen, rtol=0, atol=0.6)  # whole pixels against exact edges
    assert cropped > 5  # or the crop was not tried


def test_the_scale_spans_its_range_and_every_crop_offset_occurs():
    sides, corners = [], set()
    for seed in range(200):
        canvas, _ = jittered(picture(8, 8), [], seed=seed, canvas_size=8, scale_range=(0.25, 1.0))
        sides.append(int(canvas[0].ne(0).any(dim=0).sum()))
    assert min(sides) == 2
    assert max(sides) == 8
    ramp = torch.arange(10, dtype=torch.uint8).expand(3, 10, 10)
    for seed in range(200):
        canvas, _ = jittered(
            ramp, [], seed=seed, canvas_size=8, scale_range=(1.25, 1.25), mean=(0.0,) * 3, std=(1.0,) * 3
        )
        corners.add(round(float(canvas[0, 0, 0]) * 255))
    assert corners == {0, 1, 2}


def test_a_box_outside_the_crop_is_not_visible_and_slivers_below_a_pixel_are_not_either():
    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 0, 4], [3, 3, 3.5, 30], [5, 5, 6, 6], [2, 9, 9, 9]])
    assert visible(boxes).tolist() == [True, False, False, True, False]


def test_no_boxes_stay_no_boxes():
    _, boxes = jittered(picture(10, 10), [], flip=1.0, scale_range=(2.0, 2.0))
    assert boxes.shape == (0, 4)
    assert visible(boxes).shape == (0,)

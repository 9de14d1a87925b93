import pytest
import torch

from fvlm.data.transforms import resize_to_canvas, scale_jitter, visible

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def picture(height, width, seed=0):
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def picture_with_a_block(height, width, box):
    """A black picture, white inside `box` (whole pixels)."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = 255
    return image


def jittered(image, boxes, *, seed=0, canvas_size=32, scale_range=(1.0, 1.0), flip=0.0, mean=MEAN, std=STD):
    generator = torch.Generator().manual_seed(seed)
    return scale_jitter(
        image,
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        generator,
        canvas_size=canvas_size,
        scale_range=scale_range,
        flip=flip,
        mean=mean,
        std=std,
    )


def test_the_longest_side_fills_the_canvas_and_the_aspect_is_kept():
    resized = resize_to_canvas(picture(20, 40), 64, MEAN, STD)
    assert resized.canvas.shape == (3, 64, 64)
    assert resized.canvas.dtype == torch.float32
    assert resized.size_hw == (32, 64)
    torch.testing.assert_close(resized.scale_xyxy, torch.full((4,), 1.6))


def test_values_are_normalised_with_mean_and_std_and_the_padding_is_zero_afterwards():
    image = torch.full((3, 8, 16), 255, dtype=torch.uint8)
    canvas = resize_to_canvas(image, 16, MEAN, STD).canvas
    expected = torch.tensor([(1 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    torch.testing.assert_close(canvas[:, 3, 3], expected)
    assert canvas[:, 8:].eq(0).all()
    assert canvas[:, :8].ne(0).all()


def test_a_picture_of_the_canvas_size_passes_unresampled():
    image = picture(16, 16)
    canvas = resize_to_canvas(image, 16, (0.0,) * 3, (1.0,) * 3).canvas
    torch.testing.assert_close(canvas, image / 255, rtol=0, atol=1e-7)


def test_resizing_is_bilinear_without_antialias():
    columns = torch.tensor([0, 100, 200, 40, 80, 120, 60, 20], dtype=torch.uint8).expand(3, 8, 8)
    canvas = resize_to_canvas(columns, 2, (0.0,) * 3, (1.0,) * 3).canvas
    # cell 0 is centred between 100 and 200; an antialiased resize would average in the other pixels as well
    torch.testing.assert_close(canvas[0, 0] * 255, torch.tensor([150.0, 90.0]))


def test_boxes_map_to_the_canvas_and_back_by_axis():
    resized = resize_to_canvas(picture(33, 50), 32, MEAN, STD)  # 21.12 rows are rounded to 21
    assert resized.size_hw == (21, 32)
    whole = torch.tensor([0.0, 0.0, 50.0, 33.0])
    torch.testing.assert_close(whole * resized.scale_xyxy, torch.tensor([0.0, 0.0, 32.0, 21.0]))
    torch.testing.assert_close(whole * resized.scale_xyxy / resized.scale_xyxy, whole)


@pytest.mark.parametrize("size_hw", [(20, 40), (70, 31), (32, 32), (1, 90)])
def test_jitter_of_scale_one_without_flip_equals_the_test_time_form(size_hw):
    image = picture(*size_hw)
    expected = resize_to_canvas(image, 32, MEAN, STD)
    canvas, boxes = jittered(image, [[1, 0, size_hw[1], size_hw[0]]])
    torch.testing.assert_close(canvas, expected.canvas, rtol=0, atol=0)
    torch.testing.assert_close(boxes[0], torch.tensor([1.0, 0, size_hw[1], size_hw[0]]) * expected.scale_xyxy)


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
        scale_jitter(
            image, torch.zeros(0, 4), generator, canvas_size=16, scale_range=scale_range, flip=flip, mean=MEAN, std=STD
        )
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

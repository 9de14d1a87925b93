import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from fvlm.report import pictures
from fvlm.report.pictures import Box, Comparison
from fvlm.report.plots import COLOURS

CAT, TIE, CUP, PERSON = 17, 32, 47, 1
NOVEL = {CAT, TIE, CUP}
CLASSES: dict[int, tuple[str, pictures.Group]] = {CAT: ("cat", "novel"), PERSON: ("person", "base")}


def annotation(image_id, category_id, iscrowd=0):
    return {"image_id": image_id, "category_id": category_id, "iscrowd": iscrowd, "bbox": [0, 0, 1, 1]}


def has(image, colour) -> np.ndarray:
    return (np.asarray(image) == ImageColor.getrgb(colour)).all(-1)


def test_each_next_picture_shows_the_most_novel_classes_not_shown_before():
    annotations = [
        *(annotation(1, category) for category in (CAT, TIE)),
        *(annotation(2, category) for category in (CAT, TIE)),
        annotation(3, CUP),
        annotation(4, PERSON),
    ]
    assert pictures.choose_pictures(annotations, NOVEL, 4) == [1, 3, 2, 4]
    assert pictures.choose_pictures(annotations, NOVEL, 2) == [1, 3]


def test_the_order_of_annotations_does_not_change_the_choice():
    annotations = [annotation(image, category) for image in (9, 4, 7) for category in (CAT, CUP)]
    assert pictures.choose_pictures(annotations, NOVEL, 2) == pictures.choose_pictures(annotations[::-1], NOVEL, 2)
    assert pictures.choose_pictures(annotations, NOVEL, 1) == [4]


def test_crowds_and_base_objects_do_not_count_as_novel():
    annotations = [annotation(1, CAT, iscrowd=1), annotation(1, PERSON), annotation(2, TIE)]
    assert pictures.choose_pictures(annotations, NOVEL, 1) == [2]


def test_no_more_pictures_are_chosen_than_there_are_and_none_where_none_is_asked_for():
    annotations = [annotation(1, CAT), annotation(2, PERSON)]
    assert pictures.choose_pictures(annotations, NOVEL, 9) == [1, 2]
    assert pictures.choose_pictures(annotations, NOVEL, 0) == []
    assert pictures.choose_pictures([], NOVEL, 3) == []


def test_results_below_the_threshold_are_left_out_and_the_best_comes_first():
    results = [
        {"image_id": 5, "category_id": CAT, "bbox": [1, 2, 10, 20], "score": score} for score in (0.29, 0.3, 0.9)
    ]
    (boxes,) = pictures.boxes_by_image(results, CLASSES, score_threshold=0.3).values()
    assert boxes == [Box((1, 2, 11, 22), "cat", "novel", 0.9), Box((1, 2, 11, 22), "cat", "novel", 0.3)]


@pytest.mark.parametrize("shape", [(64, 64), (50, 100), (900, 600)])
def test_a_box_is_drawn_where_it_lies_whatever_the_size_of_the_picture(shape):
    height, width = shape
    box = Box((width * 0.25, height * 0.5, width * 0.75, height * 0.9), "cat", "novel", 0.8)
    image = pictures.draw(np.full((*shape, 3), 128, np.uint8), [], [box])
    assert max(image.size) == pictures.PANEL_SIDE
    rows, columns = np.nonzero(has(image, COLOURS["novel"]))
    scale = pictures.PANEL_SIDE / max(shape)
    assert columns.min() == pytest.approx(box.xyxy[0] * scale, abs=1.5)
    assert columns.max() == pytest.approx(box.xyxy[2] * scale, abs=1.5)
    assert rows.max() == pytest.approx(box.xyxy[3] * scale, abs=1.5)


def test_novel_and_base_detections_have_different_colours_and_truth_has_neither():
    grey, box = np.full((64, 64, 3), 128, np.uint8), (10.0, 20.0, 50.0, 50.0)
    pairs: tuple[tuple[pictures.Group, pictures.Group], ...] = (("novel", "base"), ("base", "novel"))
    for group, other in pairs:
        image = pictures.draw(grey, [], [Box(box, "thing", group, 0.5)])
        assert has(image, COLOURS[group]).any()
        assert not has(image, COLOURS[other]).any()
    truth = pictures.draw(grey, [Box(box, "thing", "novel")], [])
    assert not has(truth, COLOURS["novel"]).any()
    assert has(truth, "white").any()
    assert has(truth, "black").any()


def test_boxes_outside_or_without_area_are_drawn_without_error():
    boxes = [
        Box((-50, -50, 500, 500), "cat", "novel"),
        Box((70, 70, 80, 80), "cat", "novel"),
        Box((5, 5, 5, 5), "x", "base"),
    ]
    assert pictures.draw(np.zeros((64, 64, 3), np.uint8), boxes, boxes).size == (448, 448)


def test_the_labels_of_equal_boxes_do_not_lie_on_each_other():
    taken: list[pictures.XYXY] = []
    size = (448, 448)
    canvas = pictures.ImageDraw.Draw(Image.new("RGB", size))
    for name in ("cat", "dog", "cow", "person"):
        taken.append(pictures._label(canvas, Box((0, 0, 0, 0), name, "base"), (100, 100, 300, 300), size, taken))
    overlaps = [pictures._overlap(a, b) for i, a in enumerate(taken) for b in taken[:i]]
    assert overlaps == [0] * 6
    assert all(min(place) >= 0 and max(place) <= 448 for place in taken)


def test_labels_of_equal_boxes_get_places_apart_inside_the_picture():
    places = pictures.label_places([("cat 0.90", (0, 0, 40, 40)), ("dog 0.80", (0, 0, 40, 40))], (448, 448))
    assert places[0] != places[1]
    assert pictures._overlap(*places) == 0
    assert all(0 <= x0 < x1 <= 448 and 0 <= y0 < y1 <= 448 for x0, y0, x1, y1 in places)


def test_the_sheet_holds_every_panel_and_says_so_where_there_is_none():
    red, green = (Image.new("RGB", (448, 300), colour) for colour in ("#ff0000", "#00ff00"))
    for count in (1, 2, 3):
        sheet = pictures.sheet([Comparison(7, red, green)] * count, title="t")
        assert has(sheet, "#ff0000").sum() == has(sheet, "#00ff00").sum() == count * 448 * 300
    assert pictures.sheet([], title="t").size[1] < 200


def test_encoding_is_lossless_as_png_and_repeatable():
    image = pictures.draw(np.full((64, 64, 3), 90, np.uint8), [], [Box((1, 30, 60, 60), "cat", "novel", 0.7)])
    assert pictures.encode(image, "PNG") == pictures.encode(image, "PNG")
    assert Image.open(io.BytesIO(pictures.encode(image, "PNG"))).tobytes() == image.tobytes()
    assert Image.open(io.BytesIO(pictures.encode(image, "WEBP"))).format == "WEBP"

import numpy as np
import pytest
from test_ap import dataset, result, truth

from fvlm.evaluation.hits import match
from fvlm.report import gallery

# pictures 1 to 6 have a cat each, picture 5 a dog (novel) too; picture 7 is empty
BOX = [10, 10, 40, 40]
COCO = dataset(
    [*(truth(i, i, 1, BOX) for i in range(1, 7)), truth(7, 5, 2, [100, 100, 40, 40])], names=("cat", "dog"), images=7
)
FOUND = [result(i, 1, BOX, 0.9) for i in (1, 2, 5)]
RESULTS = [*FOUND, result(2, 2, [150, 150, 20, 20], 0.8), result(5, 2, [100, 100, 40, 40], 0.8)]


def exhibits(results=RESULTS, of_each=2, side=200, **changes):
    options = {"score_threshold": 0.3, "read": lambda image_id: np.full((side, side, 3), image_id, np.uint8), **changes}
    return gallery.exhibits(COCO, results, FOUND, {"dog"}, of_each=of_each, **options)


def test_f1_equals_values_worked_by_hand():
    f1 = gallery.f1_by_image(match(RESULTS, COCO))
    assert f1 == {1: 1, 2: pytest.approx(2 / 3), 3: 0, 4: 0, 5: 1, 6: 0}


def test_best_and_worst_go_by_f1_and_no_picture_is_shown_twice():
    chosen = gallery.choose(match(RESULTS, COCO), {"dog"}, 2)
    assert chosen[:4] == [("best", 5), ("best", 1), ("worst", 3), ("worst", 4)]  # 5 shows a novel box
    assert sorted(chosen[4:]) == [("random", 2), ("random", 6)]
    assert chosen == gallery.choose(match(RESULTS, COCO), {"dog"}, 2)


def test_fewer_pictures_than_asked_for_and_none_at_all_are_shown_as_they_are():
    assert len(gallery.choose(match(RESULTS, COCO), {"dog"}, 50)) == 6
    assert exhibits(of_each=0) == []


def test_panels_say_what_was_found_and_what_is_wrong():
    shown = {exhibit.image_id: exhibit for exhibit in exhibits()}
    truths, fused, alone = shown[5].panels
    assert [panel.title for panel in shown[5].panels] == ["ground truth", "fused", "detector only"]
    assert (truths.words, fused.words) == ("1 dog (novel) found, 1 cat found", "1 dog (novel) right, 1 cat right")
    assert alone.words == "1 cat right"
    assert [mark.right for mark in shown[3].panels[0].marks] == [False]
    assert shown[2].panels[1].words == "1 dog (novel) wrong, 1 cat right"
    assert shown[2].names == ["cat", "dog"]


def test_detections_below_the_threshold_are_neither_drawn_nor_counted():
    shown = {exhibit.image_id: exhibit for exhibit in exhibits(score_threshold=0.85)}
    assert shown[2].panels[1].words == "1 cat right"
    assert shown[2].f1 == 1


@pytest.mark.parametrize(("side", "stored"), [(200, 200), (896, 448)])
def test_boxes_are_in_the_panels_pixels_and_large_pictures_are_stored_smaller(side, stored):
    exhibit = exhibits(side=side)[1]
    assert exhibit.image_id == 1
    assert exhibit.size == (448, 448)
    assert exhibit.picture.size == (stored, stored)
    assert exhibit.panels[1].marks[0].xyxy == pytest.approx([v * 448 / side for v in (10, 10, 50, 50)], abs=0.06)


def test_a_detection_on_a_crowd_is_not_shown():
    crowd = dataset([truth(1, 1, 1, BOX), truth(2, 1, 1, [100, 100, 90, 90], iscrowd=1)], names=("cat", "dog"))
    results = [result(1, 1, BOX, 0.9), result(1, 1, [120, 120, 20, 20], 0.9)]
    (exhibit,) = gallery.exhibits(
        crowd,
        results,
        [],
        set(),
        of_each=1,
        score_threshold=0.3,
        read=lambda _: np.zeros((200, 200, 3), np.uint8),
    )
    assert exhibit.panels[1].words == "1 cat right"
    assert exhibit.f1 == 1

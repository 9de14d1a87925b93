"""The VLM alone on ground-truth boxes, and proposals alone, by hand."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import make_coco
from raw_world import made_up_coco, made_up_raw
from test_detector import EMBED_DIM, make_detector

from fvlm.data.coco import load_instances
from fvlm.data.dataset import ValidationPictures
from fvlm.data.loading import ValidationBatch, validation_batches
from fvlm.data.splits import base_names, build_val_split, novel_names
from fvlm.data.transforms import scale_xyxy
from fvlm.evaluation.regions import VARIANTS, BoxClasses, average_recall, best_overlaps, classify_boxes
from fvlm.params import Detect, load_params

NAMES = [*base_names(), *novel_names()]


@pytest.fixture(scope="module")
def named() -> BoxClasses:
    """Six boxes of classes 0, 0, 0, 0, 1 and 5, all called 0 but the last."""
    truths = torch.tensor([0, 0, 0, 0, 1, 5])
    return BoxClasses(truths=truths, guesses={"as_it_is": torch.tensor([0, 0, 0, 0, 0, 5])})


def test_naming_everything_after_the_most_frequent_class_gains_nothing_in_the_mean_over_classes(named):
    assert named.top1("as_it_is", [0, 1]) == pytest.approx(80)
    assert named.largest_share([0, 1]) == pytest.approx(80)
    assert named.class_mean("as_it_is", [0, 1]) == pytest.approx(50)


def test_groups_are_counted_apart_and_classes_without_a_box_leave_the_mean(named):
    assert (named.count([0, 1]), named.count([5]), named.count([7])) == (5, 1, 0)
    assert named.class_mean("as_it_is", [5, 6, 7]) == pytest.approx(100)
    assert named.top1("as_it_is", [7]) is named.class_mean("as_it_is", [7]) is named.largest_share([7]) is None


def test_variants_move_boxes_by_a_tenth_of_their_sides_and_by_half_a_cell():
    box = torch.tensor([[100.0, 200, 140, 220]])  # 40 x 20
    moved = {name: variant(box)[0].tolist() for name, variant in VARIANTS.items()}
    assert moved == {
        "as_it_is": [100, 200, 140, 220],
        "left": [96, 200, 136, 220],
        "right": [104, 200, 144, 220],
        "up": [100, 198, 140, 218],
        "down": [100, 202, 140, 222],
        "half_a_cell_up_left": [84, 184, 124, 204],
        "half_a_cell_down_right": [116, 216, 156, 236],
    }


def batches_of(pictures: ValidationPictures) -> list[ValidationBatch]:
    return list(validation_batches(pictures, Detect(batch_size=3, workers=0), device=torch.device("cpu")))


@pytest.mark.parametrize("vlm_crop", ["authors", "aligned"])
def test_boxes_are_named_as_the_detector_would_name_them_as_proposals(tmp_path, vlm_crop, monkeypatch):
    root = make_coco(tmp_path, train_images=1, val_images=8)
    split = build_val_split(load_instances(root / "annotations" / "instances_val2017.json"), "generalized")
    pictures = ValidationPictures(split, root / "val2017", canvas_size=128, mean=(0.5,) * 3, std=(0.3,) * 3)
    detector = make_detector(load_params("recipes/emoji.yaml"), vlm_crop=vlm_crop).eval()
    batches = batches_of(pictures)
    torch.manual_seed(3)
    corners = 128 * torch.rand(len(NAMES), 2, 2)
    places = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    with torch.no_grad():
        text = detector.embed_by_vlm(detector.tower(batches[0].images[:1])["C5"], [places])
    common = F.normalize(
        text.mean(0), dim=0
    )  # of a random tower's embeddings; without it in the "texts" answers differ
    text = text - (text @ common)[:, None] * common
    named = classify_boxes(detector, batches, split, text, NAMES)

    expected, truths = [], []
    for place, image_id in enumerate(pictures.image_ids.tolist()):
        batch = batches[place // 3]
        size_hw = batch.sizes_hw[place % 3]
        of_image = [a for a in split["annotations"] if a["image_id"] == image_id and not a["iscrowd"]]
        if not of_image:
            continue
        x, y, w, h = torch.tensor([a["bbox"] for a in of_image]).unbind(1)
        boxes = torch.stack([x, y, x + w, y + h], dim=1) * scale_xyxy(batch.stored_hw[place % 3], size_hw)
        monkeypatch.setattr(detector, "_propose", lambda *_, boxes=boxes: [(boxes, torch.ones(len(boxes)))])
        (regions,) = detector.detect(batch.images[place % 3][None], [size_hw], text)
        expected += regions.vlm_similarity.argmax(dim=1).tolist()
        name_of = {c["id"]: c["name"] for c in split["categories"]}
        truths += [NAMES.index(name_of[a["category_id"]]) for a in of_image]
    assert named.guesses["as_it_is"].tolist() == expected
    assert named.truths.tolist() == truths
    assert len(set(expected)) > 1, "a constant answer would prove nothing"


def test_a_split_without_boxes_names_nothing(tmp_path):
    root = make_coco(tmp_path, train_images=1, val_images=2)
    split = build_val_split(load_instances(root / "annotations" / "instances_val2017.json"), "generalized")
    pictures = ValidationPictures(split, root / "val2017", canvas_size=64, mean=(0.5,) * 3, std=(0.3,) * 3)
    detector = make_detector(load_params("recipes/emoji.yaml")).eval()
    text = torch.randn(len(NAMES), EMBED_DIM)
    batches = batches_of(pictures)
    named = classify_boxes(detector, batches, {**split, "annotations": []}, text, NAMES)
    assert named.count(range(65)) == 0


def test_overlaps_are_with_the_nearest_proposal_of_the_same_picture_and_crowds_do_not_count():
    coco = made_up_coco(images=4)
    raw = made_up_raw(coco, proposals=2)
    x, y, w, h = coco["annotations"][0]["bbox"]
    proposals = raw.proposals.clone()
    proposals[0] = torch.tensor([x, y, x + w / 2, y + h])  # half of the first picture's first box
    proposals[1] = torch.tensor([0.0, 0, 1, 1])
    raw = dataclasses.replace(raw, proposals=proposals)
    only_first = {**coco, "annotations": coco["annotations"][:1]}
    assert best_overlaps(raw, only_first, NAMES).tolist() == pytest.approx([0.5])
    crowd = {**coco, "annotations": [coco["annotations"][0] | {"iscrowd": 1}]}
    assert len(best_overlaps(raw, crowd, NAMES)) == 0


def test_swapped_proposals_are_the_next_pictures_stretched_to_this_ones_size():
    coco = made_up_coco(images=2)
    raw = made_up_raw(coco, proposals=1)
    raw = dataclasses.replace(
        raw,
        image_sizes_hw=torch.tensor([[100, 200], [50, 50]]),
        proposals=torch.tensor([[0.0, 0, 1, 1], [10.0, 10, 20, 30]]),
    )
    annotation = coco["annotations"][0] | {"bbox": [40.0, 20.0, 40.0, 40.0]}  # x times 4, y times 2
    of_first = {**coco, "annotations": [annotation]}
    assert best_overlaps(raw, of_first, NAMES, swapped=True).tolist() == pytest.approx([1.0])
    assert best_overlaps(raw, of_first, NAMES).tolist() == [0.0]


def test_average_recall_is_the_mean_over_ten_thresholds():
    assert average_recall(torch.tensor([1.0, 0.0])) == pytest.approx(50)
    assert average_recall(torch.tensor([0.62])) == pytest.approx(30)  # found at .50, .55 and .60
    assert average_recall(torch.zeros(0)) is None

"""What real COCO 2017 is known to hold, from its annotation file to what training sees.

Source of the cases: cocoapi#355 and #462, and what others counted in the published files.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fvlm import layout
from fvlm.data.coco import category_records, load_instances
from fvlm.data.dataset import TrainingPictures, read_picture
from fvlm.data.splits import build_train_split, build_val_split, count_row, oddities
from fvlm.params import load_params
from fvlm.stages import download, splits

PERSON, DOG, HOT_DOG = 1, 18, 58
WIDTH, HEIGHT = 640, 426
RECIPE = load_params(Path(__file__).parents[1] / "recipes" / "emoji.yaml")
ONE_TO_ONE = dataclasses.replace(RECIPE.train, scale_jitter=(1.0, 1.0), flip=0.0, max_boxes=100)

# image -> (annotation id, category, box, iscrowd); ids and boxes of the first three lines are COCO's
ANNOTATIONS: dict[int, list[tuple[int, int, list[float], int]]] = {
    200365: [(918, HOT_DOG, [296.65, 388.33, 1.03, 0.0], 0), (1, PERSON, [10.0, 20.0, 30.0, 40.0], 0)],
    550395: [(2206849, PERSON, [9.98, 188.56, 5.54, 0.0], 0), (2, PERSON, [10.0, 20.0, 30.0, 40.0], 0)],
    99844: [(3, PERSON, [5.0, 6.0, 70.0, 80.0], 0), (4, PERSON, [5.0, 6.0, 70.0, 80.0], 0)],
    7: [(900100, PERSON, [0.0, 0.0, 600.0, 400.0], 1), (5, PERSON, [10.0, 20.0, 30.0, 40.0], 0)],
    8: [(900101, PERSON, [0.0, 0.0, 600.0, 400.0], 1)],
    9: [(6, DOG, [10.0, 20.0, 30.0, 40.0], 0)],
    10: [],
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cases as a folder in COCO's layout; every picture is grey but those of other tests."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "coco"
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    annotations = []
    for image_id, objects in ANNOTATIONS.items():
        Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 150)).save(root / "train2017" / f"{image_id:012d}.jpg")
        for annotation_id, category_id, bbox, iscrowd in objects:
            run_lengths = {"size": [HEIGHT, WIDTH], "counts": [0, 100, WIDTH * HEIGHT - 100]}
            annotations.append(
                {
                    "id": annotation_id,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": iscrowd,
                    "segmentation": run_lengths if iscrowd else [[bbox[0], bbox[1]] * 3],
                }
            )
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in ANNOTATIONS]
    coco = {"images": images, "annotations": annotations, "categories": category_records()}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(coco))
    return root


@pytest.fixture
def coco(root: Path) -> dict[str, Any]:
    return load_instances(root / "annotations" / "instances_train2017.json")


def targets(split: dict[str, Any], root: Path) -> dict[int, torch.Tensor]:
    """Image id -> the boxes that training sees, on a canvas of the picture's own size."""
    pictures = TrainingPictures(split, root / "train2017", ONE_TO_ONE, canvas_size=WIDTH, mean=(0, 0, 0), std=(1, 1, 1))
    return {int(image_id): pictures[0, index].boxes for index, image_id in enumerate(pictures.image_ids)}


def ids_of(split: dict[str, Any], image_id: int) -> list[int]:
    return [a["id"] for a in split["annotations"] if a["image_id"] == image_id]


def test_boxes_without_height_are_counted_and_kept_in_the_split_but_never_trained_on(coco, root):
    split = build_train_split(coco, "zsd", keep_empty=False)
    assert ids_of(split, 550395) == [2206849, 2]  # else the published 665,387 would not come out
    assert ids_of(split, 200365) == [1]  # 918 is a hot dog, one of the 15 excluded
    found = targets(split, root)
    for image_id in (550395, 200365):
        assert found[image_id].tolist() == [[10.0, 20.0, 40.0, 60.0]]


def test_duplicate_boxes_are_kept_as_coco_has_them(coco, root):
    split = build_train_split(coco, "zsd", keep_empty=False)
    assert ids_of(split, 99844) == [3, 4]
    assert targets(split, root)[99844].tolist() == [[5.0, 6.0, 75.0, 86.0]] * 2


def test_crowds_are_counted_and_keep_their_image_but_are_no_box_to_train_on(coco, root):
    split = build_train_split(coco, "zsd", keep_empty=False)
    assert ids_of(split, 8) == [900101]
    assert count_row("train_zsd", split["images"], split["annotations"])["crowd"] == 2
    found = targets(split, root)
    assert found[7].tolist() == [[10.0, 20.0, 40.0, 60.0]]
    assert found[8].shape == (0, 4)


def test_crowds_of_the_scored_classes_stay_in_the_validation_splits(coco):
    assert [a["iscrowd"] for a in build_val_split(coco, "base")["annotations"] if a["image_id"] in (7, 8)] == [1, 0, 1]


def test_images_without_a_box_are_dropped_as_in_the_published_files_or_kept_with_empty_targets(coco, root):
    assert {9, 10} & targets(build_train_split(coco, "zsd", keep_empty=False), root).keys() == set()
    kept = targets(build_train_split(coco, "zsd", keep_empty=True), root)
    assert kept.keys() == ANNOTATIONS.keys()
    assert kept[9].shape == kept[10].shape == (0, 4)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_are_read_as_rgb(root, coco, mode):
    ramp = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, axis=0)
    stored = root / "train2017" / f"{200365:012d}.jpg"
    Image.fromarray(ramp).convert("RGB").convert(mode).save(stored, quality=95)
    with Image.open(stored) as picture:
        assert (picture.format, picture.mode) == ("JPEG", mode)
    pixels = read_picture(stored)
    assert pixels.shape == (3, HEIGHT, WIDTH)
    assert (pixels.int() - torch.from_numpy(ramp).int()).abs().max() <= 6
    assert 200365 in targets(build_train_split(coco, "zsd", keep_empty=False), root)


def test_the_splits_stage_says_which_boxes_are_odd(root, capsys):
    data = dataclasses.replace(
        RECIPE.data,
        dataset="coco_folder",
        root=str(root),
        val_images="train2017",
        val_annotations="annotations/instances_train2017.json",
    )
    params = dataclasses.replace(RECIPE, data=data)
    download.run(params)
    splits.run(params, "zsd")
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "splits: zsd: boxes 1 without width or height, which training leaves out (annotations 2206849)",
        "splits: zsd: boxes 1 equal to another one, kept (annotations 4)",
    ]
    assert layout.train_split("zsd").exists()


def test_a_split_without_oddities_has_nothing_to_say(coco):
    coco["annotations"] = [a for a in coco["annotations"] if a["id"] in (1, 3, 5, 900100)]
    assert oddities(coco) == []
    coco["annotations"] += [{**coco["annotations"][0], "id": 100 + i} for i in range(12)]
    (line,) = oddities(coco)
    assert line == "12 equal to another one, kept (annotations 100, 101, 102, 103, 104, 105, 106, 107, 108, 109, ...)"

"""A made-up validation set and the raw detections of a made-up detector on it, for the evaluation's tests."""

import numpy as np
import torch

from fvlm.data.coco import categories
from fvlm.data.splits import base_names, build_val_all, build_val_split, novel_names, supervised_names
from fvlm.evaluation.raw import RawDetections
from fvlm.params import Evaluate, Sweep

SIDE = 256
EVALUATE = Evaluate(
    images="split",
    vocabulary="scored",
    vlm_background=True,
    alpha=0.2,
    beta=0.45,
    renormalise=True,
    vlm_temperature=None,
    nms_iou=0.5,
    score_threshold=0.0,
    max_detections=100,
    sweep=Sweep(alpha=(0.0, 0.2), beta=(0.0, 0.45, 1.0), vlm_temperature=(None,), nms_iou=(None,)),
    processes=1,
)


def made_up_coco(images: int = 16, boxes: int = 5, seed: int = 0) -> dict:
    """All 80 categories; the scored 65 take turns, so that from 13 images of 5 boxes on each has a box; some crowds."""
    rng = np.random.default_rng(seed)
    scored = [category_id for category_id, name in categories() if name in base_names() + novel_names()]
    annotations = []
    for number in range(images * boxes):
        x, y, w, h = *rng.uniform(0, SIDE - 90, 2), *rng.uniform(20, 90, 2)
        annotations.append(
            {
                "id": number + 1,
                "image_id": 100 + number // boxes,
                "category_id": scored[number % len(scored)],
                "bbox": [float(x), float(y), float(w), float(h)],
                "area": float(w * h),
                "iscrowd": int(number >= len(scored) and rng.random() < 0.1),
            }
        )
    return {
        "images": [{"id": 100 + i, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": category_id, "name": name, "supercategory": ""} for category_id, name in categories()],
    }


def val_splits(coco: dict) -> dict[str, dict]:
    splits = {protocol: build_val_split(coco, protocol) for protocol in ("base", "novel", "generalized")}
    return {**splits, "all": build_val_all(coco)}


def made_up_raw(
    coco: dict, *, setting: str = "zsd", proposals: int = 25, seed: int = 0, skill: float = 0.35
) -> RawDetections:
    """A detector that knows the supervised classes and a VLM that knows all, both with errors."""
    rng = np.random.default_rng(seed)
    names = ["background", *(name for _, name in categories())]
    column_of = {category_id: column for column, (category_id, _) in enumerate(categories(), start=1)}
    supervised = supervised_names(setting)
    boxes, detector, vlm = [], [], []
    for image in coco["images"]:
        truths = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        for _ in range(proposals):
            similarity = rng.normal(0.1, 0.05, (2, len(names)))
            truth = truths[rng.integers(len(truths))] if truths and rng.random() < 0.7 else None
            if truth is None:
                x, y, w, h = *rng.uniform(0, SIDE - 90, 2), *rng.uniform(20, 90, 2)
                similarity[0, 0] += skill
            else:
                x, y, w, h = np.array(truth["bbox"]) + rng.normal(0, 5, 4)
                column = column_of[truth["category_id"]]
                similarity[0, column] += skill if names[column] in supervised else 0
                similarity[1, column] += rng.normal(skill / 3, 0.1)
            boxes.append([max(x, 0), max(y, 0), min(x + w, SIDE), min(y + h, SIDE)])
            detector.append(similarity[0])
            vlm.append(similarity[1])
    images = len(coco["images"])
    refined = torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4)
    return RawDetections(
        image_ids=torch.tensor([image["id"] for image in coco["images"]], dtype=torch.int64),
        image_sizes_hw=torch.full((images, 2), SIDE),
        offsets=torch.arange(images + 1) * proposals,
        proposals=refined + 1,
        proposal_scores=torch.linspace(1, 0, proposals).repeat(images),
        boxes=refined,
        detector_similarity=torch.tensor(np.array(detector)).reshape(-1, len(names)).half(),
        vlm_similarity=torch.tensor(np.array(vlm)).reshape(-1, len(names)).half(),
        names=tuple(names),
        category_ids=tuple(category_id for category_id, _ in categories()),
        detector_temperature=0.05,
        vlm_temperature=0.05,
        supervised=tuple(supervised),
        setting=setting,
        model_sha256="0" * 64,
    )

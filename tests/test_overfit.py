"""Targets, losses, box coding and evaluation fit together on real pictures: the head learns eight of them by heart."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_coco, real_pictures
from torch import Tensor, nn

from fvlm.data.coco import CocoDict, categories, load_instances
from fvlm.data.dataset import TrainingPictures, ValidationPictures
from fvlm.data.splits import base_names, build_train_split
from fvlm.detector.detector import build_detector
from fvlm.evaluation.ap import average_precision, group_mean
from fvlm.evaluation.detections import detections_of
from fvlm.evaluation.protocols import protocols
from fvlm.evaluation.raw import RawDetections
from fvlm.params import load_params
from fvlm.stages.detect import run_detector
from fvlm.training.loop import train
from fvlm.vlm.clip import ImageTower, VlmCard, build_clip, real_tower_config

pytestmark = pytest.mark.long

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "coco_folder.yaml"
PICTURES = 8
IMAGE_SIZE = 256
LEAST_SIDE = 0.1  # of a box, in longest sides of its picture: 26 pixels of the canvas, still an object there
STEPS = 120


class RememberingTower(nn.Module):
    """The frozen tower, run once for each picture: without jitter its answers never change."""

    tower: ImageTower

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.tower = tower
        self.mode = tower.mode
        self.seen: dict[bytes, dict[str, Tensor]] = {}

    @property
    def attnpool(self) -> nn.Module:
        return self.tower.attnpool

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        for image in images:
            if image.numpy().tobytes() not in self.seen:
                self.seen[image.numpy().tobytes()] = self.tower(image[None])
        answers = [self.seen[image.numpy().tobytes()] for image in images]
        return {level: torch.cat([answer[level] for answer in answers]) for level in answers[0]}


@pytest.fixture(params=["real", "made up"])
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[CocoDict, Path]:
    """Eight pictures with base boxes, by rising id; none of their base boxes is too small to see."""
    root = real_pictures()
    if request.param == "made up":
        root = make_coco(tmp_path / "coco", train_images=16, val_images=1, image_size=(320, 240))
    if root is None:
        pytest.skip("no real COCO pictures here; set FVLM_COCO_TINY to a folder that has some")
    coco = load_instances(root / "annotations" / "instances_train2017.json")
    split = build_train_split(coco, "zsd", keep_empty=False)
    least = {image["id"]: LEAST_SIDE * max(image["width"], image["height"]) for image in split["images"]}
    unfit = {a["image_id"] for a in split["annotations"] if a["iscrowd"] or min(a["bbox"][2:]) < least[a["image_id"]]}
    chosen = sorted(set(least) - unfit)[:PICTURES]
    assert len(chosen) == PICTURES
    return {
        **split,
        "images": [image for image in split["images"] if image["id"] in chosen],
        "annotations": [a for a in split["annotations"] if a["image_id"] in chosen],
    }, root / "train2017"


def test_the_head_on_a_frozen_random_rn50_learns_eight_pictures_by_heart(pictures, tmp_path):
    split, image_dir = pictures
    params = load_params(RECIPE)
    model = dataclasses.replace(
        params.model,
        image_size=IMAGE_SIZE,
        fpn_channels=64,
        head_channels=64,
        canonical_box_size=224 * IMAGE_SIZE / 1024,
    )
    schedule = dataclasses.replace(
        params.train,
        steps=STEPS,
        batch_size=PICTURES,
        optimizer="adamw",
        learning_rate=2e-3,
        warmup_steps=10,
        schedule="cosine",
        background_weight=1.0,
        scale_jitter=(1.0, 1.0),
        flip=0.0,
        checkpoint_every=STEPS,
    )
    torch.manual_seed(0)
    config = real_tower_config("RN50-quickgelu")
    clip = build_clip(config)
    card = VlmCard.describe(
        clip, architecture="RN50-quickgelu", weights="random", model_config=config, pretraining=None, provenance={}
    )
    detector = build_detector(model, card, clip.visual)
    before = detector.tower.hash()
    tower, detector.tower = detector.tower, RememberingTower(detector.tower)  # type: ignore[assignment]
    text = torch.randn(81, config["embed_dim"])  # background and the 80 classes; any that differ will do
    supervised = [0] + [row for row, (_, name) in enumerate(categories(), start=1) if name in base_names()]
    canvas: dict[str, Any] = {"canvas_size": IMAGE_SIZE, "mean": card.image_mean, "std": card.image_std}
    rows = train(
        detector,
        TrainingPictures(split, image_dir, schedule, **canvas),
        text[supervised],
        schedule,
        device=torch.device("cpu"),
        checkpoint=tmp_path / "checkpoint.safetensors",
    )

    raw = RawDetections(
        **run_detector(detector.eval(), ValidationPictures(split, image_dir, **canvas), text, params.detect),
        names=("background", *(name for _, name in categories())),
        category_ids=tuple(category_id for category_id, _ in categories()),
        detector_temperature=detector.temperature.item(),
        vlm_temperature=card.temperature,
        supervised=tuple(base_names()),
        setting="zsd",
        model_sha256="",
    )
    names = protocols()["constrained_base"].names
    evaluate = dataclasses.replace(params.evaluate, alpha=0.0, beta=0.0)  # the VLM is random: the detector alone
    detections = detections_of(raw, names, [image["id"] for image in split["images"]], evaluate)
    scores = average_precision(detections, split)
    mean = group_mean(scores, names)
    assert mean is not None
    boxes, classes = len(split["annotations"]), sum(score is not None for score in scores.values())
    print(
        f"{PICTURES} pictures, {boxes} boxes of {classes} base classes, {STEPS} steps: loss {rows[0]['loss']:.2f} -> "
        f"{rows[-1]['loss']:.2f}, base AP50 {mean.AP50:.1f}, AP {mean.AP:.1f}"
    )
    assert mean.AP50 > 90
    assert tower.hash() == before

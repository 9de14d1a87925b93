"""The detectors that are compared: ours, and torchvision's detector of the same make.

`fasterrcnn_resnet50_fpn_v2` has the same kind of FPN (norms on its outputs), the same two-convolution RPN and the same
4conv1fc box head, 256 channels wide, on 512 regions of a picture. Its ResNet-50 has three quarters of the operations of
CLIP's. All weights are random: no time here depends on them.
"""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn_v2

from fvlm.detector.detector import FVLM
from fvlm.params import Model, Train, load_params
from fvlm.training.loop import build_optimizer
from fvlm.vlm.clip import ImageTower, build_clip, real_tower_config

RECIPE = "recipes/coco_folder.yaml"  # gives what the constants below leave open
PAPER_MODEL = {
    "fpn_channels": 256,
    "anchor_scale": 8,
    "rpn_pre_nms_top_n": 2000,
    "canonical_box_size": 224,
    "head_channels": 256,
    "head_fc_dim": 1024,
}
LEARNING_RATE = 1e-6  # a step costs the same at any rate, and random weights stay finite at this one
OURS = "fvlm"
TRAINABLE_STAGES = {"torchvision, 3 stages": ("layer4", "layer3", "layer2"), "torchvision, frozen": ()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What all contestants are given alike."""

    image_size: int  # pixels per side
    batch: int
    rois: int  # of a picture, in training
    proposals: int  # of a picture
    classes: int  # without background
    boxes: int  # ground truth of a picture; COCO has 7.3 on average
    device: torch.device
    precision: torch.dtype
    channels_last: bool  # ours
    torchvision_channels_last: bool  # torchvision's; its users' way is contiguous
    miniature: bool  # a tiny tower and head for ours: the smoke test

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def pictures(self) -> Tensor:
        """(N, 3, S, S) of noise, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, 3, self.image_size, self.image_size)
        return torch.rand(shape, generator=generator).to(self.device)

    def targets(self) -> list[tuple[Tensor, Tensor]]:
        """For each picture boxes (G, 4), a sixteenth to a half of its side, and labels (G,); the same at every call."""
        generator = torch.Generator().manual_seed(1)
        found = []
        for _ in range(self.batch):
            sides = self.image_size * (1 / 16 + 7 / 16 * torch.rand(self.boxes, 2, generator=generator))
            corner = (self.image_size - sides) * torch.rand(self.boxes, 2, generator=generator)
            labels = torch.randint(1, 1 + self.classes, (self.boxes,), generator=generator)
            found.append((torch.cat([corner, corner + sides], dim=1).to(self.device), labels.to(self.device)))
        return found


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A detector and what is timed: `run` is one training step, or one inference of a batch."""

    model: nn.Module
    run: Callable[[], Any]


def our_params(sizes: Sizes) -> tuple[Model, Train]:
    """The paper's constants, under `sizes`."""
    recipe = load_params(RECIPE)
    paper: dict[str, Any] = {} if sizes.miniature else PAPER_MODEL
    model = dataclasses.replace(recipe.model, image_size=sizes.image_size, rpn_post_nms_top_n=sizes.proposals, **paper)
    train = dataclasses.replace(
        recipe.train, batch_size=sizes.batch, rois_per_image=sizes.rois, learning_rate=LEARNING_RATE
    )
    return model, train


def build_ours(sizes: Sizes) -> tuple[FVLM, int]:
    """The detector on a random tower, and the size D of its embeddings."""
    torch.manual_seed(0)
    config = real_tower_config("RN50-quickgelu")
    if sizes.miniature:
        config["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
        config["text_cfg"] |= {"layers": 1, "width": 64, "heads": 1}
    visual = build_clip(config).visual  # as in stage `train`: the text tower goes
    grid = visual.attnpool.positional_embedding.shape[0]
    model, _ = our_params(sizes)
    for name, parameter in visual.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.ones_(parameter)  # open_clip starts residual branches at 0
    detector = FVLM(ImageTower(visual, "all"), config["embed_dim"], round((grid - 1) ** 0.5), model)
    detector.to(sizes.device).to(memory_format=_layout(sizes.channels_last))
    return detector, config["embed_dim"]


def build_torchvision(sizes: Sizes, trained_stages: tuple[str, ...]) -> FasterRCNN:
    """torchvision's detector with its own constants, but our number of proposals and regions.

    Without downloaded weights it trains the whole backbone, whatever `trainable_backbone_layers` says; here the other
    stages are frozen as its `_resnet_fpn_extractor` does. Their batch norms run on batch statistics, as always there.
    """
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=1 + sizes.classes,
        min_size=sizes.image_size,  # as the pictures are: it resizes by 1
        max_size=sizes.image_size,
        rpn_post_nms_top_n_train=sizes.proposals,
        rpn_post_nms_top_n_test=sizes.proposals,
        box_batch_size_per_image=sizes.rois,
    )
    for name, parameter in model.backbone.body.named_parameters():
        parameter.requires_grad_(name.startswith(trained_stages))
    return model.to(sizes.device, memory_format=_layout(sizes.torchvision_channels_last))


def training(name: str, sizes: Sizes) -> Contestant:
    """A contestant whose `run` is a whole step: forward, losses, backward, SGD with momentum."""
    _, train = our_params(sizes)
    pictures, targets = sizes.pictures(), sizes.targets()
    model: nn.Module
    if name == OURS:
        ours, embed_dim = build_ours(sizes)
        model = ours
        text = _text(1 + sizes.classes, embed_dim, sizes.device)
        pictures = pictures.contiguous(memory_format=_layout(sizes.channels_last))

        def losses() -> dict[str, Tensor]:
            return ours.losses(pictures, targets, text, train)
    else:
        model = build_torchvision(sizes, TRAINABLE_STAGES[name])
        pictures = pictures.contiguous(memory_format=_layout(sizes.torchvision_channels_last))

        def losses() -> dict[str, Tensor]:
            return model(list(pictures), [{"boxes": boxes, "labels": labels} for boxes, labels in targets])

    model.train()
    optimizer = build_optimizer(model, dataclasses.replace(train, optimizer="sgd"))

    def step() -> None:
        _deterministic(name == OURS and sizes.device.type == "cpu")
        optimizer.zero_grad()
        with sizes.autocast():
            loss = torch.stack(list(losses().values())).sum()
        loss.backward()
        optimizer.step()

    return Contestant(model, step)


def inference(name: str, sizes: Sizes) -> Contestant:
    """A contestant whose `run` gives regions of a batch: ours with both similarities, torchvision's detections."""
    pictures = sizes.pictures()
    model: nn.Module
    if name == OURS:
        ours, embed_dim = build_ours(sizes)
        model = ours
        text = _text(1 + sizes.classes, embed_dim, sizes.device)
        pictures = pictures.contiguous(memory_format=_layout(sizes.channels_last))

        def detect() -> Any:
            return ours.detect(pictures, [(sizes.image_size, sizes.image_size)] * sizes.batch, text)
    else:
        model = build_torchvision(sizes, TRAINABLE_STAGES[name])
        pictures = pictures.contiguous(memory_format=_layout(sizes.torchvision_channels_last))

        def detect() -> Any:
            return model(list(pictures))

    model.eval()

    @torch.no_grad()
    def run() -> Any:
        _deterministic(name == OURS and sizes.device.type == "cpu")
        with sizes.autocast():
            return detect()

    return Contestant(model, run)


def _deterministic(on: bool) -> None:
    """Ours runs as the pipeline does (`fvlm.compute.set_up`: on the CPU alone), torchvision's as its users do."""
    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _text(count: int, embed_dim: int, device: torch.device) -> Tensor:
    return torch.randn(count, embed_dim, generator=torch.Generator().manual_seed(2)).to(device)


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format

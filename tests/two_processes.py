"""Run by test_parallel.py in each of two processes, under torchrun's variables: `python two_processes.py FOLDER`."""

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fvlm.data.dataset import Sample, TrainingPictures
from fvlm.data.loading import training_batches
from fvlm.data.transforms import fit
from fvlm.detector.detector import FVLM, build_detector
from fvlm.io import write_json
from fvlm.params import FreezeMode, Precision, load_params
from fvlm.tensors import save_tensors, sha256_of_tensors
from fvlm.training.loop import train
from fvlm.training.parallel import World, synchronize_norms
from fvlm.training.step import compute_gradients
from fvlm.vlm.clip import VlmCard, build_clip

PARAMS = load_params(Path(__file__).resolve().parents[1] / "recipes" / "emoji.yaml")
CPU = torch.device("cpu")
EMBED_DIM = 16
TRAIN = dataclasses.replace(
    PARAMS.train,
    steps=6,
    batch_size=4,
    learning_rate=1e-2,
    warmup_steps=2,
    checkpoint_every=2,
    rois_per_image=16,
    rpn_anchors_per_image=32,
)


class Case(NamedTuple):
    """What a step is computed under."""

    freeze: FreezeMode = "all"
    precision: Precision = "float32"
    norms_train: bool = True


# Passes have batch norms of their own, so that accumulation is compared with the norms in eval mode.
CASES = {
    "plain": Case(),
    "free_tower": Case(freeze="none"),
    "bfloat16": Case(precision="bfloat16"),
    "fixed_norms": Case(norms_train=False),
}


class Scenes(TrainingPictures):
    """Ten pictures of noise with 0, 1 or 2 bright squares, so that processes hold unequal numbers of boxes."""

    def __init__(self) -> None:
        self.canvas_size, self.mean, self.std = 64, (0.4,) * 3, (0.15,) * 3

    def __len__(self) -> int:
        return 10

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        generator = torch.Generator().manual_seed(100 * epoch + index)
        image = torch.randint(128, (3, 64, 64), dtype=torch.uint8, generator=generator)
        corners = torch.randint(0, 32, (index % 3, 2), generator=generator)
        sides = torch.randint(12, 32, (index % 3, 2), generator=generator)
        boxes = torch.cat([corners, corners + sides], dim=1).float()
        for x1, y1, x2, y2 in boxes.int().tolist():
            image[:, y1:y2, x1:x2] += 100
        return Sample(fit(image, self.canvas_size), boxes, 1 + torch.arange(len(boxes)))


def build(freeze: FreezeMode = "all") -> FVLM:
    config = {
        "embed_dim": EMBED_DIM,
        "quick_gelu": False,
        "vision_cfg": {"layers": (1, 1, 1, 1), "width": 8, "image_size": 32, "head_width": 8, "patch_size": None},
        "text_cfg": {"context_length": 16, "vocab_size": 50, "width": 8, "heads": 1, "layers": 1},
    }
    torch.manual_seed(0)
    clip = build_clip(config)
    card = VlmCard.describe(
        clip, architecture="miniature", weights="random", model_config=config, pretraining=None, provenance={}
    )
    sizes: dict[str, Any] = {
        "image_size": 64,
        "fpn_channels": 8,
        "head_channels": 8,
        "head_fc_dim": 16,
        "anchor_scale": 2,
    }
    return build_detector(dataclasses.replace(PARAMS.model, freeze=freeze, **sizes), card, clip.visual)


def text() -> Tensor:
    return torch.randn(3, EMBED_DIM, generator=torch.Generator().manual_seed(1))


def observe(world: World, case: Case, accumulation: int = 1) -> dict[str, Tensor]:
    """Losses, gradients and moved statistics of a step, by name."""
    params = dataclasses.replace(TRAIN, accumulation=accumulation)
    detector = build(case.freeze).train(case.norms_train)
    if world.size > 1:
        synchronize_norms(detector)
    batch = next(training_batches(Scenes(), params, after_step=2, device=CPU, rank=world.rank, world_size=world.size))
    terms = compute_gradients(detector, batch, text(), params, step=3, precision=case.precision, world=world)
    return {
        **{f"loss {name}": term for name, term in terms.items()},
        **{f"gradient {name}": p.grad for name, p in detector.named_parameters() if p.grad is not None},
        **{f"buffer {name}": b for name, b in detector.named_buffers() if "running" in name},
    }


def run(world: World, folder: Path, *, stop_after: int = TRAIN.steps) -> FVLM:
    """Train from the checkpoint in `folder`, where there is one, and stop in the step after `stop_after` more."""
    detector = build()
    sums, calls = detector.loss_sums, []

    def until_killed(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > stop_after:
            raise Stopped
        return sums(*args)

    detector.loss_sums = until_killed  # type: ignore[method-assign,assignment]
    train(detector, Scenes(), text(), TRAIN, device=CPU, checkpoint=folder / "c.safetensors", world=world)
    return detector


class Stopped(Exception):
    """Stands for a kill."""


def main(folder: Path) -> None:
    torch.use_deterministic_algorithms(True)
    dist.init_process_group("gloo")
    world = World(dist.get_rank(), dist.get_world_size())
    for name, case in CASES.items():
        save_tensors(folder / f"{name}_{world.rank}.safetensors", observe(world, case), {})
    passes = observe(world, CASES["fixed_norms"], accumulation=2)
    save_tensors(folder / f"accumulation_{world.rank}.safetensors", passes, {})

    hashes = {"whole": sha256_of_tensors(run(world, folder / "whole").state_dict())}
    for steps in (1, 3, 5):
        try:
            run(world, folder / str(steps), stop_after=steps)
        except Stopped:
            dist.barrier()  # rank 0 may still be writing
        hashes[f"stopped after {steps}"] = sha256_of_tensors(run(world, folder / str(steps)).state_dict())
    write_json(folder / f"hashes_{world.rank}.json", hashes)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

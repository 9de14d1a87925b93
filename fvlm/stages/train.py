"""Stage `train`: one setting's detector, its losses, and the record of where it came from."""

import dataclasses
import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

import fvlm

from .. import layout, processes
from ..checkpoint import checkpoint_key, deciding_params
from ..compute import set_up
from ..data.coco import CocoDict, load_instances
from ..data.dataset import TrainingPictures, check_pictures_exist
from ..detector.detector import arrange, build_detector
from ..errors import InputError
from ..io import read_json, sha256_of_file, write_csv, write_json
from ..params import Params, of_seed
from ..tensors import load_tensors, save_tensors, sha256_of_tensors
from ..training.loop import COLUMNS, train
from ..training.parallel import World
from ..training.preflight import out_of_memory, preflight, say_duration
from ..vlm.clip import VlmCard, load_card, load_clip


@dataclass(frozen=True)
class Outputs:
    """The three files of a training."""

    model: Path
    losses: Path
    record: Path


def run(params: Params, setting: str, seed: int | None = None) -> None:
    """Write model.safetensors, losses.csv and train.json in runs/<setting>_seed<seed>/.

    Without a seed it is the first of `params.seeds`, in runs/<setting>/.
    """
    name = layout.Run(setting, seed).name
    train_detector(
        of_seed(params, params.seeds[0] if seed is None else seed),
        setting,
        Outputs(layout.model(name), layout.losses(name), layout.train_record(name)),
    )


def train_detector(
    params: Params, setting: str, outputs: Outputs, *, text_path: Path = layout.TEXT_EMBEDDINGS
) -> World:
    """Train the detector of `setting` with `params.train.seed` and the texts of `text_path`, and write `outputs`.

    Called by several processes, they train it together, and rank 0 writes.

    The model file has no time and no commit in it: equal params give equal bytes. Those stand in the record.

    Returns:
        Which of the processes this is. Their connection has ended.

    Raises:
        InputError: a file of an earlier stage is missing, broken or does not fit the others; TrainingDiverged is one.
        RuntimeError: `freeze: all` did not keep the tower, which is our fault.
    """
    device = set_up(params.compute, processes.local_rank())
    world = World(processes.rank(), processes.join(params.compute))
    split, image_dir, images_sha256 = _training_data(params, setting)
    card = load_card(layout.VLM_CARD)
    text, text_sha256 = _supervised_text(text_path, split, card)
    visual = load_clip(layout.VLM_WEIGHTS, card).visual  # the text tower has spoken, and goes
    inputs = {
        "train_split": sha256_of_file(layout.train_split(setting)),
        "images": images_sha256,
        "vlm": card.weights_sha256,
        "text_embeddings": text_sha256,
    }
    checkpoint = layout.CHECKPOINTS / f"{setting}-{checkpoint_key(params, setting, inputs)}.safetensors"

    pictures = TrainingPictures(
        split,
        image_dir,
        params.train,
        canvas_size=params.model.image_size,
        mean=card.image_mean,
        std=card.image_std,
    )
    supervised = [category["name"] for category in _by_id(split)]
    del split  # gigabytes for COCO, in every process
    torch.manual_seed(params.train.seed)
    detector = build_detector(params.model, card, visual)
    tower_before = detector.tower.hash()
    if world.is_main:
        print(preflight(detector, params, device), flush=True)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # every batch has the same sizes; detection's regions have not
    arrange(detector.to(device), params.compute)
    try:
        if world.is_main:
            print(say_duration(detector, params, device), flush=True)
        rows = train(
            detector,
            pictures,
            text,
            params.train,
            device=device,
            checkpoint=checkpoint,
            precision=params.compute.precision,
            world=world,
        )
    except torch.cuda.OutOfMemoryError:
        raise InputError(out_of_memory(params)) from None
    processes.leave()
    if not world.is_main:
        return world
    tower_after = detector.tower.hash()
    if params.model.freeze == "all" and tower_after != tower_before:
        raise RuntimeError("freeze is all, but training changed the image tower; this is a bug of fvlm.vlm")

    save_tensors(
        outputs.model,
        detector.state_dict(),
        {
            "setting": setting,
            "supervised": supervised,
            "model": dataclasses.asdict(params.model),
            "train": deciding_params(params.train),
            "vlm_card": card.to_dict(),
            "inputs": inputs,
        },
    )
    write_csv(outputs.losses, rows, COLUMNS)
    images = params.train.steps * params.train.batch_size
    seconds = sum(params.train.batch_size / row["images_per_s"] for row in rows)
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    write_json(
        outputs.record,
        {
            "setting": setting,
            "seed": params.train.seed,
            "freeze": params.model.freeze,
            "steps": params.train.steps,
            "seconds": round(seconds, 3),  # of steps that count; work lost with a killed process is not in it
            "images": images,
            "images_per_s": round(images / seconds, 3),
            "trained_parameters": trained,
            "frozen_parameters": sum(p.numel() for p in detector.parameters()) - trained,
            "tower_sha256_before": tower_before,
            "tower_sha256_after": tower_after,
            "vlm_sha256": card.weights_sha256,
            "inputs": inputs,
            "git_commit": _git_commit(),
            "versions": _versions(),
            "params": {name: dataclasses.asdict(getattr(params, name)) for name in ("model", "train", "compute")},
        },
    )
    checkpoint.unlink(missing_ok=True)
    return world


def _training_data(params: Params, setting: str) -> tuple[CocoDict, Path, str]:
    """The split, the folder of its pictures, and the pictures' hash from the manifest."""
    remedy = "run `python -m fvlm download`"
    path = layout.manifest(params)
    manifest = read_json(path, "data manifest", remedy)
    try:
        folder, images_sha256 = manifest["train"]["images"], manifest["train"]["images_sha256"]
    except (KeyError, TypeError):
        raise InputError(f"{path}: expected train.images and train.images_sha256; {remedy} again") from None
    image_dir = layout.data_root(params) / folder
    if not layout.train_split(setting).exists():
        raise InputError(
            f"{layout.train_split(setting)}: training split not found; run `python -m fvlm splits --setting {setting}`"
        )
    split = load_instances(layout.train_split(setting))
    check_pictures_exist(split, image_dir)
    return split, image_dir, images_sha256


def _supervised_text(path: Path, split: CocoDict, card: VlmCard) -> tuple[Tensor, str]:
    """(1 + K, D) embeddings of background and the split's classes by rising id, and the hash of the whole table."""
    remedy = "run `python -m fvlm text`"
    tensors, metadata = load_tensors(path, "text embeddings", remedy)
    if metadata.get("vlm_sha256") != card.weights_sha256:
        raise InputError(f"{path}: these embeddings are not of the VLM in {layout.VLM_WEIGHTS}; {remedy}")
    row_of = {category_id: row for row, category_id in enumerate(metadata["category_ids"], start=1)}
    rows = [0] + [row_of[category["id"]] for category in _by_id(split)]
    return tensors["embeddings"][rows], sha256_of_tensors(tensors)


def _by_id(split: CocoDict) -> list[dict[str, Any]]:
    return sorted(split["categories"], key=lambda category: category["id"])


def _git_commit() -> str | None:
    """The commit of the working directory's repository; None outside of one."""
    try:
        return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _versions() -> dict[str, str]:
    return {
        "fvlm": fvlm.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "open_clip": importlib.metadata.version("open_clip_torch"),
    }

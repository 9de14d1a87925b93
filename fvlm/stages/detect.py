"""Stage `detect`: run one setting's detector over the validation pictures, once, for every protocol."""

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .. import layout
from ..compute import autocast, set_up
from ..data.coco import load_instances
from ..data.dataset import ValidationPictures, check_pictures_exist
from ..data.loading import validation_batches
from ..detector.detector import FVLM, Regions, arrange
from ..detector.trained import detect_batch, joined, load_trained
from ..errors import InputError
from ..evaluation.raw import RawDetections
from ..io import read_json
from ..params import Detect, Params
from ..tensors import load_tensors


def run(params: Params, setting: str, seed: int | None = None) -> None:
    """Write raw_detections.safetensors in runs/<setting>_seed<seed>/, or in runs/<setting>/ without a seed."""
    this = layout.Run(setting, seed)
    detect_all(
        params, layout.model(this.name), f"python -m fvlm train {this.options}", layout.raw_detections(this.name)
    )


def detect_all(
    params: Params, model_path: Path, remedy: str, output: Path, *, text_path: Path = layout.TEXT_EMBEDDINGS
) -> None:
    """Run the detector of `model_path` over all validation pictures, so that `evaluate` chooses among them."""
    device = set_up(params.compute)
    detector, card, metadata, model_sha256 = load_trained(model_path, f"run `{remedy}`")
    split = load_instances(layout.val_split("all"))
    manifest = read_json(layout.manifest(params), "data manifest", "run `python -m fvlm download`")
    image_dir = layout.data_root(params) / manifest["val"]["images"]
    check_pictures_exist(split, image_dir)
    text, text_metadata = load_tensors(text_path, "text embeddings", "run `python -m fvlm text`")
    if text_metadata.get("vlm_sha256") != card.weights_sha256:
        raise InputError(f"{text_path}: not of the VLM that {model_path} was trained on; run text and train again")
    pictures = ValidationPictures(
        split, image_dir, canvas_size=detector.model.image_size, mean=card.image_mean, std=card.image_std
    )
    arrange(detector.to(device), params.compute)
    with autocast(device, params.compute.precision):
        raw = run_detector(detector, pictures, text["embeddings"].to(device), params.detect)
    RawDetections(
        **raw,
        names=tuple(text_metadata["names"]),
        category_ids=tuple(text_metadata["category_ids"]),
        detector_temperature=detector.temperature.item(),
        vlm_temperature=card.temperature,
        supervised=tuple(metadata["supervised"]),
        setting=metadata["setting"],
        model_sha256=model_sha256,
    ).save(output)


def run_detector(detector: FVLM, pictures: ValidationPictures, text: Tensor, params: Detect) -> dict[str, Tensor]:
    """The tensors of `RawDetections`, boxes in pixels of the stored pictures."""
    regions: list[Regions] = []
    ids: list[int] = []
    stored_hw: list[tuple[int, int]] = []
    with tqdm(total=len(pictures), desc="detect", unit="image", disable=None) as bar:
        for batch in validation_batches(pictures, params, device=text.device):
            regions += detect_batch(detector, batch.images, batch.sizes_hw, batch.stored_hw, text)
            ids += batch.image_ids
            stored_hw += batch.stored_hw
            bar.update(len(batch.images))
    return {"image_ids": torch.tensor(ids), "image_sizes_hw": torch.tensor(stored_hw), **joined(regions)}

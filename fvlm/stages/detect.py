"""Stage `detect`: run one setting's detector over the validation pictures, once, for every protocol."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import layout
from ..compute import autocast, set_up
from ..data.coco import load_instances
from ..data.dataset import ValidationPictures, check_pictures_exist
from ..data.loading import validation_batches
from ..data.transforms import scale_xyxy
from ..detector.detector import FVLM, Regions, arrange, build_detector
from ..errors import InputError
from ..evaluation.raw import RawDetections
from ..io import read_json
from ..params import Detect, Model, Params
from ..tensors import load_tensors, sha256_of_tensors
from ..vlm.clip import VlmCard, build_clip


def run(params: Params, setting: str, seed: int | None = None) -> None:
    """Write raw_detections.safetensors in runs/<setting>_seed<seed>/, or in runs/<setting>/ without a seed."""
    this = layout.Run(setting, seed)
    detect_all(
        params, layout.model(this.name), f"python -m fvlm train {this.options}", layout.raw_detections(this.name)
    )


def detect_all(params: Params, model_path: Path, remedy: str, output: Path) -> None:
    """Run the detector of `model_path` over all validation pictures, so that `evaluate` chooses among them."""
    device = set_up(params.compute)
    detector, card, metadata, model_sha256 = load_detector(model_path, f"run `{remedy}`")
    split = load_instances(layout.val_split("all"))
    manifest = read_json(layout.manifest(params), "data manifest", "run `python -m fvlm download`")
    image_dir = layout.data_root(params) / manifest["val"]["images"]
    check_pictures_exist(split, image_dir)
    text, text_metadata = load_tensors(layout.TEXT_EMBEDDINGS, "text embeddings", "run `python -m fvlm text`")
    if text_metadata.get("vlm_sha256") != card.weights_sha256:
        raise InputError(
            f"{layout.TEXT_EMBEDDINGS}: not of the VLM that {model_path} was trained on; run text and train again"
        )
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


def load_detector(path: Path, remedy: str) -> tuple[FVLM, VlmCard, dict[str, Any], str]:
    """The trained detector of a model file, in eval mode; its VLM's card, the file's metadata and its tensors' hash.

    Raises:
        InputError: the file is missing, damaged, not a detector, or of another architecture than it says.
    """
    tensors, metadata = load_tensors(path, "detector", remedy)
    if not {"model", "vlm_card", "supervised", "setting"} <= metadata.keys():
        raise InputError(
            f"{path}: expected a detector written by fvlm, found a safetensors file without its metadata; {remedy}"
        )
    card = VlmCard.from_dict(metadata["vlm_card"], f"{path}: vlm_card")
    try:
        model = Model(**metadata["model"])
    except TypeError as error:
        raise InputError(f"{path}: model params of another version of fvlm ({error}); {remedy}") from None
    detector = build_detector(model, card, build_clip(card.model_config).visual)
    expected = {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        name = next(n for n in sorted(expected | found) if expected.get(n) != found.get(n))
        raise InputError(
            f"{path}: a model of another architecture: {name} should be {expected.get(name, 'absent')}, "
            f"is {found.get(name, 'absent')}; {remedy}"
        )
    detector.load_state_dict(tensors)
    return detector.eval(), card, metadata, sha256_of_tensors(tensors)


def run_detector(detector: FVLM, pictures: ValidationPictures, text: Tensor, params: Detect) -> dict[str, Tensor]:
    """The tensors of `RawDetections`, boxes in pixels of the stored pictures."""
    regions: list[Regions] = []
    ids: list[int] = []
    stored_hw: list[tuple[int, int]] = []
    with tqdm(total=len(pictures), desc="detect", unit="image", disable=None) as bar:
        for batch in validation_batches(pictures, params, device=text.device):
            found = detector.detect(batch.images, batch.sizes_hw, text)
            scales = map(scale_xyxy, batch.stored_hw, batch.sizes_hw)
            regions += [_stored(of_image, scale) for of_image, scale in zip(found, scales, strict=True)]
            ids += batch.image_ids
            stored_hw += batch.stored_hw
            bar.update(len(batch.images))
    counts = torch.tensor([0, *(len(r.proposals) for r in regions)])
    fields = ("proposals", "proposal_scores", "boxes", "detector_similarity", "vlm_similarity")
    return {
        "image_ids": torch.tensor(ids),
        "image_sizes_hw": torch.tensor(stored_hw),
        "offsets": counts.cumsum(0),
        **{field: torch.cat([getattr(r, field) for r in regions]) for field in fields},
    }


def _stored(regions: Regions, scale: Tensor) -> Regions:
    """As the file keeps them: on the CPU, boxes in pixels of the stored picture, similarities in float16."""
    return Regions(
        proposals=regions.proposals.cpu() / scale,
        proposal_scores=regions.proposal_scores.cpu(),
        boxes=regions.boxes.cpu() / scale,
        detector_similarity=regions.detector_similarity.half().cpu(),
        vlm_similarity=regions.vlm_similarity.half().cpu(),
    )

"""A model folder with a tiny random detector, as the stages `vlm`, `text`, `train` and `package` leave it."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from small_clip import TINY, tiny_clip

from fvlm import layout
from fvlm.data.coco import categories
from fvlm.data.splits import supervised_names
from fvlm.detector.detector import build_detector
from fvlm.io import write_json
from fvlm.params import Params, Setting, load_params
from fvlm.report.tables import GROUPS, SCORES
from fvlm.stages import package
from fvlm.tensors import save_tensors, sha256_of_tensors
from fvlm.vlm.clip import VlmCard, save_vlm
from fvlm.vlm.text import embed_names

TEMPLATES = ("a photo of a {}.", "{}")
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "emoji.yaml"


def tiny_params() -> Params:
    params = load_params(RECIPE)
    sizes: dict[str, Any] = {
        "image_size": 64,
        "fpn_channels": 8,
        "head_channels": 8,
        "head_fc_dim": 16,
        "rpn_post_nms_top_n": 20,
    }
    return dataclasses.replace(params, model=dataclasses.replace(params.model, **sizes))


def write_models(setting: str = "zsd") -> Params:
    """In the working directory: models/, data/text_embeddings.safetensors and runs/<setting>/model.safetensors."""
    params, clip = tiny_params(), tiny_clip()
    card = VlmCard.describe(
        clip, architecture="miniature", weights="random", model_config=TINY, pretraining=None, provenance={"seed": 0}
    )
    save_vlm(clip, card, layout.VLM_WEIGHTS, layout.VLM_CARD)
    names = ["background", *(name for _, name in categories())]
    text = {"embeddings": embed_names(clip, names, TEMPLATES)}
    metadata = {
        "names": names,
        "category_ids": [category_id for category_id, _ in categories()],
        "templates": list(TEMPLATES),
        "background": "background",
        "vlm_sha256": card.weights_sha256,
    }
    save_tensors(layout.TEXT_EMBEDDINGS, text, metadata)
    torch.manual_seed(1)
    detector = make_alive(build_detector(params.model, card, clip.visual))
    save_tensors(
        layout.model(setting),
        detector.state_dict(),
        {
            "setting": setting,
            "supervised": supervised_names(setting),
            "model": dataclasses.asdict(params.model),
            "train": {},
            "vlm_card": card.to_dict(),
            "inputs": {"text_embeddings": sha256_of_tensors(text)},
        },
    )
    write_json(
        layout.train_record(setting),
        {
            "freeze": "all",
            "frozen_parameters": 1000,
            "trained_parameters": 2000,
            "steps": 30,
            "images": 240,
            "seed": 0,
            "seconds": 12.5,
            "git_commit": "c0ffee",
            "versions": {"fvlm": "0.1.0", "torch": "2"},
        },
    )
    scores = itertools.product(SCORES, GROUPS)
    write_json(layout.metrics(setting), {f"{s}generalized_{g}_AP50": 10.04 + 10 * n for n, (s, g) in enumerate(scores)})
    return params


def make_alive(detector: torch.nn.Module) -> torch.nn.Module:
    """Larger weights than a fresh head has, so that pictures make a difference."""
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if not name.startswith("tower") and name.endswith("weight") and parameter.dim() > 1:
                parameter.mul_(3)
    return detector


def write_folder(setting: Setting = "zsd") -> Path:
    """A whole model folder, runs/<setting> in the working directory."""
    package.run(write_models(setting), setting)
    return layout.model(setting).parent


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: blocks of colour and noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    blocks = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return blocks + rng.integers(0, 50, (height, width, 3), dtype=np.uint8)


def save_picture(path: Path, height: int = 40, width: int = 60, seed: int = 0, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, seed)).save(path, **options)  # type: ignore[arg-type]
    return path

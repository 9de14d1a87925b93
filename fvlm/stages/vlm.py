"""Stage `vlm`: the vision-language model, pretrained here (miniature), obtained or random, as weights file and card."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import CLIP

from .. import layout
from ..checkpoint import KEY_DIGITS
from ..compute import set_up
from ..data.coco import categories
from ..io import sha256_of_json
from ..params import Params, weights_path
from ..tensors import sha256_of_tensors
from ..vlm.clip import VlmCard, build_clip, real_tower_config, save_vlm
from ..vlm.pretrain import CaptionedPictures, emoji_pictures, held_out_accuracy, miniature_config, pretrain
from ..vlm.prompts import CLIP_TEMPLATES
from ..vlm.text import embed_names
from ..vlm.weights import obtain

BACKGROUND_CAPTION = "background"  # the word in the captions of pictures without objects


def run(params: Params) -> None:
    """Write models/vlm.safetensors and models/vlm.json.

    Raises:
        InputError: weights cannot be had or read, or are not what they pass for; or pretraining diverged.
    """
    vlm = params.vlm
    threads = vlm.pretrain.threads if vlm.weights == "pretrain" and vlm.pretrain else params.compute.threads
    compute = dataclasses.replace(params.compute, threads=threads)
    set_up(compute)
    torch.manual_seed(vlm.seed)
    if vlm.architecture == "miniature":
        assert vlm.miniature is not None  # params' cross-check
        config = miniature_config(vlm.miniature)
    else:
        config = real_tower_config(vlm.architecture)
    # versions, not times: the card goes into every model file, and equal params must give equal bytes
    provenance = {"seed": vlm.seed, "open_clip": open_clip.__version__, "torch": torch.__version__}
    described: dict[str, Any] = {"pretraining": None, "provenance": provenance}
    checkpoint = None
    if vlm.weights == "pretrain":
        clip = build_clip(config)
        pictures = _pictures(config, vlm.seed)
        checkpoint = (
            layout.CHECKPOINTS / f"vlm-{_key(params, dataclasses.asdict(compute), config, pictures)}.safetensors"
        )
        described["pretraining"] = _pretrain(params, clip, pictures, checkpoint)
    elif vlm.weights == "random":
        clip = build_clip(config)
    else:
        obtained = obtain(vlm.architecture, vlm.weights)
        clip = obtained.model
        described["provenance"] |= {"weights": obtained.provenance}
        described |= {"image_mean": obtained.image_mean, "image_std": obtained.image_std}
    card = VlmCard.describe(clip, architecture=vlm.architecture, weights=vlm.weights, model_config=config, **described)
    if "weights" in provenance:
        _say(card)
    save_vlm(clip, card, layout.VLM_WEIGHTS, layout.VLM_CARD)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)


def _pictures(config: Mapping[str, Any], seed: int) -> CaptionedPictures:
    return emoji_pictures(
        [name for _, name in categories()],
        BACKGROUND_CAPTION,
        config["vision_cfg"]["image_size"],
        list(open_clip.OPENAI_DATASET_MEAN),
        list(open_clip.OPENAI_DATASET_STD),
        seed,
    )


def _key(params: Params, compute: Mapping[str, Any], config: Mapping[str, Any], pictures: CaptionedPictures) -> str:
    """The first digits of a hash of everything that decides the pretrained weights."""
    assert params.vlm.pretrain is not None  # params' cross-check
    pretraining = dataclasses.asdict(params.vlm.pretrain)
    pretraining.pop("held_out_pictures")  # drawn afterwards
    depends_on = {
        "compute": compute,
        "config": config,
        "pretraining": pretraining,
        "seed": params.vlm.seed,
        "names": pictures.names,
        "sprites": sha256_of_tensors({"sprites": pictures.sprites}),
        "templates": CLIP_TEMPLATES,
    }
    return sha256_of_json(depends_on)[:KEY_DIGITS]


def _pretrain(params: Params, clip: CLIP, pictures: CaptionedPictures, checkpoint: Path) -> dict[str, Any]:
    """Train `clip` in place. Returns what the card says of it."""
    settings, seed = params.vlm.pretrain, params.vlm.seed
    assert settings is not None  # params' cross-check
    pretrain(clip, pictures, CLIP_TEMPLATES, settings, seed, checkpoint)
    text = embed_names(clip, pictures.names, CLIP_TEMPLATES)
    accuracy = held_out_accuracy(clip, pictures, text, settings.held_out_pictures, seed)
    print(f"vlm: held-out accuracy {100 * accuracy:.1f} % of {len(pictures.names)} captions", flush=True)
    return {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "held_out_pictures": settings.held_out_pictures,
        "held_out_accuracy": round(accuracy, 6),
        "chance": round(1 / len(pictures.names), 6),
    }


def _say(card: VlmCard) -> None:
    """What the user should know of weights from elsewhere, in plain lines."""
    weights, found = card.weights, card.provenance["weights"]
    origin = "OpenAI's archive by its checksum" if found["is_openais_archive"] else "no published checksum to compare"
    print(f"vlm: {weights}: sha256 {found['sha256']}, {origin}", flush=True)
    golden = found["golden_values"]
    if isinstance(golden, dict):
        outcome = "reproduced" if golden["reproduced"] else "of OpenAI's RN50 not reproduced: these are other weights"
        print(f"vlm: golden text values {outcome}, {golden['largest_deviation']:.1%} off at most", flush=True)
    else:
        print(f"vlm: golden text values: {golden}", flush=True)
    if weights_path(weights) is not None:
        if not card.is_openais:
            print(
                "vlm: the file is read with QuickGELU; if it was trained with GELU, as open_clip's plain RN50 is, its "
                "embeddings are wrong and nothing shows it",
                flush=True,
            )
        print("vlm: DVC does not watch this file; after a change of it run `dvc repro -f vlm`", flush=True)

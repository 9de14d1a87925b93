"""Stage `vlm`: the vision-language model, pretrained here (miniature) or OpenAI's, as one weights file and one card."""

import dataclasses

import open_clip
import torch

from .. import layout
from ..compute import set_up
from ..data.coco import categories
from ..params import Params
from ..vlm.clip import VlmCard, build_clip, obtain_openai, real_tower_config, save_vlm
from ..vlm.pretrain import emoji_pictures, held_out_accuracy, miniature_config, pretrain
from ..vlm.prompts import CLIP_TEMPLATES
from ..vlm.text import embed_names

BACKGROUND_CAPTION = "background"  # the word in the captions of pictures without objects


def run(params: Params) -> None:
    """Write models/vlm.safetensors and models/vlm.json."""
    vlm = params.vlm
    threads = vlm.pretrain.threads if vlm.weights == "pretrain" and vlm.pretrain else params.compute.threads
    set_up(dataclasses.replace(params.compute, threads=threads))
    torch.manual_seed(vlm.seed)
    pretraining = None
    if vlm.weights == "openai":
        clip = obtain_openai(vlm.architecture)
        config = real_tower_config(vlm.architecture)
    else:
        config = miniature_config(vlm.miniature) if vlm.miniature else real_tower_config(vlm.architecture)
        clip = build_clip(config)
    if vlm.weights == "pretrain":
        assert vlm.pretrain is not None  # params' cross-check
        names = [name for _, name in categories()]
        pictures = emoji_pictures(
            names,
            BACKGROUND_CAPTION,
            config["vision_cfg"]["image_size"],
            list(open_clip.OPENAI_DATASET_MEAN),
            list(open_clip.OPENAI_DATASET_STD),
            vlm.seed,
        )
        pretrain(clip, pictures, CLIP_TEMPLATES, vlm.pretrain, vlm.seed)
        text = embed_names(clip, pictures.names, CLIP_TEMPLATES)
        accuracy = held_out_accuracy(clip, pictures, text, vlm.pretrain.held_out_pictures, vlm.seed)
        pretraining = {
            "steps": vlm.pretrain.steps,
            "batch_size": vlm.pretrain.batch_size,
            "held_out_pictures": vlm.pretrain.held_out_pictures,
            "held_out_accuracy": round(accuracy, 6),
            "chance": round(1 / len(pictures.names), 6),
        }
        print(f"vlm: held-out accuracy {100 * accuracy:.1f} % of {len(pictures.names)} captions", flush=True)
    card = VlmCard.describe(
        clip,
        architecture=vlm.architecture,
        weights=vlm.weights,
        model_config=config,
        pretraining=pretraining,
        # versions only: the card goes into every model file, and equal params must give equal bytes
        provenance={"seed": vlm.seed, "open_clip": open_clip.__version__, "torch": torch.__version__},
    )
    save_vlm(clip, card, layout.VLM_WEIGHTS, layout.VLM_CARD)

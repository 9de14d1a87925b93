"""CLIP's text half alone: what a model folder needs to embed words that no stage has embedded."""

import math
from collections.abc import Mapping
from typing import Any

import open_clip
import torch
from open_clip import CLIP
from torch import Tensor, nn

from ..errors import InputError
from .clip import build_clip, differences
from .freeze import IMAGE_TOWER

PROBE = "a photo of 2 TRAFFIC-lights, a naïve café's 犬."  # case, digits, accents, marks and bytes of other scripts
PROBE_TOKENS = 20  # of PROBE, start and end mark included


def text_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of CLIP's state dict that `load_text_tower` wants, in float16 where that loses nothing.

    OpenAI published most of its weights in float16, and reading widened them; they are stored as small as they came.
    """
    return {name: _narrowed(tensor) for name, tensor in state.items() if not name.startswith(IMAGE_TOWER)}


def _narrowed(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def load_text_tower(tensors: Mapping[str, Tensor], model_config: Mapping[str, Any], where: str) -> CLIP:
    """A CLIP in eval mode, float32, that embeds texts as the whole one does, and has no image tower.

    The image tower is never built: for RN50x64 those are gigabytes of random numbers.

    Args:
        tensors: of `text_tensors`.
        model_config: of the VLM's card.
        where: the file, for error messages.

    Raises:
        InputError: the tensors are not those of this model's text half.
    """
    with torch.device("meta"):
        clip = build_clip(model_config)
    clip.visual = nn.Identity()
    expected = {name: tuple(tensor.shape) for name, tensor in clip.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise InputError(f"{where}: not the text tower of this model: {differences(expected, found)}; get it again")
    clip.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    room = clip.context_length
    clip.attn_mask = torch.full((room, room), -math.inf).triu_(1)  # no part of the state dict
    return clip.requires_grad_(False).eval()


def tokenizer_facts(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be known of the tokenizer, which comes with open_clip: sizes, and the tokens of one odd text.

    Two that agree on `PROBE` are taken for the same: words of another would be embedded as something else, in silence.
    """
    return {
        "name": "CLIP's byte pair encoding, lower case, as open_clip.tokenize has it",
        "context_length": model_config["text_cfg"]["context_length"],
        "vocab_size": model_config["text_cfg"]["vocab_size"],
        "probe": PROBE,
        "probe_tokens": open_clip.tokenize([PROBE])[0, :PROBE_TOKENS].tolist(),
    }


def token_count(text: str) -> int:
    """Tokens of `text`, start and end mark included, however many they are."""
    tokens = open_clip.tokenize([text], context_length=2 + 4 * len(text.encode()))[0]
    return int(tokens.argmax()) + 1  # the end mark has the highest number

"""A CLIP of open_clip's classes that is built in no time, for tests of what surrounds one."""

from typing import Any

import torch

from fvlm.vlm.clip import build_clip

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def tiny_clip(seed=0, **vision):
    torch.manual_seed(seed)
    return build_clip({**TINY, "vision_cfg": {**TINY["vision_cfg"], **vision}})

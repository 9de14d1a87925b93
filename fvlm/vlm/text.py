"""Class embeddings: the mean of a name's normalised embeddings over prompt templates."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip import CLIP
from torch import Tensor

from .clip import tokenize
from .prompts import fill


@torch.no_grad()
def embed_names(model: CLIP, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Embed each name in every template, normalise, average. One batch of texts per name.

    Args:
        model: the VLM, in eval mode.
        names: class names as COCO has them, and the background's word.
        templates: at least one, each with one `{}`.

    Returns:
        (len(names), D) float32 on the model's device. A row is a mean of unit vectors and not normalised again: its
        norm is below 1, the more so the less its templates agree.

    Raises:
        InputError: a filled template is longer than the model's context.

    Source: the authors' `utils/clip_utils.py`, `get_clip_text_fn`. Some ports average the raw
    embeddings, which weighs templates by their norms.
    """
    device = model.logit_scale.device
    rows = []
    for name in names:
        tokens = tokenize(model, [fill(template, name) for template in templates]).to(device)
        rows.append(F.normalize(model.encode_text(tokens).float(), dim=-1).mean(dim=0))
    return torch.stack(rows)

"""Stage `text`: embeddings of background and of every class, for all settings and protocols to choose rows from."""

from pathlib import Path

import torch
from tqdm import tqdm

from .. import layout
from ..compute import set_up
from ..data.coco import categories
from ..params import Params
from ..tensors import save_tensors
from ..vlm.clip import load_card, load_clip
from ..vlm.prompts import templates
from ..vlm.text import embed_names


def run(params: Params) -> None:
    """Write data/text_embeddings.safetensors."""
    embed_all(params, layout.TEXT_EMBEDDINGS)


def embed_all(params: Params, output: Path) -> None:
    """Write the texts' embeddings: (1 + 80, D) float32, row 0 background, then classes by ascending id."""
    device = set_up(params.compute)
    card = load_card(layout.VLM_CARD)
    model = load_clip(layout.VLM_WEIGHTS, card).to(device)
    prompts = templates(params.text)
    classes = categories()
    names = [params.text.background, *(name for _, name in classes)]
    progress = tqdm(names, desc="text", unit="name", disable=None)
    embeddings = torch.cat([embed_names(model, [name], prompts) for name in progress])
    save_tensors(
        output,
        {"embeddings": embeddings},
        {
            "names": names,
            "category_ids": [category_id for category_id, _ in classes],
            "templates": list(prompts),
            "background": params.text.background,
            "vlm_sha256": card.weights_sha256,
        },
    )

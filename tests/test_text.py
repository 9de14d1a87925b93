"""Class embeddings, on a stub whose embeddings are known and on a small CLIP; and the stage that writes them."""

import dataclasses

import pytest
import torch
from torch import nn

from fvlm import layout
from fvlm.data.coco import categories
from fvlm.errors import InputError
from fvlm.params import load_params
from fvlm.stages import text as text_stage
from fvlm.tensors import load_tensors
from fvlm.vlm.clip import VlmCard, build_clip, save_vlm
from fvlm.vlm.prompts import CLIP_TEMPLATES
from fvlm.vlm.text import embed_names

TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


class Stub(nn.Module):
    """Embeds a text of one word as (3, 4) and a longer one as (0, 2)."""

    context_length = 8

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def encode_text(self, tokens):
        is_one_word = tokens[:, 3] == 0  # start, word, end, padding
        return torch.where(is_one_word[:, None], torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]))


@pytest.fixture(scope="module")
def tiny_clip():
    torch.manual_seed(0)
    return build_clip(TINY)


def test_the_mean_of_normalised_embeddings_is_worked_by_hand():
    embeddings = embed_names(Stub(), ["cat", "traffic light"], ["{}", "a {}"])
    # cat: (.6, .8) and (0, 1), so (.3, .9); traffic light: (0, 1) twice
    torch.testing.assert_close(embeddings, torch.tensor([[0.3, 0.9], [0.0, 1.0]]))


def test_rows_are_means_of_unit_vectors_and_not_normalised_again(tiny_clip):
    embeddings = embed_names(tiny_clip, ["cat", "dog", "background"], CLIP_TEMPLATES)
    assert embeddings.shape == (3, 16)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad
    norms = embeddings.norm(dim=1)
    assert (norms > 0.2).all()
    assert (norms < 0.999).all()


def test_a_row_depends_on_its_name_alone(tiny_clip):
    names = ["cat", "hot dog", "background", "tie"]
    embeddings = embed_names(tiny_clip, names, CLIP_TEMPLATES)
    shuffled = embed_names(tiny_clip, names[::-1], CLIP_TEMPLATES)
    torch.testing.assert_close(shuffled, embeddings.flip(0), rtol=0, atol=0)
    assert torch.pdist(embeddings).min() > 1e-4


def test_the_order_of_templates_does_not_matter(tiny_clip):
    forwards = embed_names(tiny_clip, ["cat"], CLIP_TEMPLATES)
    torch.testing.assert_close(embed_names(tiny_clip, ["cat"], CLIP_TEMPLATES[::-1]), forwards, rtol=0, atol=1e-6)


def test_a_text_longer_than_the_context_is_refused_in_one_line():
    with pytest.raises(InputError, match="at most 8 tokens") as error:
        embed_names(Stub(), ["cat"], ["a photo of one very large and furry {}"])
    assert "furry cat" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_stage_writes_background_first_then_the_80_classes_by_id(tiny_clip, tmp_path, monkeypatch):
    params = load_params("params.yaml")
    params = dataclasses.replace(
        params,
        compute=dataclasses.replace(params.compute, device="cpu", threads=1),
        text=dataclasses.replace(params.text, templates=("a {}", "the {}")),
    )
    monkeypatch.chdir(tmp_path)
    card = VlmCard.describe(
        tiny_clip, architecture="miniature", weights="random", model_config=TINY, pretraining=None, provenance={}
    )
    save_vlm(tiny_clip, card, layout.VLM_WEIGHTS, layout.VLM_CARD)
    text_stage.run(params)
    tensors, metadata = load_tensors(layout.TEXT_EMBEDDINGS, "embeddings", "")
    names = ["background", *(name for _, name in categories())]
    assert metadata == {
        "names": names,
        "category_ids": [category_id for category_id, _ in categories()],
        "templates": ["a {}", "the {}"],
        "background": "background",
        "vlm_sha256": card.weights_sha256,
    }
    assert tensors.keys() == {"embeddings"}
    torch.testing.assert_close(
        tensors["embeddings"], embed_names(tiny_clip, names, ["a {}", "the {}"]), rtol=0, atol=1e-6
    )
    first = layout.TEXT_EMBEDDINGS.read_bytes()
    text_stage.run(params)
    assert layout.TEXT_EMBEDDINGS.read_bytes() == first

"""The text half of a CLIP, alone."""

import open_clip
import pytest
import torch
from small_clip import TINY, tiny_clip

from fvlm.errors import InputError
from fvlm.vlm.text import embed_names
from fvlm.vlm.text_tower import PROBE, PROBE_TOKENS, load_text_tower, text_tensors, token_count, tokenizer_facts

NAMES, TEMPLATES = ["dog", "a red bus", "犬"], ["a photo of a {}.", "{}"]


def test_it_embeds_as_the_whole_model_does_bit_for_bit_and_has_no_image_tower():
    clip = tiny_clip()
    alone = load_text_tower(text_tensors(clip.state_dict()), TINY, "text.safetensors")
    assert torch.equal(embed_names(alone, NAMES, TEMPLATES), embed_names(clip, NAMES, TEMPLATES))
    assert not [name for name, _ in alone.named_parameters() if "visual" in name]
    assert not any(parameter.requires_grad for parameter in alone.parameters())


def test_loading_leaves_the_generator_of_torch_where_it_was():
    tensors = text_tensors(tiny_clip().state_dict())
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_text_tower(tensors, TINY, "text.safetensors")
    assert torch.equal(torch.rand(1), expected)


def test_weights_that_came_in_float16_are_stored_so_and_others_keep_every_bit():
    state = tiny_clip().state_dict()
    state["text_projection"] = state["text_projection"].half().float()
    tensors = text_tensors(state)
    assert tensors["text_projection"].dtype == torch.float16
    assert tensors["token_embedding.weight"].dtype == torch.float32
    assert all(torch.equal(tensor.float(), state[name]) for name, tensor in tensors.items())


def test_tensors_of_another_model_are_named():
    tensors = text_tensors(tiny_clip().state_dict())
    del tensors["ln_final.bias"]
    with pytest.raises(InputError, match=r"text\.safetensors: not the text tower of this model: ln_final\.bias"):
        load_text_tower(tensors, TINY, "text.safetensors")


def test_the_probe_is_cut_where_its_tokens_end():
    tokens = tokenizer_facts(TINY)["probe_tokens"]
    assert len(tokens) == PROBE_TOKENS == token_count(PROBE)
    assert tokens == open_clip.tokenize([PROBE])[0].tolist()[:PROBE_TOKENS]
    assert tokens[-1] == max(tokens) == TINY["text_cfg"]["vocab_size"] - 1


@pytest.mark.parametrize(("text", "count"), [("dog", 3), ("", 2), ("dog! dog", 5), ("dog " * 200, 202)])
def test_tokens_are_counted_also_where_they_are_too_many(text, count):
    assert token_count(text) == count

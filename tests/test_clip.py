"""The VLM's files, its checks, and C2..C5 of its image tower."""

import copy
import dataclasses
import json
from typing import Any

import pytest
import torch

from fvlm.errors import InputError
from fvlm.vlm.clip import (
    ImageTower,
    VlmCard,
    build_clip,
    load_card,
    load_clip,
    save_vlm,
    tokenize,
)

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def tiny_clip(seed=0, **vision):
    torch.manual_seed(seed)
    return build_clip({**TINY, "vision_cfg": {**TINY["vision_cfg"], **vision}})


def card_of(model, config=TINY, **fields):
    arguments = {"architecture": "miniature", "weights": "random", "pretraining": None, "provenance": {"seed": 0}}
    return VlmCard.describe(model, model_config=config, **{**arguments, **fields})


@pytest.fixture
def saved(tmp_path):
    model = tiny_clip()
    card = card_of(model)
    save_vlm(model, card, tmp_path / "vlm.safetensors", tmp_path / "vlm.json")
    return model, card, tmp_path / "vlm.safetensors", tmp_path / "vlm.json"


def test_what_was_saved_is_loaded_bit_for_bit_in_eval_mode(saved):
    model, card, weights_path, card_path = saved
    assert load_card(card_path) == card
    loaded = load_clip(weights_path, load_card(card_path))
    assert not any(module.training for module in loaded.modules())
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, msg=name)


def test_equal_models_are_saved_as_equal_bytes(saved, tmp_path):
    _, _, weights_path, card_path = saved
    again = tiny_clip()
    save_vlm(again, card_of(again), tmp_path / "again.safetensors", tmp_path / "again.json")
    assert (tmp_path / "again.safetensors").read_bytes() == weights_path.read_bytes()
    assert (tmp_path / "again.json").read_bytes() == card_path.read_bytes()


def test_loading_leaves_the_random_generator_alone(saved):
    _, card, weights_path, _ = saved
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_clip(weights_path, card)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_the_card_tells_logit_scale_temperature_and_grid():
    model = tiny_clip(image_size=96)
    with torch.no_grad():
        model.logit_scale.fill_(torch.log(torch.tensor(50.0)))
    card = card_of(model)
    assert card.logit_scale == pytest.approx(50, rel=1e-6)
    assert card.temperature == pytest.approx(0.02, rel=1e-6)
    assert card.grid == 3


def test_weights_of_another_architecture_are_named_with_both_shapes_in_one_line(saved, tmp_path):
    _, card, _, _ = saved
    wider = tiny_clip(width=16)
    save_vlm(wider, card_of(wider), tmp_path / "wider.safetensors", tmp_path / "wider.json")
    with pytest.raises(InputError) as error:
        load_clip(tmp_path / "wider.safetensors", card)
    message = str(error.value)
    assert "\n" not in message
    assert "wider.safetensors" in message
    assert "visual.conv1.weight: expected (4, 3, 3, 3), got (8, 3, 3, 3)" in message


def test_weights_with_a_tensor_too_many_are_named(saved, tmp_path):
    _, card, _, _ = saved
    deeper = tiny_clip(layers=[2, 1, 1, 1])
    save_vlm(deeper, card_of(deeper), tmp_path / "deeper.safetensors", tmp_path / "deeper.json")
    with pytest.raises(InputError, match=r"visual\.layer1\.1\.bn1\.bias: expected none, got \(8,\)"):
        load_clip(tmp_path / "deeper.safetensors", card)


def test_weights_that_are_not_the_cards_are_refused(saved):
    _, card, weights_path, _ = saved
    with pytest.raises(InputError, match="hashes differ"):
        load_clip(weights_path, dataclasses.replace(card, weights_sha256="0" * 64))


def test_a_card_with_wrong_keys_or_values_is_refused(saved, tmp_path):
    value = saved[1].to_dict()
    path = tmp_path / "other.json"
    for broken, message in (
        ({k: v for k, v in value.items() if k != "grid"} | {"gird": 2}, r"missing \['grid'\], unknown \['gird'\]"),
        (value | {"logit_scale": 0}, "logit_scale: expected a number > 0, got 0"),
        (value | {"image_std": [0.2, 0.2]}, "image_std: expected three numbers > 0"),
        ([], "expected the keys of a VLM card"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(InputError, match=message):
            load_card(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_cfg": {"timm_model_name": "hf-hub:someone/model", "timm_model_pretrained": True, "image_size": 64}},
        {"vision_cfg": []},
        {"vision_cfg": TINY["vision_cfg"] | {"layers": [1, 1, 1]}},
        {"vision_cfg": TINY["vision_cfg"] | {"patch_size": 32}},
        {"vision_cfg": TINY["vision_cfg"] | {"width": 8.0}},
        {"text_cfg": TINY["text_cfg"] | {"heads": 3}},
        {"text_cfg": TINY["text_cfg"] | {"heads": 0}},
        {"text_cfg": TINY["text_cfg"] | {"hf_model_name": "someone/model"}},
        {"quick_gelu": "yes"},
        {"embed_dim": True},
    ],
    ids=str,
)
def test_a_card_by_which_open_clip_would_build_or_fetch_another_model_is_refused(saved, changes):
    value = saved[1].to_dict()
    value["model_config"] |= changes
    with pytest.raises(InputError, match="model_config: expected that of a CLIP with a ResNet tower, got"):
        VlmCard.from_dict(value)


def test_a_card_that_its_reader_would_refuse_is_not_written(tmp_path):
    model = tiny_clip()
    with pytest.raises(InputError, match="image_std: expected three numbers > 0"):
        save_vlm(model, card_of(model, image_std=(0, 1, 1)), tmp_path / "vlm.safetensors", tmp_path / "vlm.json")
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_open_clip_cannot_build_is_refused():
    with pytest.raises(InputError, match="widht"):
        build_clip({**TINY, "vision_cfg": {"layers": [1, 1, 1, 1], "widht": 8}})
    with pytest.raises(InputError, match=r"layers: expected four numbers of blocks \(a ResNet tower\), got 1"):
        build_clip({**TINY, "vision_cfg": {"layers": 1, "width": 64, "image_size": 64, "patch_size": 32}})


def test_building_does_not_change_the_config():
    config = copy.deepcopy(TINY)
    build_clip(config)
    assert config == TINY


def test_the_attention_pool_has_as_many_heads_as_clip_gives_it():
    assert tiny_clip().visual.attnpool.num_heads == 8 * 32 // 64


def test_the_tower_gives_c2_to_c5_at_strides_4_to_32():
    tower = ImageTower(tiny_clip().visual, "all")
    features = tower(torch.randn(2, 3, 64, 96))
    assert tower.channels == (32, 64, 128, 256)
    assert {level: tuple(x.shape) for level, x in features.items()} == {
        f"C{level}": (2, 8 * 2**level, 64 // 2**level, 96 // 2**level) for level in (2, 3, 4, 5)
    }


def test_the_attention_pool_on_c5_is_open_clip_s_image_embedding():
    model = tiny_clip().eval()
    tower = ImageTower(model.visual, "all")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(tower.attnpool(tower(images)["C5"]), model.encode_image(images), rtol=0, atol=0)


def test_later_stages_do_not_overwrite_earlier_features():  # the tower's ReLUs work in place
    tower = ImageTower(tiny_clip().visual, "all")
    images = torch.randn(1, 3, 64, 64)
    c2 = tower.visual.layer1(tower.visual.stem(images))
    torch.testing.assert_close(tower(images)["C2"], c2, rtol=0, atol=0)


def test_the_hash_sees_every_tensor_of_the_tower():
    tower = ImageTower(tiny_clip().visual, "all")
    seen = {tower.hash()}
    with torch.no_grad():
        for name in ("layer4.0.bn3.running_var", "attnpool.c_proj.bias", "conv1.weight"):
            tower.visual.state_dict()[name].view(-1)[0] += 1
            seen.add(tower.hash())
    assert len(seen) == 4


def test_tokens_have_the_model_s_own_context_length():
    tokens = tokenize(tiny_clip(), ["cat", "a photo of a cat!"])
    assert tokens.shape == (2, 16)
    assert tokens[0, 2] == 49407  # start, cat, end, padding
    assert tokens[0, 3:].eq(0).all()


def test_a_text_as_long_as_the_context_fits_and_one_token_more_is_refused():
    model = tiny_clip()
    full = tokenize(model, [" ".join(["cat"] * 14)])
    assert full[0, 15] == 49407
    with pytest.raises(InputError, match="at most 16 tokens"):
        tokenize(model, ["cat", " ".join(["cat"] * 15)])

"""Golden values of OpenAI's text tower: the shipped numbers against their sources, and what is refused."""

import json
import os
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_clip import TINY, tiny_clip
from torch import nn

from fvlm.errors import InputError
from fvlm.vlm import golden
from fvlm.vlm.clip import REAL_TOWERS, build_clip, real_tower_config
from fvlm.vlm.prompts import CLIP_TEMPLATES
from fvlm.vlm.text import embed_names

RN50 = "RN50-quickgelu"
NAMES = ("background", "person", "fire hydrant")


@pytest.fixture(scope="module")
def rn50():
    values = golden.golden_values(RN50)
    assert values is not None
    return values


@pytest.fixture(scope="module")
def real_embeddings():
    """What the two sources computed with OpenAI's RN50, where this machine has it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "clip-rn50-text" / "coco80_background.npz"
    file = Path(os.environ.get("FVLM_CLIP_TEXT", default))
    if not file.is_file():
        pytest.skip("no real text embeddings here; set FVLM_CLIP_TEXT to coco80_background.npz")
    with np.load(file, allow_pickle=False) as data:
        embeddings = dict(zip(data["names"].tolist(), torch.from_numpy(data["embeddings"]), strict=True))
        return embeddings, torch.from_numpy(data["official_background"])


def test_the_shipped_background_is_the_authors_vector(rn50):
    """Its norm and first five components are quoted in the project's specification of F-VLM."""
    first_five = torch.tensor([0.00871793, -0.0026844, -0.01356051, -0.00011811, 0.01287461]) / 0.92718
    shipped = torch.tensor(rn50["first_components"]["background"][:5])
    torch.testing.assert_close(shipped, first_five, rtol=0, atol=1e-5)
    assert rn50["background_norm"] == 0.92718
    for part in ("first_components", "every_32nd_component"):
        assert {len(components) for components in rn50[part].values()} == {32}


def test_real_embeddings_of_both_sources_pass(rn50, real_embeddings):
    embeddings, background = real_embeddings
    exact = golden.compare(embeddings | {"background": background}, rn50)
    assert exact.findings == ()
    assert exact.deviation < 1e-3  # rounding of the file
    other = golden.compare(embeddings | {"background": 0.92718 * embeddings["background"]}, rn50)
    assert other.findings == ()
    assert 0.01 < other.deviation < 0.013  # as the file says of the two sources


def test_real_embeddings_of_other_names_and_disturbed_ones_are_found_out(rn50, real_embeddings):
    embeddings, background = real_embeddings
    right = embeddings | {"background": background}
    swapped = golden.compare(right | {"person": right["dog"]}, rn50)
    assert any("cosine of background and person" in finding for finding in swapped.findings)
    torch.manual_seed(0)
    noise = {name: 0.05 * 0.015 * torch.randn(1024) for name in NAMES}  # a twentieth of a usual component
    disturbed = golden.compare({name: right[name] + noise[name] for name in NAMES}, rn50)
    assert all("component" in finding for finding in disturbed.findings)
    assert disturbed.findings
    unit = golden.compare(right | {"background": F.normalize(background, dim=0)}, rn50)
    assert unit.findings == ("norm of background 1.0000 instead of 0.9272",)


def test_not_a_number_is_a_finding(rn50):
    broken = dict.fromkeys(NAMES, torch.full((1024,), float("nan")))
    assert len(golden.compare(broken, rn50).findings) == 10


def test_weights_whose_later_components_are_in_another_order_are_found_out(rn50, real_embeddings):
    """Norms, cosines and the first components stay what they were."""
    embeddings, background = real_embeddings
    order = torch.cat([torch.arange(32), 32 + torch.randperm(992, generator=torch.Generator().manual_seed(0))])
    shuffled = {name: row[order] for name, row in (embeddings | {"background": background}).items()}
    assert [finding.split(" off")[0] for finding in golden.compare(shuffled, rn50).findings] == [
        f"every 32nd component of {name}" for name in NAMES
    ]


def test_only_rn50_has_golden_values():
    known = json.loads(resources.files("fvlm.vlm").joinpath("clip_golden.json").read_text(encoding="utf-8"))
    assert set(known) == {RN50}
    assert golden.compare_model(tiny_clip(), "RN50x4-quickgelu") is None


def as_openai(model):
    with torch.no_grad():
        model.logit_scale.fill_(4.6052)
    return model


def golden_of(model):
    rows = dict(zip(NAMES, embed_names(model, NAMES, CLIP_TEMPLATES), strict=True))
    return {
        "background_norm": rows["background"].norm().item(),
        "first_components": {name: F.normalize(row, dim=0)[:8].tolist() for name, row in rows.items()},
        "every_32nd_component": {name: F.normalize(row, dim=0)[::32].tolist() for name, row in rows.items()},
        "cosines": [["background", "person", F.cosine_similarity(rows["background"], rows["person"], dim=0).item()]],
    }


def test_the_right_model_passes_and_the_same_shapes_from_another_training_do_not(monkeypatch):
    model = as_openai(tiny_clip())
    values = golden_of(model)
    monkeypatch.setattr(golden, "golden_values", lambda architecture: values)
    comparison = golden.check_openai(model, RN50, "RN50.pt")
    assert comparison is not None and comparison.deviation < 1e-4
    with pytest.raises(InputError) as error:
        golden.check_openai(as_openai(tiny_clip(seed=1)), RN50, "RN50.pt")
    message = str(error.value)
    assert message.startswith("vlm: RN50.pt: not OpenAI's RN50-quickgelu: ")
    assert "first components of person off by" in message
    assert "yfcc15m" in message
    assert "\n" not in message


def test_the_right_weights_under_gelu_are_refused_with_the_reason():
    torch.manual_seed(0)
    model = as_openai(build_clip({**TINY, "quick_gelu": False}))
    with pytest.raises(InputError, match=r"expected QuickGELU in the text tower.*got GELU in block 0"):
        golden.check_openai(model, RN50, "RN50.pt")


def test_another_logit_scale_is_refused():
    with pytest.raises(InputError, match=r"expected OpenAI's logit scale of 100, got 14\.29"):
        golden.check_openai(tiny_clip(), RN50, "RN50.pt")


@pytest.mark.parametrize("architecture", REAL_TOWERS)
def test_every_real_tower_s_text_transformer_computes_x_sigmoid_1_702_x(architecture):
    config = real_tower_config(architecture)
    model = build_clip({**TINY, "quick_gelu": config["quick_gelu"]})
    x = torch.linspace(-4, 4, 41)
    for block in model.transformer.resblocks:
        torch.testing.assert_close(block.mlp.gelu(x), x / (1 + torch.exp(-1.702 * x)))
        assert golden.is_quick_gelu(block.mlp.gelu)
    assert not golden.is_quick_gelu(nn.GELU())
    assert not golden.is_quick_gelu(nn.GELU(approximate="tanh"))


def test_weights_that_are_not_finite_or_embed_all_texts_alike_are_refused():
    model = tiny_clip()
    assert [pair[:2] for pair in golden.check_whole(model, "x.pt")] == [
        ("background", "person"),
        ("background", "fire hydrant"),
        ("person", "fire hydrant"),
    ]
    with torch.no_grad():
        model.token_embedding.weight.zero_()
        model.positional_embedding.zero_()
    with pytest.raises(InputError, match="all have the same embedding"):
        golden.check_whole(model, "x.pt")
    with torch.no_grad():
        model.visual.conv1.weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(InputError, match=r"vlm: x\.pt: expected finite tensors, got NaN or infinity in visual\.conv1"):
        golden.check_whole(model, "x.pt")


def test_an_image_tower_or_a_logit_scale_of_no_use_is_refused():
    model = tiny_clip()
    with torch.no_grad():
        model.visual.bn1.running_var.fill_(-1)
    with pytest.raises(InputError, match=r"vlm: x\.pt: expected pictures to differ, but all have NaN or infinity"):
        golden.check_whole(model, "x.pt")
    model = tiny_clip()
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.zero_()
    with pytest.raises(InputError, match=r"expected pictures to differ, but all have the same embedding"):
        golden.check_whole(model, "x.pt")
    for scale in (-1000, 1000):
        model = tiny_clip()
        with torch.no_grad():
            model.logit_scale.fill_(scale)
        with pytest.raises(InputError, match=r"expected exp\(logit_scale\) above 0 and finite"):
            golden.check_whole(model, "x.pt")

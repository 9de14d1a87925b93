"""Weights from elsewhere: every kind of file gives the same model, and what is wrong with one is said in one line."""

import argparse
import contextlib
import os
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from small_clip import TINY, tiny_clip
from test_golden import as_openai, golden_of
from test_torchscript import as_published

from fvlm.errors import InputError
from fvlm.io import sha256_of_file, write_json
from fvlm.params import WEIGHT_TAGS, WEIGHTS_OF_ALL_TOWERS, weights_path
from fvlm.vlm import golden, weights
from fvlm.vlm.clip import REAL_TOWERS
from fvlm.vlm.weights import load_model, locate, obtain, published_sha256, read_state

pytestmark = pytest.mark.filterwarnings("ignore:`?torch.jit", "ignore::torch.jit.TracerWarning")
RN50, RN50X4 = REAL_TOWERS[:2]


@pytest.fixture(autouse=True)
def small_towers(monkeypatch):
    """RN50 is tiny and RN50x4 a little wider, so that a test takes no time; no test reaches the network."""

    def config(architecture):
        width = {RN50: 8}.get(architecture, 16)
        return {**TINY, "vision_cfg": {**TINY["vision_cfg"], "width": width}}

    def offline(*arguments, **options):
        raise OSError("no route to host")

    values = golden_of(tiny_clip(seed=9))  # that no test's weights reproduce
    monkeypatch.setattr(golden, "golden_values", lambda architecture: values if architecture == RN50 else None)
    monkeypatch.setattr(weights, "real_tower_config", config)
    monkeypatch.setattr(weights, "download_pretrained_from_url", offline)
    monkeypatch.setattr(weights, "hf_hub_download", offline)


def half(state):
    """As OpenAI stores it: matrices and convolutions in float16."""
    return {name: t.half() if t.ndim > 1 and not name.endswith("embedding.weight") else t for name, t in state.items()}


def as_state_dict(model, folder):
    torch.save(half(model.state_dict()), folder / "plain.pt")
    return folder / "plain.pt"


def as_training_checkpoint(model, folder):
    state = {f"module.{name}": tensor for name, tensor in half(model.state_dict()).items()}
    state["module.logit_scale"] = state["module.logit_scale"].reshape(1)
    torch.save({"epoch": 32, "name": "run", "state_dict": state, "optimizer": {"state": {}}}, folder / "epoch_32.pt")
    return folder / "epoch_32.pt"


def as_safetensors(model, folder):
    save_file(half(model.state_dict()), folder / "model.safetensors")
    return folder / "model.safetensors"


def as_archive(model, folder):
    return as_published(model, folder / "RN50.pt")


def as_old_state_dict(model, folder):
    state = {name: t for name, t in half(model.state_dict()).items() if not name.endswith("num_batches_tracked")}
    torch.save(state, folder / "old.pt")
    return folder / "old.pt"


@pytest.mark.parametrize(
    "write", [as_state_dict, as_training_checkpoint, as_safetensors, as_archive, as_old_state_dict]
)
def test_every_kind_of_file_gives_the_same_model_in_float32(tmp_path, write):
    path = write(tiny_clip(), tmp_path)
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    torch.manual_seed(5)
    model = load_model(path, RN50)
    assert torch.equal(torch.rand(3), expected_draw)
    assert not any(module.training for module in model.modules())
    expected = half(tiny_clip().state_dict())
    assert model.state_dict().keys() == expected.keys()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype in (torch.float32, torch.int64), name
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name  # float16 fits into float32 without loss


def test_weights_of_another_tower_are_told_with_the_tower_that_they_fit(tmp_path):
    path = as_safetensors(tiny_clip(width=16), tmp_path)
    with pytest.raises(InputError) as error:
        load_model(path, RN50)
    message = str(error.value)
    assert "visual.conv1.weight: expected (4, 3, 3, 3), got (8, 3, 3, 3)" in message
    assert "they are those of RN50x4-quickgelu: set vlm.architecture" in message
    assert "\n" not in message


class Command:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_is_not_run(tmp_path):
    torch.save({"state_dict": tiny_clip().state_dict(), "more": Command(tmp_path / "marker")}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"bad\.pt: cannot be read as a checkpoint of tensors") as error:
        read_state(tmp_path / "bad.pt")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"state_dict": {"a": 1}}, {}])
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(InputError, match="expected named tensors"):
        read_state(tmp_path / "bad.pt")


@pytest.mark.parametrize("name", ["bad.pt", "bad.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name) as error:
        read_state(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])  # torch's format since 1.6, and the one before
def test_a_checkpoint_that_is_damaged_anywhere_is_told_in_one_line(tmp_path, zipped):
    whole = tmp_path / "whole.pt"
    state = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}
    torch.save(state, whole, _use_new_zipfile_serialization=zipped)
    data, bad = whole.read_bytes(), tmp_path / "bad.pt"
    messages = []
    for place in range(0, len(data), 7):
        for content in (data[:place], data[:place] + b"\xff" + data[place + 1 :]):
            bad.write_bytes(content)
            try:
                read_state(bad)  # a number may be another one now, which nobody can see here
            except InputError as error:
                messages.append(str(error))
    assert len(messages) > len(data) // 7  # what was cut short, at the least
    assert all(message.startswith(str(bad)) and "\n" not in message for message in messages)


def test_an_archive_of_a_deeper_model_is_not_cut_down(tmp_path):
    path = as_published(tiny_clip(layers=[1, 1, 2, 1]), tmp_path / "deeper.pt")
    with pytest.raises(InputError, match=r"not the weights of RN50-quickgelu: visual\.layer3\.1\."):
        load_model(path, RN50)


@pytest.mark.parametrize(
    "state", [{3: torch.ones(1)}, {"a": torch.empty(1, device="meta")}, {"a": torch.eye(3).to_sparse()}]
)
def test_what_is_no_named_tensor_of_numbers_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "bad.pt")
    with pytest.raises(InputError, match="expected named tensors"):
        read_state(tmp_path / "bad.pt")


def test_safetensors_are_known_by_their_content(tmp_path):
    path = as_safetensors(tiny_clip(), tmp_path).rename(tmp_path / "named.pt")
    assert read_state(path).keys() == tiny_clip().state_dict().keys()


def test_an_object_that_is_not_loaded_is_named_without_advice_to_load_it(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "args": argparse.Namespace(steps=3)}, tmp_path / "run.pt")
    with pytest.raises(
        InputError, match=r"tensors \(it holds argparse\.Namespace\); get the file again, or save its"
    ) as e:
        read_state(tmp_path / "run.pt")
    assert "weights_only" not in str(e.value)


@pytest.mark.parametrize(
    "config",
    [
        [],
        None,
        {"model_cfg": None},
        {"model_cfg": "RN50"},
        {"model_cfg": {"quick_gelu": "false"}},
        {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": None},
        {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": None}},
        {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.5]}},
        {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": ["a", "b", "c"]}},
        {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"std": [0, 0, 0]}},
    ],
    ids=str,
)
def test_a_repository_whose_config_makes_no_sense_is_refused_in_one_line(monkeypatch, tmp_path, config):
    serve(monkeypatch, tmp_path, config)
    with pytest.raises(InputError, match=r"vlm: hf-hub:someone/something: expected|open_clip_config\.json") as error:
        obtain(RN50, "hf-hub:someone/something")
    assert "\n" not in str(error.value)


def test_a_config_that_is_no_json_is_not_told_as_a_network_problem(monkeypatch, tmp_path):
    serve(monkeypatch, tmp_path, {})
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(InputError, match=r"open_clip_config\.json: .*not valid JSON") as error:
        obtain(RN50, "hf-hub:someone/something")
    assert "network" not in str(error.value)


def test_weights_that_are_whole_numbers_are_not_taken_for_floats(tmp_path):
    state = tiny_clip().state_dict()
    state["visual.conv1.weight"] = (state["visual.conv1.weight"] * 100).to(torch.int8)
    save_file(state, tmp_path / "quantised.safetensors")
    with pytest.raises(InputError, match=r"expected floating-point weights, got torch.int8 in visual.conv1.weight"):
        load_model(tmp_path / "quantised.safetensors", RN50)


def test_a_path_is_told_from_a_word_by_how_it_is_written(tmp_path):
    assert weights_path("~nobody-of-this-name/x.pt") == Path("~nobody-of-this-name/x.pt")
    assert [weights_path(word) for word in ("openai", "yfcc15m", "hf-hub:timm/resnet50_clip.openai")] == [None] * 3
    assert all(weights_path(word) is not None for word in ("RN50.pt", "a/b", "x.safetensors", "~/w.bin", "e.pth"))
    with pytest.raises(InputError, match=r"vlm\.weights: expected a file, found none at .*none\.pt"):
        locate(RN50, str(tmp_path / "none.pt"))


@pytest.mark.parametrize("architecture", REAL_TOWERS)
def test_the_words_that_params_allow_are_the_tags_that_open_clip_has(architecture):
    tags = {*WEIGHTS_OF_ALL_TOWERS, *WEIGHT_TAGS.get(architecture, ())} - {"random"}
    assert tags == set(open_clip.list_pretrained_tags_by_model(architecture))


def test_the_checksums_are_those_that_openai_published():
    assert [published_sha256(architecture)[:8] for architecture in REAL_TOWERS] == [
        "afeb0e10",
        "7e526bd1",
        "52378b40",
        "be1cfb55",
    ]
    assert {len(published_sha256(architecture)) for architecture in REAL_TOWERS} == {64}


def test_a_network_that_fails_is_told_in_one_line_with_both_reasons_and_what_to_do():
    for word in ("openai", "yfcc15m", "hf-hub:someone/something"):
        with pytest.raises(InputError, match=r"no route to host.*connect to the network, or download") as error:
            obtain(RN50, word)
        assert "\n" not in str(error.value)


def test_openai_s_archive_is_asked_for_first_and_the_hub_when_that_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "download_pretrained_from_url", lambda url: str(tmp_path / "RN50.pt"))
    origin = locate(RN50, "openai")
    assert origin.path == tmp_path / "RN50.pt"
    assert origin.provenance["url"].endswith("/RN50.pt")

    def changed(url):
        raise RuntimeError("the SHA256 checksum does not not match")

    def hub(repository, name, **options):
        if not name.endswith(".bin"):
            raise EntryNotFoundError(name)
        return str(tmp_path / "snapshots" / "c0ffee" / name)

    monkeypatch.setattr(weights, "download_pretrained_from_url", changed)
    monkeypatch.setattr(weights, "hf_hub_download", hub)
    origin = locate(RN50, "openai")
    assert origin.provenance == {
        "source": "openai",
        "repository": "timm/resnet50_clip.openai",
        "file": "open_clip_pytorch_model.bin",
        "revision": "c0ffee",
    }


def test_without_a_network_the_hub_is_waited_for_once_and_its_cache_is_looked_through(monkeypatch):
    asked = []

    def unreachable(repository, name, local_files_only):
        asked.append(local_files_only)
        raise LocalEntryNotFoundError("cannot reach the Hub")

    monkeypatch.setattr(weights, "hf_hub_download", unreachable)
    with pytest.raises(InputError, match="cannot reach the Hub"):
        locate(RN50, "openai")
    assert asked == [False, True, True]


def serve(monkeypatch, folder, config):
    write_json(folder / "open_clip_config.json", config)
    save_file(tiny_clip().state_dict(), folder / "open_clip_model.safetensors")
    monkeypatch.setattr(weights, "hf_hub_download", lambda repository, name, **options: str(folder / name))


def test_a_repository_brings_its_own_mean_and_std_and_must_have_quick_gelu(monkeypatch, tmp_path):
    preprocessing = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    serve(monkeypatch, tmp_path, {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": preprocessing})
    obtained = obtain(RN50, "hf-hub:someone/something")
    assert (obtained.image_mean, obtained.image_std) == ((0.5,) * 3, (0.25,) * 3)
    assert obtained.provenance["sha256"] == sha256_of_file(tmp_path / "open_clip_model.safetensors")
    assert obtained.provenance["golden_values"]["reproduced"] is False  # other weights need not have OpenAI's
    serve(monkeypatch, tmp_path, {"model_cfg": {}, "preprocess_cfg": preprocessing})
    with pytest.raises(InputError, match="expected a text tower with QuickGELU"):
        obtain(RN50, "hf-hub:someone/something")


@pytest.mark.parametrize("word", ["openai", "path"])
def test_what_is_asked_for_as_openai_s_or_has_its_checksum_must_give_the_golden_values(monkeypatch, tmp_path, word):
    model = as_openai(tiny_clip())
    path = as_safetensors(model, tmp_path)
    monkeypatch.setattr(weights, "download_pretrained_from_url", lambda url: str(path))
    values = golden_of(load_model(path, RN50))
    monkeypatch.setattr(golden, "golden_values", lambda architecture: values)
    if word == "path":
        word = str(path)
        monkeypatch.setattr(weights, "published_sha256", lambda architecture: sha256_of_file(path))
    obtained = obtain(RN50, word)
    assert obtained.provenance["golden_values"] == {"reproduced": True, "largest_deviation": 0.0}
    values["background_norm"] += 0.1
    with pytest.raises(InputError, match="not OpenAI's RN50-quickgelu: norm of background"):
        obtain(RN50, word)


def test_a_file_of_the_user_s_is_described_and_need_not_be_openai_s(tmp_path):
    path = as_safetensors(tiny_clip(), tmp_path)
    provenance = obtain(RN50, str(path)).provenance
    assert provenance["source"] == "file"
    assert provenance["path"] == str(path)
    assert provenance["sha256"] == sha256_of_file(path)
    assert provenance["is_openais_archive"] is False
    assert provenance["text_cosines"][0][:2] == ("background", "person")
    assert provenance["golden_values"]["reproduced"] is False


def test_openai_s_weights_in_another_file_are_known_by_their_texts(monkeypatch, tmp_path):
    values = golden_of(tiny_clip())
    monkeypatch.setattr(golden, "golden_values", lambda architecture: values)
    found = obtain(RN50, str(as_safetensors(tiny_clip(), tmp_path))).provenance
    assert found["is_openais_archive"] is False
    assert found["golden_values"]["reproduced"] is True


def test_a_tower_without_golden_values_says_so(monkeypatch, tmp_path):
    path = as_safetensors(as_openai(tiny_clip(width=16)), tmp_path)
    monkeypatch.setattr(weights, "download_pretrained_from_url", lambda url: str(path))
    assert obtain(RN50X4, "openai").provenance["golden_values"] == "none known for this tower"


def test_a_download_is_given_up_after_a_minute_without_a_byte(monkeypatch):
    import socket

    seen = []

    def stalled(url):
        seen.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(weights, "download_pretrained_from_url", stalled)
    with contextlib.suppress(InputError):
        obtain(RN50, "openai")
    assert seen == [weights.DOWNLOAD_TIMEOUT_S]
    assert socket.getdefaulttimeout() is None

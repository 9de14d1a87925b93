"""CLIP weights that were trained elsewhere: OpenAI's, an open_clip tag, a repository of the Hub, or a file.

A file is read as tensors only: safetensors, a checkpoint under torch's `weights_only`, or a TorchScript archive through
`fvlm.vlm.torchscript`. Its SHA-256 goes into the card. Whatever is asked for as OpenAI's, or has the checksum of
OpenAI's archive, must pass for it (`fvlm.vlm.golden`).
"""

import http.client
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from open_clip import CLIP
from open_clip.pretrained import download_pretrained_from_url
from torch import Tensor

from ..errors import InputError
from ..io import read_json, sha256_of_file
from ..params import HUB_PREFIX, weights_path
from ..tensors import load_tensors
from .clip import REAL_TOWERS, build_clip, differences, real_tower_config
from .golden import check_openai, check_whole, compare_model
from .torchscript import is_torchscript, read_torchscript

DOWNLOAD_TIMEOUT_S = 60.0  # without a byte; open_clip's own download would wait for ever
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
HUB_CONFIG = "open_clip_config.json"
ARCHIVE_EXTRAS = ("input_resolution", "context_length", "vocab_size")  # whole numbers that OpenAI stored as tensors
NETWORK_ERRORS = (OSError, RuntimeError, ValueError, TypeError, http.client.HTTPException)
OFFLINE = (
    "connect to the network, or download {what} elsewhere and give its path in vlm.weights, "
    "or set vlm.weights to random to try the code"
)


@dataclass(frozen=True)
class Origin:
    """A weights file on this machine, and where it came from."""

    path: Path
    provenance: dict[str, Any]  # for the card; names and hashes, no path of this machine but one that params give
    image_mean: tuple[float, ...] = open_clip.OPENAI_DATASET_MEAN
    image_std: tuple[float, ...] = open_clip.OPENAI_DATASET_STD


@dataclass(frozen=True)
class Obtained:
    """A model with weights that were trained elsewhere, and what its card has to say of them."""

    model: CLIP  # eval mode, float32, on the CPU
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    provenance: dict[str, Any]


def obtain(architecture: str, weights: str) -> Obtained:
    """The model of `architecture` with `weights`, checked.

    Args:
        architecture: one of `REAL_TOWERS`.
        weights: `openai`, a tag of open_clip, `hf-hub:<owner>/<name>`, or the path of a file.

    Raises:
        InputError: the weights cannot be had or read, have other shapes, or pass for OpenAI's and are not.
    """
    published = published_sha256(architecture)
    origin = locate(architecture, weights)
    sha256 = sha256_of_file(origin.path)
    model = load_model(origin.path, architecture)
    cosines = check_whole(model, origin.path.name)
    provenance: dict[str, Any] = {
        **origin.provenance,
        "sha256": sha256,
        "is_openais_archive": sha256 == published,
        "text_cosines": cosines,
    }
    is_said_to_be = weights == "openai" or sha256 == published
    comparison = (
        check_openai(model, architecture, origin.path.name) if is_said_to_be else compare_model(model, architecture)
    )
    provenance["golden_values"] = (
        "none known for this tower"
        if comparison is None
        else {"reproduced": not comparison.findings, "largest_deviation": round(comparison.deviation, 4)}
    )
    return Obtained(model, origin.image_mean, origin.image_std, provenance)


def published_sha256(architecture: str) -> str:
    """Of OpenAI's archive, as its address has it."""
    return str(_openai_url(architecture).split("/")[-2])


def _openai_url(architecture: str) -> str:
    return str(open_clip.get_pretrained_cfg(architecture, "openai")["url"])


def locate(architecture: str, weights: str) -> Origin:
    """The file that `weights` means, downloaded if need be into the caches of open_clip and the Hub."""
    path = weights_path(weights)
    if path is not None:
        if not path.is_file():
            raise InputError(f"params.yaml: vlm.weights: expected a file, found none at {weights}; correct the path")
        return Origin(path, {"source": "file", "path": weights})
    if weights.startswith(HUB_PREFIX):
        return _from_repository(weights.removeprefix(HUB_PREFIX))
    config = open_clip.get_pretrained_cfg(architecture, weights)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
        raise InputError(f"params.yaml: vlm.weights: {architecture} has the tags {known} in open_clip, got {weights!r}")
    # the archive first: its address has its checksum, which open_clip compares; the Hub's copy has none to compare with
    url, repository = config["url"], config["hf_hub"].strip("/")
    failures = []
    for source, fetch in (("url", lambda: _from_url(url)), ("hub", lambda: _from_hub(repository))):
        try:
            file, found = fetch()
        except NETWORK_ERRORS as error:
            failures.append(f"{source}: {_in_one_line(error)}")
        else:
            return Origin(file, {"source": weights, **found}, tuple(config["mean"]), tuple(config["std"]))
    raise InputError(
        f"vlm: the weights {weights} of {architecture} cannot be obtained ({'; '.join(failures)}); "
        + OFFLINE.format(what=url)
    )


def _from_url(url: str) -> tuple[Path, dict[str, Any]]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        return Path(download_pretrained_from_url(url)), {"url": url}
    finally:
        socket.setdefaulttimeout(before)


def _from_hub(repository: str) -> tuple[Path, dict[str, Any]]:
    """The weights of a repository, safetensors where it has them. Without a network they may still be in the cache."""
    offline = None
    for name in HUB_FILES:
        try:  # one wait for the network is enough: the Hub's library tries for half a minute
            file = Path(hf_hub_download(repository, name, local_files_only=offline is not None))
        except LocalEntryNotFoundError as error:
            offline = offline or error
            continue
        except EntryNotFoundError:
            continue
        # the Hub's cache has a folder for each commit
        return file, {"repository": repository, "file": name, "revision": file.parent.name}
    if offline is not None:
        raise offline
    raise FileNotFoundError(f"{repository} has none of {', '.join(HUB_FILES)}")


def _from_repository(repository: str) -> Origin:
    try:
        config_file = hf_hub_download(repository, HUB_CONFIG)
        file, found = _from_hub(repository)
    except NETWORK_ERRORS as error:
        raise InputError(
            f"vlm: {HUB_PREFIX}{repository} cannot be obtained ({_in_one_line(error)}); check the name, and "
            + OFFLINE.format(what="its weights")
        ) from None
    config = read_json(config_file, "the repository's model config", "choose another")
    where = f"vlm: {HUB_PREFIX}{repository}: {HUB_CONFIG}"
    model_config, preprocessing = (
        (config.get("model_cfg"), config.get("preprocess_cfg", {})) if isinstance(config, dict) else (None, None)
    )
    if not isinstance(model_config, dict) or not isinstance(preprocessing, dict):
        raise InputError(f"{where}: expected an object with model_cfg and preprocess_cfg; choose another repository")
    if model_config.get("quick_gelu", False) is not True:
        raise InputError(
            f"vlm: {HUB_PREFIX}{repository}: expected a text tower with QuickGELU, got one that was trained with GELU, "
            "which no architecture of vlm.architecture has; choose another repository"
        )
    mean = _colours(preprocessing.get("mean", open_clip.OPENAI_DATASET_MEAN), f"{where}: preprocess_cfg.mean", -1)
    std = _colours(preprocessing.get("std", open_clip.OPENAI_DATASET_STD), f"{where}: preprocess_cfg.std", 0)
    return Origin(file, {"source": "hub", **found}, mean, std)


def _colours(value: Any, where: str, above: float) -> tuple[float, ...]:
    numbers = value if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or not all(type(number) in (int, float) and above < number < 2 for number in numbers):
        raise InputError(f"{where}: expected three numbers above {above}, of colours in 0..1, got {value!r}")
    return tuple(float(number) for number in numbers)


def _in_one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def load_model(path: Path, architecture: str) -> CLIP:
    """The model of `architecture` with the tensors of `path`, in eval mode, float32. Float16 is widened, exactly.

    Torch's generator is left as it was.

    Raises:
        InputError: the file cannot be read, or its tensors are not those of `architecture`.
    """
    state = _as_open_clip(read_state(path))
    with torch.random.fork_rng(devices=[]):  # the random start is overwritten at once
        model = build_clip(real_tower_config(architecture))
    own = model.state_dict()
    if is_torchscript(path):  # tensors that a module merely has stand among its state
        state = {name: tensor for name, tensor in state.items() if not name.endswith("attn_mask")}
    # checkpoints from before torch 0.4.1 kept no count of batches, and a tower in eval mode does not use it
    state |= {name: own[name] for name in own if name.endswith("num_batches_tracked") and name not in state}
    expected, found = _shapes(own), _shapes(state)
    if expected != found:
        fitting = next((other for other in REAL_TOWERS if other != architecture and _fits(found, other)), None)
        raise InputError(
            f"{path}: not the weights of {architecture}: {differences(expected, found)}; "
            + (f"they are those of {fitting}: set" if fitting else "correct the path, or set")
            + " vlm.architecture to what they are of"
        )
    whole = [name for name in own if own[name].is_floating_point() and not state[name].is_floating_point()]
    if whole:  # torch would turn quantised weights into floats without a word
        raise InputError(
            f"{path}: expected floating-point weights, got {state[whole[0]].dtype} in {whole[0]} and {len(whole) - 1} "
            "more; save them as float32 or float16"
        )
    model.load_state_dict(state)
    return model


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _fits(found: Mapping[str, tuple[int, ...]], architecture: str) -> bool:
    with torch.device("meta"):  # shapes only
        return _shapes(build_clip(real_tower_config(architecture)).state_dict()) == found


def _as_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes as open_clip has them: no prefix of a parallel wrapper, no numbers of OpenAI's archive."""
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if name not in ARCHIVE_EXTRAS}
    if "logit_scale" in state and state["logit_scale"].numel() == 1:
        state["logit_scale"] = state["logit_scale"].reshape(())
    return state


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The named tensors of a weights file, on the CPU, as stored.

    Raises:
        InputError: it is none of safetensors, TorchScript archive and torch checkpoint of tensors, or it is damaged.
    """
    if Path(path).suffix == ".safetensors" or _is_safetensors(path):
        return load_tensors(path, "the weights", "get the file again")[0]
    if is_torchscript(path):
        return read_torchscript(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file torch.load raises what its parts do: IndexError, struct.error, ...
        raise InputError(
            f"{path}: cannot be read as a checkpoint of tensors ({_reason(error)}); get the file again, "
            "or save its state dict as safetensors (other objects are not loaded, since they could run code)"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(_is_named_tensor(*item) for item in state.items()):
        raise InputError(
            f"{path}: expected named tensors, or a dict with them as state_dict; save the model's state dict"
        )
    return dict(state)


def _is_safetensors(path: str | os.PathLike[str]) -> bool:
    """By its content, whatever it is called: the length of a JSON object, and the object."""
    with open(path, "rb") as file:
        length, brace = int.from_bytes(file.read(8), "little"), file.read(1)
    return brace == b"{" and length < os.stat(path).st_size


def _is_named_tensor(name: Any, tensor: Any) -> bool:
    return (
        isinstance(name, str)
        and isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"  # a meta tensor has no numbers
    )


def _reason(error: Exception) -> str:
    """Why torch did not load a file, without its advice to load it unsafely."""
    text = _in_one_line(error)
    if found := re.search(r"Unsupported \w+: (?:GLOBAL )?(\S+)", text):
        return f"it holds {found[1]}"
    return re.split(r"This file can still|Re-running|Please file", text)[0][:200].strip()

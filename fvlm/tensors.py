"""Tensors on disk: safetensors files with one JSON document as metadata. Nothing is unpickled."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import InputError
from .io import write_aside

# one key only: safetensors does not keep the order of several, and equal runs must give equal bytes
METADATA_KEY = "fvlm"


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON-able `metadata` dict; equal content gives equal bytes."""
    contiguous = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    with write_aside(path) as aside:
        try:
            save_file(contiguous, aside, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})
        except SafetensorError as error:  # a full disk reaches us as this type, without its errno
            raise OSError(f"cannot write {path}: {error}") from None


def load_tensors(path: str | os.PathLike[str], what: str, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote, on the CPU.

    Returns:
        The tensors by name, and the metadata dict (empty for a safetensors file that is not ours).

    Raises:
        InputError: the file is missing, truncated or not in safetensors format.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise InputError(f"{path}: {what} not found; {remedy}") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: {what} is not a readable safetensors file ({error}); {remedy}") from None


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A hash over names, dtypes, shapes and bytes of all `tensors`, independent of their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tensors_below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose name begins with `prefix`, by the rest of their name."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

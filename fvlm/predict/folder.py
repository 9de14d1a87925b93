"""A model folder: everything that prediction needs, in three files that may be copied, pushed and loaded anywhere.

    model.safetensors   image tower and detector head, with the params of both; written by stage `train`
    text.safetensors    the VLM's text tower, and the embeddings of the words that stage `text` embedded
    model.json          which setting and classes, prompts, tokenizer, defaults of fusion and NMS, provenance

`train.json` and README.md, where they are, go along: the record of the training, with commit, versions and seconds,
and the model card, for people.
Folders of one VLM have equal text.safetensors, byte for byte: DVC's cache and the Hub keep them once.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..io import read_json, write_json
from ..params import HUB_PREFIX, Evaluate, read_section
from ..tensors import load_tensors, save_tensors, sha256_of_tensors
from ..vlm.text_tower import tokenizer_facts

MODEL, TEXT, RECORD, TRAINING, CARD = (
    "model.safetensors",
    "text.safetensors",
    "model.json",
    "train.json",
    "README.md",
)
FORMAT = "fvlm model folder 1"
TOWER = "tower."  # prefix of the text tower's tensors in text.safetensors
EMBEDDINGS = "embeddings"  # and the name of the known words' embeddings
KEYS = {"format", "setting", "supervised", "model_sha256", "text_sha256", "text", "tokenizer", "evaluate", "provenance"}
# of params.evaluate: what decides which boxes a picture gets
DECIDING = (
    "alpha",
    "beta",
    "renormalise",
    "vlm_background",
    "vlm_temperature",
    "nms_iou",
    "score_threshold",
    "max_detections",
)
# and what else the section has: about validation sets, sweeps and machines; here it has no say
NO_SAY: dict[str, Any] = {
    "images": "split",
    "vocabulary": "scored",
    "processes": 1,
    "sweep": {"alpha": [0], "beta": [0], "vlm_temperature": [None], "nms_iou": [None]},
}
TEXT_KEYS = {"names", "category_ids", "templates", "background", "vlm_sha256"}


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The content of model.json, checked."""

    setting: str
    supervised: tuple[str, ...]  # classes that had boxes in training
    model_sha256: str  # over the tensors of model.safetensors
    text_sha256: str  # and of text.safetensors
    names: tuple[str, ...]  # whose embeddings are stored; the first is the background's word
    category_ids: tuple[int, ...]  # COCO's, of the names after it
    templates: tuple[str, ...]
    tokenizer: dict[str, Any]  # `tokenizer_facts`
    evaluate: Evaluate  # fusion, NMS and limits that the pipeline scored with
    provenance: dict[str, Any]

    @property
    def background(self) -> str:
        return self.names[0]


def write_text(path: Path, tower: Mapping[str, Tensor], embeddings: Tensor) -> str:
    """Write text.safetensors.

    Returns:
        The hash of its tensors.
    """
    tensors = {TOWER + name: tensor for name, tensor in tower.items()} | {EMBEDDINGS: embeddings}
    save_tensors(path, tensors, {"format": FORMAT})
    return sha256_of_tensors(tensors)


def read_text(path: Path, record: ModelRecord) -> tuple[dict[str, Tensor], Tensor]:
    """The text tower's tensors by name, and the embeddings (len(record.names), D)."""
    remedy = "get the model folder again"
    tensors, _ = load_tensors(path, "text tower", remedy)
    if sha256_of_tensors(tensors) != record.text_sha256:
        raise InputError(f"{path}: not the text tower that {RECORD} beside it describes: their hashes differ; {remedy}")
    embeddings = tensors.pop(EMBEDDINGS)
    return {name.removeprefix(TOWER): tensor for name, tensor in tensors.items()}, embeddings


def write_record(
    path: Path,
    *,
    metadata: Mapping[str, Any],
    model_sha256: str,
    text_sha256: str,
    text: Mapping[str, Any],
    evaluate: Mapping[str, Any],
) -> None:
    """Write model.json.

    Args:
        metadata: of model.safetensors.
        text: the metadata of data/text_embeddings.safetensors, as they are.
        evaluate: the params' section.
    """
    card = metadata["vlm_card"]
    write_json(
        path,
        {
            "format": FORMAT,
            "setting": metadata["setting"],
            "supervised": metadata["supervised"],
            "model_sha256": model_sha256,
            "text_sha256": text_sha256,
            "text": {key: text[key] for key in sorted(TEXT_KEYS)},
            "tokenizer": tokenizer_facts(card["model_config"]),
            "evaluate": {key: evaluate[key] for key in DECIDING},
            "provenance": {
                "inputs": metadata["inputs"],
                "vlm": {key: card[key] for key in ("architecture", "weights", "pretraining", "provenance")},
            },
        },
    )


def read_record(folder: Path) -> ModelRecord:
    """Read model.json of `folder`.

    Raises:
        InputError: no model folder, one of its files is missing, or model.json is not what `write_record` writes.
    """
    remedy = f"run `python -m fvlm package --setting {folder.name or 'zsd'}`, or name another model folder"
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a model folder, found none; {remedy}")
    if missing := [name for name in (MODEL, TEXT, RECORD) if not (folder / name).is_file()]:
        raise InputError(f"{folder}: expected a model folder, but it lacks {', '.join(missing)}; {remedy}")
    path = folder / RECORD
    value = read_json(path, "record of the model", remedy)
    if not isinstance(value, dict) or value.get("format") != FORMAT or value.keys() != KEYS:
        found = value.get("format") if isinstance(value, dict) else None
        raise InputError(f"{path}: expected the record of an {FORMAT}, got format {found!r} or other keys; {remedy}")
    text = value["text"]
    if not isinstance(value["evaluate"], dict):
        raise InputError(f"{path}: evaluate: expected the keys {', '.join(DECIDING)}; {remedy}")
    if not isinstance(text, dict) or text.keys() != TEXT_KEYS:
        raise InputError(f"{path}: text: expected the keys {', '.join(sorted(TEXT_KEYS))}; {remedy}")
    return ModelRecord(
        setting=value["setting"],
        supervised=tuple(value["supervised"]),
        model_sha256=value["model_sha256"],
        text_sha256=value["text_sha256"],
        names=tuple(text["names"]),
        category_ids=tuple(text["category_ids"]),
        templates=tuple(text["templates"]),
        tokenizer=value["tokenizer"],
        evaluate=read_section(Evaluate, value["evaluate"] | NO_SAY, f"{path}: evaluate"),
        provenance=value["provenance"],
    )


def locate(model: str | os.PathLike[str]) -> Path:
    """The folder that `model` means: a path, or `hf-hub:<owner>/<name>[@<revision>]`, downloaded into the Hub's cache.

    Raises:
        InputError: the repository cannot be had.
    """
    named = os.fspath(model)
    if not named.startswith(HUB_PREFIX):
        return Path(named)
    repository, _, revision = named.removeprefix(HUB_PREFIX).partition("@")
    from huggingface_hub import snapshot_download  # seconds, and only here

    try:
        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=[MODEL, TEXT, RECORD, TRAINING])
        )
    except Exception as error:  # of the network, the Hub or the disk: its library raises many kinds
        raise InputError(
            f"{named}: cannot be obtained ({_in_one_line(error)}); check the name and the network, or give a folder"
        ) from None


def push(folder: str | os.PathLike[str], repository: str, *, private: bool = False) -> str:
    """Upload a model folder to `hf-hub:<owner>/<name>`, which is created if need be, with the Hub's stored login.

    Returns:
        The address of the commit.

    Raises:
        InputError: no model folder, no such form of name, or the Hub refused.
    """
    read_record(Path(folder))
    name = repository.removeprefix(HUB_PREFIX)
    if not repository.startswith(HUB_PREFIX) or name.count("/") != 1:
        raise InputError(f"push: expected {HUB_PREFIX}<owner>/<name>, got {repository!r}")
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(name, private=private, exist_ok=True)
        files = [MODEL, TEXT, RECORD, TRAINING, CARD]
        return str(hub.upload_folder(repo_id=name, folder_path=Path(folder), allow_patterns=files))
    except Exception as error:  # as in `locate`
        raise InputError(
            f"{repository}: cannot be uploaded ({_in_one_line(error)}); log in with `hf auth login`, and check the name"
        ) from None


def _in_one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())

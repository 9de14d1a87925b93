"""Where each stage's files lie, below the working directory. `dvc.yaml` and `workflow/rules/` name the same paths."""

import os
from pathlib import Path

from .io import read_json
from .params import Params

VLM_WEIGHTS = Path("models/vlm.safetensors")
VLM_CARD = Path("models/vlm.json")
TEXT_EMBEDDINGS = Path("data/text_embeddings.safetensors")
COUNTS = Path("data/splits/counts.csv")
REPORTS = Path("reports")
HEADLINE_METRICS = Path("metrics.json")
CHECKPOINTS = Path("checkpoints")
PROTOCOLS = ("base", "novel", "generalized")
VAL_SPLITS = (*PROTOCOLS, "all")


DATA_ROOT_VARIABLE = "FVLM_DATA_ROOT"


def data_root(params: Params) -> Path:
    """The folder that holds pictures and annotations in COCO's layout.

    For coco2017 the first that is set of: the environment's FVLM_DATA_ROOT, `data.root`, where FVLM_DATA_ROOT pointed
    when `download` ran, data/coco2017. No engine's graph holds this path: the manifest says what is there and not
    where, so that other disks and machines do not make anything train again.
    """
    named = named_root(params)
    note = root_note(params)
    if named is None and note.exists():
        named = Path(read_json(note, "note of the data's folder", "run `python -m fvlm download`")["root"])
    return named or own_root(params)


def named_root(params: Params) -> Path | None:
    """The folder of pictures that a person named, if any; FVLM_DATA_ROOT is for COCO 2017 alone."""
    variable = os.environ.get(DATA_ROOT_VARIABLE) if params.data.dataset == "coco2017" else None
    named = variable or params.data.root
    return Path(named) if named else None


def own_root(params: Params) -> Path:
    return Path("data") / params.data.dataset


def root_note(params: Params) -> Path:
    """Where `download` notes what FVLM_DATA_ROOT was; no engine knows of it, as it is true of one machine only."""
    return own_root(params) / "root.json"


def manifest(params: Params) -> Path:
    return own_root(params) / "manifest.json"


def train_split(setting: str) -> Path:
    return Path(f"data/splits/train_{setting}.json")


def val_split(name: str) -> Path:
    """One of `VAL_SPLITS`."""
    return Path(f"data/splits/val_{name}.json")


def model(setting: str) -> Path:
    return Path(f"runs/{setting}/model.safetensors")


def losses(setting: str) -> Path:
    return Path(f"runs/{setting}/losses.csv")


def train_record(setting: str) -> Path:
    return Path(f"runs/{setting}/train.json")


def raw_detections(setting: str) -> Path:
    return Path(f"runs/{setting}/raw_detections.safetensors")


def metrics(setting: str) -> Path:
    return Path(f"metrics/{setting}.json")


def per_class(setting: str) -> Path:
    return Path(f"runs/{setting}/per_class.csv")


def fusion_sweep(setting: str) -> Path:
    return Path(f"runs/{setting}/fusion_sweep.csv")


def protocol_variants(setting: str) -> Path:
    return Path(f"runs/{setting}/protocol_variants.csv")


def precision_recall(setting: str) -> Path:
    return Path(f"runs/{setting}/precision_recall.csv")


def errors(setting: str) -> Path:
    return Path(f"runs/{setting}/errors.csv")


def detections(setting: str) -> Path:
    return Path(f"runs/{setting}/detections.json")


def detector_only_detections(setting: str) -> Path:
    return Path(f"runs/{setting}/detections_detector_only.json")


def freeze_mode(mode: str) -> Path:
    """Folder of one run of the freeze ablation."""
    return Path(f"ablations/freeze/{mode}")


FREEZE_TABLE = Path("ablations/freeze/comparison")  # with the suffixes .csv, .md and .png

"""Where each stage's files lie, below the working directory. `dvc.yaml` and `workflow/rules/` name the same paths."""

from pathlib import Path

from .params import Params

VLM_WEIGHTS = Path("models/vlm.safetensors")
VLM_CARD = Path("models/vlm.json")
TEXT_EMBEDDINGS = Path("data/text_embeddings.safetensors")
COUNTS = Path("data/splits/counts.csv")
REPORTS = Path("reports")
HEADLINE_METRICS = Path("metrics.json")
CHECKPOINTS = Path("checkpoints")
PROTOCOLS = ("base", "novel", "generalized")


def data_root(params: Params) -> Path:
    """The folder that holds pictures and annotations in COCO's layout."""
    return Path(params.data.root or f"data/{params.data.dataset}")


def manifest(params: Params) -> Path:
    return Path("data") / params.data.dataset / "manifest.json"


def train_split(setting: str) -> Path:
    return Path(f"data/splits/train_{setting}.json")


def val_split(protocol: str) -> Path:
    return Path(f"data/splits/val_{protocol}.json")


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


def detections(setting: str) -> Path:
    return Path(f"runs/{setting}/detections.json")


def detector_only_detections(setting: str) -> Path:
    return Path(f"runs/{setting}/detections_detector_only.json")


def freeze_mode(mode: str) -> Path:
    """Folder of one run of the freeze ablation."""
    return Path(f"ablations/freeze/{mode}")


FREEZE_TABLE = Path("ablations/freeze/comparison")  # with the suffixes .csv, .md and .png

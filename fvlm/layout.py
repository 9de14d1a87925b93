"""Where each stage's files lie, below the working directory. `dvc.yaml` and `workflow/rules/` name the same paths."""

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError, can_stand_in_a_line
from .io import read_json
from .params import Params

VLM_WEIGHTS = Path("models/vlm.safetensors")
VLM_CARD = Path("models/vlm.json")
TEXT_EMBEDDINGS = Path("data/text_embeddings.safetensors")
COUNTS = Path("data/splits/counts.csv")
REPORTS = Path("reports")
ABLATIONS = Path("ablations")
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
        remedy = "run `python -m fvlm download`"
        noted = read_json(note, "note of the data's folder", remedy)
        if not isinstance(noted, dict) or not isinstance(noted.get("root"), str):
            raise InputError(f"{note}: expected a note of the data's folder, got something else; {remedy}")
        named = Path(noted["root"])
    return named or own_root(params)


def named_root(params: Params) -> Path | None:
    """The folder of pictures that a person named, if any; FVLM_DATA_ROOT is for COCO 2017 alone."""
    variable = os.environ.get(DATA_ROOT_VARIABLE) if params.data.dataset == "coco2017" else None
    named = variable or params.data.root
    if named and not can_stand_in_a_line(named):
        raise InputError(
            f"data.root or {DATA_ROOT_VARIABLE}: expected a path in UTF-8 without control letters, got {named!a}; "
            "rename the folder, or make a link to it"
        )
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


@dataclass(frozen=True)
class Run:
    """One training and what is made from it. Without a seed: that of the first of `seeds`, where people look for it."""

    setting: str
    seed: int | None

    @property
    def name(self) -> str:
        """What its paths are named by: `zsd_seed1`, or `zsd` without a seed."""
        return self.setting if self.seed is None else f"{self.setting}_seed{self.seed}"

    @property
    def options(self) -> str:
        """How a command line names it."""
        return f"--setting {self.setting}" + ("" if self.seed is None else f" --seed {self.seed}")


def model(run: str) -> Path:
    return Path(f"runs/{run}/model.safetensors")


def losses(run: str) -> Path:
    return Path(f"runs/{run}/losses.csv")


def train_record(run: str) -> Path:
    return Path(f"runs/{run}/train.json")


def raw_detections(run: str) -> Path:
    return Path(f"runs/{run}/raw_detections.safetensors")


def text_tower(setting: str) -> Path:
    return Path(f"runs/{setting}/text.safetensors")


def model_record(setting: str) -> Path:
    return Path(f"runs/{setting}/model.json")


def model_card(setting: str) -> Path:
    return Path(f"runs/{setting}/README.md")


def metrics(run: str) -> Path:
    return Path(f"metrics/{run}.json")


def per_class(run: str) -> Path:
    return Path(f"runs/{run}/per_class.csv")


def fusion_sweep(run: str) -> Path:
    return Path(f"runs/{run}/fusion_sweep.csv")


def protocol_variants(run: str) -> Path:
    return Path(f"runs/{run}/protocol_variants.csv")


def precision_recall(run: str) -> Path:
    return Path(f"runs/{run}/precision_recall.csv")


def errors(run: str) -> Path:
    return Path(f"runs/{run}/errors.csv")


def detections(run: str) -> Path:
    return Path(f"runs/{run}/detections.json")


def detector_only_detections(run: str) -> Path:
    return Path(f"runs/{run}/detections_detector_only.json")


# What the stages of a run write, each file a function of the run's name.
RUN_FILES = {
    "train": (model, losses, train_record),
    "detect": (raw_detections,),
    "evaluate": (
        metrics,
        per_class,
        precision_recall,
        errors,
        fusion_sweep,
        protocol_variants,
        detections,
        detector_only_detections,
    ),
}


def ablation(name: str) -> Path:
    """Folder of one ablation: its comparison, and a folder for each of its variants."""
    return ABLATIONS / name


def ablation_comparison(name: str) -> Path:
    """Scores of all variants, which the report page shows; .csv, .md and .png of them stand beside it."""
    return ablation(name) / "comparison.json"

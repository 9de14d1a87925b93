"""The ablations: what the pipeline's run scores with one decision taken otherwise, and where each variant's files lie.

An ablation is an entry of `ABLATIONS`, and a variant is the changes that it makes to params.yaml. A variant that
changes nothing is the pipeline's own run and is not computed again: at full size that saves a day. All variants have
the first of `seeds`, so a difference of a few points can be chance.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import layout
from .errors import InputError
from .params import Params, Setting

SETTING: Setting = "zsd"  # of every ablation but that of the settings: what is asked is open-vocabulary
ONE_TEMPLATE = ("a photo of a {}.",)  # CLIP's default (section 3.1.4), and one of its 80
BACKGROUND_WEIGHTS = {
    0.2: "the default for OV-COCO",
    0.6: "FViT's for OV-COCO",
    0.9: "F-VLM's for LVIS",
    1.0: "background counts like any class",
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of an ablation's table."""

    meaning: str
    changes: Mapping[str, Any] = field(default_factory=dict)  # "section.key" of params.yaml -> value
    setting: Setting = SETTING
    model_of: str | None = None  # the variant whose detector it tests; None: its own


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One question, asked by training and testing again."""

    title: str
    varied: str  # heading of the column of the variants' names
    variants: Mapping[str, Variant]
    notes: tuple[str, ...] = ()


ABLATIONS: Mapping[str, Ablation] = {
    "freeze": Ablation(
        title="Freezing of the image tower",
        varied="model.freeze",
        variants={
            "all": Variant(
                meaning="nothing of the tower changes (F-VLM)",
                changes={"model.freeze": "all"},
            ),
            "norm_eval": Variant(
                meaning="statistics fixed, weights train",
                changes={"model.freeze": "norm_eval"},
            ),
            "none": Variant(
                meaning="weights train, statistics drift",
                changes={"model.freeze": "none"},
            ),
        },
        notes=(
            "The shift is how far batch norm's running statistics moved from the VLM's, in their standard deviations.",
        ),
    ),
    # The classifier is the text: open-vocabulary detectors train and test with one set of templates (ViLD, DetPro,
    # F-VLM). CLIP's own ablation (section 3.1.4) can only change the test. All four pairs tell the two apart.
    "prompt": Ablation(
        title="Prompt templates",
        varied="text.templates",
        variants={
            "ensemble": Variant(
                meaning="CLIP's 80 templates in training and test (F-VLM)",
                changes={"text.templates": "clip80"},
            ),
            "single": Variant(
                meaning=f'"{ONE_TEMPLATE[0]}" in training and test',
                changes={"text.templates": ONE_TEMPLATE},
            ),
            "single_at_test": Variant(
                meaning="trained with the 80, tested with the one",
                changes={"text.templates": ONE_TEMPLATE},
                model_of="ensemble",
            ),
            "ensemble_at_test": Variant(
                meaning="trained with the one, tested with the 80",
                changes={"text.templates": "clip80"},
                model_of="single",
            ),
        },
        notes=(
            "The templates make the texts of both branches and of background. Those of training are the targets that "
            "the box head learns; those of the test also decide what the VLM's scores are worth.",
        ),
    ),
    "background": Ablation(
        title="Weight of background in the classification loss",
        varied="train.background_weight",
        variants={
            f"{weight:g}": Variant(meaning=meaning, changes={"train.background_weight": weight})
            for weight, meaning in BACKGROUND_WEIGHTS.items()
        },
        notes=(
            "Objects of novel classes are background in training: the weight decides how hard the detector learns to "
            "overlook them.",
        ),
    ),
    "setting": Ablation(
        title="Which boxes supervise",
        varied="setting",
        variants={
            "zsd": Variant(setting="zsd", meaning="48 base classes; every other object is background"),
            "zsd_strict": Variant(
                setting="zsd_strict", meaning="as zsd, without the pictures that show a novel object"
            ),
            "ovod": Variant(setting="ovod", meaning="65 classes, novel ones too: an upper bound, not open-vocabulary"),
        },
        notes=("ovod is an upper bound, not an open-vocabulary result: it has seen boxes of the novel classes.",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a variant runs with, and where its files lie: in its own folder, or the pipeline's where those serve."""

    ablation: str
    variant: str
    params: Params  # with the variant's changes
    setting: Setting
    text: Path
    model: Path
    record: Path  # of the training of `model`
    raw_detections: Path

    @property
    def folder(self) -> Path:
        return layout.ablation(self.ablation) / self.variant

    @property
    def split(self) -> Path:
        return layout.train_split(self.setting)

    @property
    def scores(self) -> Path:
        return self.folder / "scores.json"

    @property
    def is_the_pipelines(self) -> bool:
        """Whether this variant is the pipeline's own run."""
        return self.raw_detections == layout.raw_detections(self.setting)

    @property
    def command(self) -> str:
        """What makes every file of the ablation."""
        return f"snakemake {self.ablation}_ablation --cores all"

    @property
    def remedy(self) -> str:
        return f"run `{self.command}`"

    def own(self, path: Path) -> Path:
        """`path`, one of the plan's, where it is the variant's to write.

        Raises:
            InputError: the file is the pipeline's or another variant's.
        """
        if path.parent != self.folder:
            raise InputError(
                f"--variant: {self.variant} of {self.ablation} makes no {path.name} of its own: it takes {path}; "
                f"{self.remedy}, which knows what to make"
            )
        return path

    def require(self, *paths: Path) -> None:
        """Raises InputError where one of `paths` is missing."""
        for path in paths:
            if not path.is_file():
                raise InputError(f"{path}: not found; {self.remedy}")


def plan(params: Params, ablation: str, variant: str) -> Plan:
    """How `variant` of `ablation` is computed under params.yaml as it stands."""
    chosen = ABLATIONS[ablation].variants[variant]
    changed = with_changes(params, chosen.changes)
    folder = layout.ablation(ablation) / variant
    unchanged = changed == params and chosen.setting in params.settings

    text, raw = folder / "text_embeddings.safetensors", folder / "raw_detections.safetensors"
    if changed.text == params.text:
        text = layout.TEXT_EMBEDDINGS
    if chosen.model_of is not None:
        tested = plan(params, ablation, chosen.model_of)
        model, record = tested.model, tested.record
    elif unchanged:
        model, record = layout.model(chosen.setting), layout.train_record(chosen.setting)
        raw = layout.raw_detections(chosen.setting)
    else:
        model, record = folder / "model.safetensors", folder / "train.json"
    return Plan(
        ablation=ablation,
        variant=variant,
        params=changed,
        setting=chosen.setting,
        text=text,
        model=model,
        record=record,
        raw_detections=raw,
    )


def with_changes(params: Params, changes: Mapping[str, Any]) -> Params:
    """`params` with each "section.key" of `changes` set."""
    for name, value in changes.items():
        section, key = name.split(".")
        params = dataclasses.replace(params, **{section: dataclasses.replace(getattr(params, section), **{key: value})})
    return params

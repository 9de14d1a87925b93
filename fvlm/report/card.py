"""The model card: README.md of a model folder, which the Hugging Face Hub shows.

Every number in it is read from the run's own files; none is written by hand.
"""

from collections.abc import Mapping
from typing import Any

from ..params import Dataset, Evaluate, Setting
from ..predict.folder import DECIDING, ModelRecord
from .tables import GROUPS, SCORES, SUPERVISION

PICTURES: Mapping[Dataset, str] = {
    "coco2017": "COCO 2017, photographs",
    "emoji": "an embedded world of scenes drawn with Twemoji pictures (CC-BY 4.0), with COCO's 80 categories",
    "coco_folder": "a folder of pictures in COCO's layout",
}
LIMITS: Mapping[Dataset, str] = {
    "coco2017": "It was scored on COCO's validation pictures alone.",
    "emoji": "It has seen drawings only and is of no use on photographs. Its numbers are those of the embedded world "
    "and are not to be set beside COCO's.",
    "coco_folder": "Its numbers are those of that folder.",
}


def model_card(
    record: ModelRecord,
    *,
    setting: Setting,
    dataset: Dataset,
    training: Mapping[str, Any],
    metrics: Mapping[str, float],
    evaluate: Evaluate,
) -> str:
    """Markdown with the Hub's head.

    Args:
        record: of the model folder.
        dataset: what it was trained and scored on.
        training: train.json of the run.
        metrics: of the run, AP in percent.
        evaluate: how they were scored.
    """
    vlm = record.provenance["vlm"]
    supervision = SUPERVISION[setting]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(training["versions"].items()))
    commit = training["git_commit"] or "none: trained outside a git repository"
    rules = ", ".join(f"`{key}` {_plain(getattr(evaluate, key))}" for key in ("images", "vocabulary", *DECIDING))
    pretraining = vlm["pretraining"]
    known = (
        f"{vlm['architecture']}, pretrained for {pretraining['steps']} steps of {pretraining['batch_size']} captioned "
        f"pictures; it names {100 * pretraining['held_out_accuracy']:.1f} % of {pretraining['held_out_pictures']} held "
        "out pictures"
        if pretraining
        else f"{vlm['architecture']}, weights `{vlm['weights']}`"
    )
    facts = {
        "Pictures": PICTURES[dataset],
        "Setting": f"`{setting}`. {supervision.meaning}",
        "Classes with boxes in training": f"{len(record.supervised)}: {', '.join(record.supervised)}",
        "Vision-language model": known,
        "Image tower in training": f"freeze `{training['freeze']}`; {training['frozen_parameters']:,} parameters "
        f"frozen, {training['trained_parameters']:,} trained",
        "Training": f"{training['steps']:,} steps, {training['images']:,} pictures, seed {training['seed']}, "
        f"{training['seconds']:,.0f} s",
        "Code": f"commit {commit}",
        "Versions": versions,
        "Prompts": f"{len(record.templates)} templates, background `{record.background}`",
        "Detector": f"sha256 of its tensors {record.model_sha256}",
    }
    return "\n".join(
        [
            "---",
            "pipeline_tag: zero-shot-object-detection",
            "tags: [object-detection, open-vocabulary-detection, f-vlm]",
            "---",
            "",
            f"# F-VLM, {vlm['architecture']}, {setting}",
            "",
            "An open-vocabulary detector after [F-VLM (Kuo et al., ICLR 2023)](https://arxiv.org/abs/2209.15639), made "
            "by `fvlm`: it takes pictures and any words, and gives boxes.",
            "",
            "## Use",
            "",
            "```python",
            "from fvlm import load_detector",
            "",
            'detector = load_detector("FOLDER")  # this folder, or hf-hub:<owner>/<name>',
            'detector.predict("picture.jpg", ["red bus", "dog"], threshold=0.3)',
            "```",
            "",
            "```",
            'python -m fvlm predict picture.jpg --classes "red bus, dog" --model FOLDER --save out/',
            "```",
            "",
            "## Scores",
            "",
            "AP at IoU 0.5 in percent, generalized protocol: the 65 classes of the split compete.",
            "",
            _row("classes", *SCORES.values()),
            _row("---", *["--:"] * len(SCORES)),
            *(
                _row(group, *(f"{metrics[f'{score}generalized_{group}_AP50']:.1f}" for score in SCORES))
                for group in GROUPS
            ),
            "",
            *([] if not supervision.novel_boxed else ["Boxes of the novel classes were seen in training.", ""]),
            f"Scored under {rules} (the section `evaluate` of params.yaml).",
            "",
            "## How it was made",
            "",
            _row("", ""),
            _row("---", "---"),
            *(_row(name, value) for name, value in facts.items()),
            "",
            "`train.json` has all params of the training.",
            "",
            "## Limits",
            "",
            f"{LIMITS[dataset]} Words that the vision-language model does not know are found by chance.",
            "",
        ]
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(value: Any) -> str:
    """As params.yaml has it."""
    return "null" if value is None else str(value).lower()

"""Command `check`: the ladder of checks on whatever has been built with the present params, from the bottom up."""

import csv
import dataclasses
import io
import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from . import layout
from .compute import set_up
from .data.coco import load_instances
from .data.dataset import ValidationPictures, check_pictures_exist
from .data.loading import validation_batches
from .data.splits import base_names, novel_names
from .detector.detector import build_detector
from .errors import InputError
from .evaluation.ladder import (
    Rung,
    judge_detector,
    judge_fusion,
    judge_novel,
    judge_proposals,
    judge_published,
    judge_regions,
    judge_text,
    judge_tower,
    settled,
)
from .evaluation.raw import RawDetections
from .evaluation.regions import average_recall, best_overlaps, classify_boxes
from .io import read_json, read_text, write_json
from .layout import Run
from .params import Params
from .tensors import load_tensors, tensors_below
from .vlm.clip import VlmCard, load_card, load_clip
from .vlm.freeze import DETECTOR_TOWER, IMAGE_TOWER
from .vlm.golden import compare, golden_values
from .vlm.prompts import CLIP_TEMPLATES

PICTURES = 500  # of the validation pictures that rung `regions` looks at, evenly spread: 3,300 boxes of COCO's
WIDTH = 120  # of a printed line


def run(params: Params, setting: str, json_path: str | None, seed: int | None = None) -> bool:
    """Climb the ladder for one run, print each rung as it is judged, and write `json_path` if one is given.

    Args:
        seed: the run's; None for that of the first of `params.seeds`, at the paths without a seed.

    Returns:
        False where a rung failed.

    Raises:
        InputError: a file is broken, or was built with other params than the present ones; or none is there.
    """
    checked = Run(setting, seed)
    print(f"check: setting {checked.name}; each rung rests on those above it in this list", flush=True)
    rungs, judged = [], 0
    for name, judge in JUDGES.items():
        rung = _missing(name, params, checked)
        if rung is None:
            rung = judge(params, checked)
            judged += 1
        rungs.append(rung)
        print(_shown(len(rungs), rung), flush=True)
    counts = {
        verdict: sum(r.verdict == verdict for r in rungs) for verdict in ("ok", "suspicious", "failed", "skipped")
    }
    print("check: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    wrong = [rung for rung in rungs if rung.verdict in ("failed", "suspicious")]
    if wrong:
        print(f"check: start at rung {wrong[0].name}: what comes after it rests on it")
    if json_path is not None:
        write_json(
            json_path,
            {**dataclasses.asdict(checked), "counts": counts, "rungs": [dataclasses.asdict(r) for r in rungs]},
        )
    if judged == 0:
        raise InputError(
            f"check: nothing of setting {checked.name} could be checked, for the reasons above; build it with "
            "`snakemake all` or `dvc repro`"
        )
    return counts["failed"] == 0


def _shown(number: int, rung: Rung) -> str:
    lines = []
    for title, text in (
        (f"{number} {rung.name:<10}{rung.verdict:<11}", rung.found),
        (f"{'':<12}{'expected':<11}", rung.expected),
        (f"{'':<12}{'look at':<11}", rung.look_at),
    ):
        if text:
            lines += textwrap.wrap(
                text, WIDTH, initial_indent=title, subsequent_indent=" " * 23, break_on_hyphens=False
            )
    return "\n".join(lines)


def _missing(name: str, params: Params, run: Run) -> Rung | None:
    """A skipped rung that says which command makes the first of its missing files; None if all are there."""
    for path, command in _inputs(name, params, run).items():
        if not path.exists():
            return Rung(name=name, verdict="skipped", found=f"{path} not found; run `python -m fvlm {command}`")
    return None


def _inputs(name: str, params: Params, run: Run) -> dict[Path, str]:
    """The files that a rung reads, and the command that makes each, in the order of the pipeline."""
    manifest = {layout.manifest(params): "download"}
    card = {layout.VLM_CARD: "vlm", layout.VLM_WEIGHTS: "vlm"}
    text = {layout.TEXT_EMBEDDINGS: "text"}
    split = {layout.val_split("generalized"): "val_splits"}
    trained = {layout.model(run.name): f"train {run.options}", layout.train_record(run.name): f"train {run.options}"}
    raw = {layout.raw_detections(run.name): f"detect {run.options}"}
    scores = {
        layout.metrics(run.name): f"evaluate {run.options}",
        layout.fusion_sweep(run.name): f"evaluate {run.options}",
    }
    return {
        "text": card | text,
        "regions": manifest | card | split | text,
        "tower": card | trained,
        "proposals": split | trained | raw,
    }.get(name, card | split | trained | raw | scores)


def _text(params: Params, run: Run) -> Rung:
    card = _card(params)
    tensors, metadata = _text_embeddings(card)
    return judge_text(golden_findings(card, tensors, metadata), card.architecture)


def golden_findings(card: VlmCard, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> list[str] | None:
    """Where the text embeddings differ from the golden values of this VLM; None if it or its prompts have none."""
    golden = golden_values(card.architecture) if card.is_openais else None
    prompts = (CLIP_TEMPLATES, "background")
    if golden is None or (tuple(metadata["templates"]), metadata["background"]) != prompts:
        return None
    return list(compare(dict(zip(metadata["names"], tensors["embeddings"], strict=True)), golden).findings)


def _regions(params: Params, run: Run) -> Rung:
    device = set_up(params.compute)
    card = _card(params)
    detector = build_detector(params.model, card, load_clip(layout.VLM_WEIGHTS, card).visual).eval().to(device)
    tensors, metadata = _text_embeddings(card)
    base, novel = base_names(), novel_names()
    names = [*base, *novel]
    text = tensors["embeddings"][[metadata["names"].index(name, 1) for name in names]].to(device)
    split = load_instances(layout.val_split("generalized"))
    manifest = read_json(layout.manifest(params), "data manifest", "run `python -m fvlm download`")
    image_dir = layout.data_root(params) / manifest["val"]["images"]
    images = split["images"]
    count = min(len(images), PICTURES)
    chosen = {**split, "images": [images[place * len(images) // count] for place in range(count)]}
    check_pictures_exist(chosen, image_dir)
    pictures = ValidationPictures(
        chosen, image_dir, canvas_size=params.model.image_size, mean=card.image_mean, std=card.image_std
    )
    named = classify_boxes(detector, validation_batches(pictures, params.detect, device=device), split, text, names)
    return judge_regions(named, range(len(base)), range(len(base), len(names)), card)


def _tower(params: Params, run: Run) -> Rung:
    record = _record(params, run)
    vlm, _ = load_tensors(layout.VLM_WEIGHTS, "the VLM's weights", "run `python -m fvlm vlm`")
    trained, _ = load_tensors(layout.model(run.name), "detector", f"run `python -m fvlm train {run.options}`")
    return judge_tower(
        freeze=record["freeze"],
        before=record["tower_sha256_before"],
        after=record["tower_sha256_after"],
        vlm=tensors_below(IMAGE_TOWER, vlm),
        trained=tensors_below(DETECTOR_TOWER, trained),
    )


def _proposals(params: Params, run: Run) -> Rung:
    if untrained := _untrained("proposals", params, run):
        return untrained
    raw = RawDetections.load(layout.raw_detections(run.name))
    split = load_instances(layout.val_split("generalized"))
    recalls, boxes = {}, {}
    for group, names in (("base", base_names()), ("novel", novel_names())):
        overlaps = best_overlaps(raw, split, names)
        boxes[group] = len(overlaps)
        recalls[group] = average_recall(overlaps)
        recalls[f"{group}_chance"] = average_recall(best_overlaps(raw, split, names, swapped=True))
    return judge_proposals(recalls, boxes, int(raw.offsets.diff().max()))


def _detector(params: Params, run: Run) -> Rung:
    return _untrained("detector", params, run) or judge_detector(_metrics(run), _boxes(base_names()))


def _fusion(params: Params, run: Run) -> Rung:
    untrained = _untrained("fusion", params, run)
    return untrained or judge_fusion(_metrics(run), params.evaluate.alpha, _boxes(base_names()))


def _novel(params: Params, run: Run) -> Rung:
    if untrained := _untrained("novel", params, run):
        return untrained
    beta_0 = _swept_novel(run).get((params.evaluate.alpha, 0.0))
    return judge_novel(_metrics(run), beta_0, params.evaluate.beta, _boxes(novel_names()), run.setting)


def _published(params: Params, run: Run) -> Rung:
    images = len(load_instances(layout.val_split("generalized"))["images"])
    return judge_published(_metrics(run), run.setting, _card(params), images)


JUDGES = {  # from the bottom up
    "text": _text,
    "regions": _regions,
    "tower": _tower,
    "proposals": _proposals,
    "detector": _detector,
    "fusion": _fusion,
    "novel": _novel,
    "published": _published,
}


def _untrained(name: str, params: Params, run: Run) -> Rung | None:
    """A skipped rung where the detector's training was too short to expect anything; None where it was not."""
    record = _record(params, run)
    if settled(params.model.norm_momentum, record["steps"]):
        return None
    left = 100 * (1 - params.model.norm_momentum) ** record["steps"]
    return Rung(
        name=name,
        verdict="skipped",
        found=f"the detector is not trained: after {record['steps']} steps {left:.0f} % of batch norm's initial "
        "statistics are left (model.norm_momentum), and it scores about 0 whatever it learned",
    )


def _card(params: Params) -> VlmCard:
    card = load_card(layout.VLM_CARD)
    if card.architecture != params.vlm.architecture:
        raise InputError(
            f"{layout.VLM_CARD}: expected vlm.architecture {params.vlm.architecture} as in params.yaml, got "
            f"{card.architecture}; run `python -m fvlm vlm` and what follows again"
        )
    return card


def _text_embeddings(card: VlmCard) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path, remedy = layout.TEXT_EMBEDDINGS, "run `python -m fvlm text`"
    tensors, metadata = load_tensors(path, "text embeddings", remedy)
    if metadata.get("vlm_sha256") != card.weights_sha256:
        raise InputError(f"{path}: these embeddings are not of the VLM in {layout.VLM_WEIGHTS}; {remedy}")
    return tensors, metadata


def _record(params: Params, run: Run) -> dict[str, Any]:
    """The training record, if the detector was trained with the present model params."""
    path, remedy = layout.train_record(run.name), f"run `python -m fvlm train {run.options}`"
    record = read_json(path, "training record", remedy)
    try:
        was, now = record["params"]["model"], dataclasses.asdict(params.model)
        _ = record["freeze"], record["steps"], record["tower_sha256_before"], record["tower_sha256_after"]
    except (KeyError, TypeError):
        raise InputError(
            f"{path}: expected a training record as `train` writes it, got something else; {remedy}"
        ) from None
    if changed := sorted(key for key in now.keys() | was.keys() if now.get(key) != was.get(key)):
        raise InputError(
            f"{path}: expected a detector of the present params, but model.{changed[0]} was "
            f"{was.get(changed[0])!r} and is {now.get(changed[0])!r}; {remedy} and what follows again"
        )
    return record


def _boxes(names: Collection[str]) -> int:
    """How many boxes of the classes `names` the generalized split has to find."""
    split = load_instances(layout.val_split("generalized"))
    ids = {category["id"] for category in split["categories"] if category["name"] in names}
    return sum(a["category_id"] in ids and not a["iscrowd"] for a in split["annotations"])


def _metrics(run: Run) -> dict[str, float]:
    path, remedy = layout.metrics(run.name), f"run `python -m fvlm evaluate {run.options}`"
    metrics = read_json(path, "metrics", remedy)
    needed = {f"{branch}generalized_base_AP50" for branch in ("", "detector_only_", "vlm_only_")}
    needed |= {"generalized_novel_AP50", "generalized_all_AP50"}
    if not isinstance(metrics, dict) or not needed <= metrics.keys():
        raise InputError(f"{path}: expected metrics as `evaluate` writes them, got something else; {remedy}")
    return metrics


def _swept_novel(run: Run) -> dict[tuple[float, float], float]:
    """Novel AP50 of the sweep's pairs (alpha, beta) at the headline's temperature and NMS, which come first."""
    path, remedy = layout.fusion_sweep(run.name), f"run `python -m fvlm evaluate {run.options}`"
    rows = list(csv.DictReader(io.StringIO(read_text(path, "fusion sweep", remedy))))
    try:
        return {
            (float(row["alpha"]), float(row["beta"])): float(row["generalized_novel_AP50"])
            for row in rows
            if all(row[fixed] == rows[0][fixed] for fixed in ("vlm_temperature", "nms_iou"))
            and row["generalized_novel_AP50"]  # empty where no novel box is to be found
        }
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: expected the table that `evaluate` writes, got something else; {remedy}") from None

"""Stage `report`: tables, plots, pictures and a page that compare the settings; metrics.json of `report.setting`."""

import dataclasses
import io
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import layout
from ..data.coco import CocoDict, load_instances
from ..data.dataset import read_picture
from ..errors import InputError
from ..evaluation.curves import CURVE_COLUMNS, MEAN
from ..evaluation.errors import ERROR_COLUMNS
from ..io import read_json, read_text, sha256_of_file, write_aside, write_json, write_text
from ..params import Params, Setting
from ..report import ablations, gallery, page, pictures, plots, tables
from ..report.pictures import Comparison, Group

LOSS_COLUMNS = ("step", *tables.TERMS)
PER_CLASS_COLUMNS = ("name", "category_id", "group", "val_boxes", "AP50", "detector_only_AP50")
SWEEP_COLUMNS = ("alpha", "beta", "vlm_temperature", "nms_iou", *plots.SWEPT.values())
VARIANT_COLUMNS = ("variant", "differs", "source", *plots.SWEPT.values())
RECORD_KEYS = (
    "freeze",
    "steps",
    "seconds",
    "images",
    "images_per_s",
    "trained_parameters",
    "frozen_parameters",
    "vlm_sha256",
    "tower_sha256_before",
    "tower_sha256_after",
    "inputs",
    "git_commit",
    "versions",
    "params",
)


def run(params: Params) -> None:
    """Write metrics.json, reports/comparison.{csv,md,tex}, six PNGs and reports/index.html.

    Everything is computed before anything is written.

    Raises:
        InputError: files of earlier stages are missing, each named with the stage that makes it, or unsound.
    """
    makers = _inputs(params)
    missing = [
        f"{path}: not found; run `python -m fvlm {stage}`" for path, stage in makers.items() if not path.is_file()
    ]
    if missing:
        raise InputError("\n".join(missing))

    chosen = params.report.setting
    of_seeds = {
        setting: [_metrics(path, makers) for path in _metrics_paths(params, setting)] for setting in params.settings
    }
    metrics = {setting: tables.over_seeds(runs) for setting, runs in of_seeds.items()}
    comparison = tables.comparison(metrics)
    curves = {setting: _table(layout.losses(setting), LOSS_COLUMNS, makers) for setting in params.settings}
    sweeps = {setting: _table(layout.fusion_sweep(setting), SWEEP_COLUMNS, makers) for setting in params.settings}
    curves_of_classes = {
        setting: _table(layout.precision_recall(setting), CURVE_COLUMNS, makers) for setting in params.settings
    }
    errors = {setting: _table(layout.errors(setting), ERROR_COLUMNS, makers) for setting in params.settings}
    variants = {
        setting: _table(layout.protocol_variants(setting), VARIANT_COLUMNS, makers, may_be_empty=("differs", "source"))
        for setting in params.settings
    }
    classes = {
        setting: _table(
            layout.per_class(setting), PER_CLASS_COLUMNS, makers, may_be_empty=("AP50", "detector_only_AP50")
        )
        for setting in params.settings
    }
    records = {setting: _mapping(layout.train_record(setting), RECORD_KEYS, makers) for setting in params.settings}
    counts = _table(layout.COUNTS, ("subset",), makers)
    manifest = _mapping(layout.manifest(params), ("dataset", "val"), makers)
    card = _mapping(layout.VLM_CARD, ("architecture", "weights", "pretraining"), makers)
    split = load_instances(layout.val_split("generalized"))
    pixels = _reader(split, layout.data_root(params) / manifest["val"]["images"])
    groups: dict[int, tuple[str, Group]] = {
        row["category_id"]: (row["name"], row["group"]) for row in classes[chosen].to_dict("records")
    }
    fused, detector_only = (
        _results(path, groups.keys(), makers)
        for path in (layout.detections(chosen), layout.detector_only_detections(chosen))
    )
    shown = _draw(params, split, groups, fused, detector_only, pixels)
    exhibits = gallery.exhibits(
        split,
        fused,
        detector_only,
        {name for name, group in groups.values() if group == "novel"},
        of_each=params.report.pictures,
        score_threshold=params.report.score_threshold,
        read=pixels,
    )

    evaluate = params.evaluate
    losses = plots.to_png(plots.losses(curves))
    maps = {setting: plots.at_headline(sweep) for setting, sweep in sweeps.items()}
    sweep = plots.to_png(plots.fusion_sweep(maps, alpha=evaluate.alpha, beta=evaluate.beta))
    per_class = plots.to_png(plots.per_class(classes, order_by=chosen))
    means = {setting: table[table["name"] == MEAN] for setting, table in curves_of_classes.items()}
    precision_recall = plots.to_png(plots.precision_recall(means))
    causes = plots.to_png(plots.errors(errors))
    title = f"Setting {chosen}: detections with a score of at least {params.report.score_threshold:g}"
    sheet = pictures.encode(pictures.sheet(shown, title=title), "PNG")
    html = page.render(
        page.Content(
            setting=chosen,
            comparison=comparison,
            curves=curves,
            losses_png=losses,
            sweeps=sweeps,
            fusion_sweep_png=sweep,
            per_class_png=per_class,
            precision_recall=curves_of_classes,
            precision_recall_png=precision_recall,
            errors=errors,
            errors_png=causes,
            variants=variants,
            exhibits=exhibits,
            counts=counts,
            manifest=manifest,
            vlm_card=card,
            train_records=records,
            evaluate=dataclasses.asdict(evaluate),
            report=dataclasses.asdict(params.report),
            ablations=ablations.shown(params, {setting: runs[0] for setting, runs in of_seeds.items()}),
            input_hashes={str(path): sha256_of_file(path) for path in makers},
        )
    )

    reports = layout.REPORTS
    write_text(reports / "comparison.csv", tables.to_csv(comparison))
    write_text(reports / "comparison.md", tables.to_markdown(comparison))
    write_text(reports / "comparison.tex", tables.to_latex(comparison))
    images = {
        "losses": losses,
        "fusion_sweep": sweep,
        "per_class": per_class,
        "precision_recall": precision_recall,
        "errors": causes,
        "detections": sheet,
    }
    for name, png in images.items():
        with write_aside(reports / f"{name}.png") as aside:
            aside.write_bytes(png)
    write_text(reports / "index.html", html)
    write_json(layout.HEADLINE_METRICS, metrics[chosen])
    print(f"report: {reports / 'index.html'} compares {', '.join(params.settings)}", flush=True)


def _metrics_paths(params: Params, setting: Setting) -> dict[Path, str]:
    """The metrics of every seed, the first one's at the path without a seed, and the stage that makes each."""
    runs = [layout.Run(setting, seed) for seed in (None, *params.seeds[1:])]
    return {layout.metrics(run.name): f"evaluate {run.options}" for run in runs}


def _inputs(params: Params) -> dict[Path, str]:
    """Every file that the report reads, but the pictures, and the stage that makes it."""
    makers = {
        layout.manifest(params): "download",
        layout.VLM_CARD: "vlm",
        layout.COUNTS: "val_splits",
        layout.val_split("generalized"): "val_splits",
    }
    for setting in params.settings:
        for path in (layout.losses(setting), layout.train_record(setting)):
            makers[path] = f"train --setting {setting}"
        makers |= _metrics_paths(params, setting)
        for path in (
            layout.per_class(setting),
            layout.precision_recall(setting),
            layout.errors(setting),
            layout.fusion_sweep(setting),
            layout.protocol_variants(setting),
            layout.detections(setting),
            layout.detector_only_detections(setting),
        ):
            makers[path] = f"evaluate --setting {setting}"
    return makers


def _reader(split: CocoDict, image_dir: Path) -> Callable[[int], np.ndarray]:
    """Gives the picture (H, W, 3) uint8 RGB of an image id of `split`."""
    file_of = {image["id"]: image["file_name"] for image in split["images"]}
    return lambda image_id: read_picture(image_dir / file_of[image_id]).permute(1, 2, 0).numpy()


def _draw(
    params: Params,
    split: CocoDict,
    groups: Mapping[int, tuple[str, Group]],
    fused: list[dict[str, Any]],
    detector_only: list[dict[str, Any]],
    pixels: Callable[[int], np.ndarray],
) -> list[Comparison]:
    """The sheet's validation pictures of `report.setting`, fused beside detector-only."""
    novel = {category_id for category_id, (_, group) in groups.items() if group == "novel"}
    ids = pictures.choose_pictures(split["annotations"], novel, params.report.pictures)
    truth = pictures.boxes_by_image(_of(split["annotations"], ids), groups)
    found = [
        pictures.boxes_by_image(_of(results, ids), groups, score_threshold=params.report.score_threshold)
        for results in (fused, detector_only)
    ]
    return [
        Comparison(
            image_id,
            *(
                pictures.draw(pixels(image_id), truth.get(image_id, []), of_image.get(image_id, []))
                for of_image in found
            ),
        )
        for image_id in ids
    ]


def _of(records: list[dict[str, Any]], image_ids: Collection[int]) -> list[dict[str, Any]]:
    return [record for record in records if record["image_id"] in image_ids]


def _results(path: Path, category_ids: Collection[int], makers: Mapping[Path, str]) -> list[dict[str, Any]]:
    """A COCO results file of the known categories."""
    remedy = f"run `python -m fvlm {makers[path]}`"
    results = read_json(path, "detections", remedy)
    if not isinstance(results, list):
        raise InputError(f"{path}: expected a list of COCO results, got {type(results).__name__}; {remedy}")
    for place, result in enumerate(results):
        if not isinstance(result, dict) or not {"image_id", "category_id", "bbox", "score"} <= result.keys():
            raise InputError(f"{path}: result {place}: expected image_id, category_id, bbox and score; {remedy}")
        if result["category_id"] not in category_ids:
            raise InputError(f"{path}: result {place}: category {result['category_id']} is not scored; {remedy}")
    return results


def _metrics(path: Path, makers: Mapping[Path, str]) -> dict[str, float]:
    metrics = _mapping(path, tables.METRIC_KEYS, makers)
    for key in tables.METRIC_KEYS:
        value = metrics[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{path}: {key}: expected a number, got {value!r}; run `python -m fvlm {makers[path]}`")
    return metrics


def _mapping(path: Path, keys: Collection[str], makers: Mapping[Path, str]) -> dict[str, Any]:
    """A JSON file that holds at least `keys`."""
    remedy = f"run `python -m fvlm {makers[path]}`"
    tree = read_json(path, "input of the report", remedy)
    absent = [key for key in keys if not isinstance(tree, dict) or key not in tree]
    if absent:
        raise InputError(f"{path}: expected the keys {', '.join(keys)}; absent: {', '.join(absent)}; {remedy}")
    return tree


def _table(
    path: Path, columns: Collection[str], makers: Mapping[Path, str], *, may_be_empty: Collection[str] = ()
) -> pd.DataFrame:
    """A CSV file with rows, that has at least `columns`, without empty cells there."""
    remedy = f"run `python -m fvlm {makers[path]}`"
    try:
        table = pd.read_csv(io.StringIO(read_text(path, "input of the report", remedy)))
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: not a table ({' '.join(str(error).split())}); {remedy}") from None
    absent = [column for column in columns if column not in table]
    if absent:
        raise InputError(f"{path}: expected the columns {', '.join(columns)}; absent: {', '.join(absent)}; {remedy}")
    empty = [column for column in columns if column not in may_be_empty and table[column].isna().any()]
    if empty or table.empty:
        raise InputError(
            f"{path}: expected a value in every cell, found empty ones: {', '.join(empty) or 'no row'}; {remedy}"
        )
    return table

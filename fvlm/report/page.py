"""The report as one HTML file that needs nothing else: no network, no script, no other file."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from ..params import Setting
from . import pictures, plots, tables
from .pictures import Comparison

TEMPLATE = "page.html.j2"

# Pictures whose licence asks for credit wherever they are shown.
CREDITS = {
    "emoji": "The scenes are made of Twemoji graphics, copyright 2020 Twitter, Inc and other contributors, "
    "licensed under CC-BY 4.0 (creativecommons.org/licenses/by/4.0), scaled, turned, mirrored and recoloured.",
}


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that the page shows."""

    setting: Setting  # whose metrics head the page and whose detections are drawn
    comparison: pd.DataFrame  # tables.comparison
    curves: Mapping[Setting, pd.DataFrame]  # losses.csv
    losses_png: bytes
    fusion_sweep_png: bytes
    per_class_png: bytes
    pictures: Sequence[Comparison]
    counts: pd.DataFrame  # counts.csv
    manifest: Mapping[str, Any]
    vlm_card: Mapping[str, Any]
    train_records: Mapping[Setting, Mapping[str, Any]]  # train.json
    evaluate: Mapping[str, Any]  # params.evaluate
    report: Mapping[str, Any]  # params.report
    input_hashes: Mapping[str, str]  # path -> SHA-256 of what the page was made from


def render(content: Content) -> str:
    """The page as HTML text. Equal content gives equal text: no time of writing is in it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(png=_png, jpeg=_jpeg, shown=_shown)
    return environment.get_template(TEMPLATE).render(
        content=content,
        headline=content.comparison.loc[content.setting],
        supervision=tables.SUPERVISION,
        sections=tables.SECTIONS,
        rows=tables.section_rows,
        notes=tables.notes(content.comparison),
        loss_summary=tables.loss_summary(content.curves),
        smoothing_spans=sorted({plots.smoothing_span(len(curve)) for curve in content.curves.values()}),
        picture_rule=pictures.RULE,
        counts=[[_shown(cell) for cell in row] for row in content.counts.itertuples(index=False)],
        vlm_card=flatten(content.vlm_card),
        manifest=flatten(content.manifest),
        tower_verdicts={setting: tower_verdict(record) for setting, record in content.train_records.items()},
        train_params=_by_setting(content.train_records, "params"),
        train_inputs=_by_setting(content.train_records, "inputs"),
        versions=_by_setting(content.train_records, "versions"),
        report_params=flatten({"evaluate": content.evaluate, "report": content.report}),
        credit=CREDITS.get(content.manifest["dataset"]),
    )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one, keys joined by dots, values as text."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = _shown(value)
    return flat


def tower_verdict(record: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the image tower's hashes before and after training are as `freeze` promises, and that in words."""
    if record["tower_sha256_before"] == record["tower_sha256_after"]:
        return True, "equal: training changed nothing in the image tower"
    if record["freeze"] == "all":
        return False, "DIFFERENT: training changed the image tower although model.freeze is all"
    return True, f"different, as model.freeze: {record['freeze']} allows"


def _by_setting(records: Mapping[Setting, Mapping[str, Any]], part: str) -> dict[str, str]:
    """A part of the training records, flat: one value a key where all settings agree, otherwise each setting's."""
    flat = {setting: flatten(record[part]) for setting, record in records.items()}
    merged = {}
    for key in dict.fromkeys(key for values in flat.values() for key in values):
        each = {setting: values.get(key, "not recorded") for setting, values in flat.items()}
        agreed = set(each.values())
        merged[key] = agreed.pop() if len(agreed) == 1 else "; ".join(f"{s}: {value}" for s, value in each.items())
    return merged


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{THIN SPACE}") if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return str(value)


def _png(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def _jpeg(image: Any) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(pictures.encode(image, "JPEG")).decode("ascii")

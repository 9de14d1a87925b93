"""The report as one HTML file that needs nothing else: no network, no other file, and no script to be read.

A section is three things: what it shows, in `Content`; a function of this module that arranges it; a macro of the same
name in sections.html.j2. `SECTIONS` names them in the order of the page.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from ..evaluation.curves import MEAN
from ..params import Setting
from . import gallery, pictures, plots, published, tables
from .ablations import Shown
from .gallery import Exhibit

TEMPLATE = "page.html.j2"  # with sections.html.j2, page.css and page.js

# Pictures whose licence asks for credit wherever they are shown.
CREDITS = {
    "emoji": "The scenes are made of Twemoji graphics, copyright 2020 Twitter, Inc and other contributors, "
    "licensed under CC-BY 4.0 (creativecommons.org/licenses/by/4.0), scaled, turned, mirrored and recoloured.",
}

KIND_WORDS = {
    "classification": "right place, wrong class",
    "localisation": "right class, IoU 0.1 to 0.5",
    "both": "wrong class, IoU 0.1 to 0.5",
    "duplicate": "the object was found already",
    "background": "nothing there, IoU at most 0.1",
    "missed": "an object without any of these near",
}


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that the page shows."""

    setting: Setting  # whose metrics head the page and whose detections are drawn
    comparison: pd.DataFrame  # tables.comparison
    curves: Mapping[Setting, pd.DataFrame]  # losses.csv
    losses_png: bytes
    sweeps: Mapping[Setting, pd.DataFrame]  # fusion_sweep.csv
    fusion_sweep_png: bytes
    per_class_png: bytes
    precision_recall: Mapping[Setting, pd.DataFrame]  # precision_recall.csv
    precision_recall_png: bytes
    errors: Mapping[Setting, pd.DataFrame]  # errors.csv
    errors_png: bytes
    variants: Mapping[Setting, pd.DataFrame] = field(default_factory=dict)  # protocol_variants.csv
    exhibits: Sequence[Exhibit]
    counts: pd.DataFrame  # counts.csv
    manifest: Mapping[str, Any]
    vlm_card: Mapping[str, Any]
    train_records: Mapping[Setting, Mapping[str, Any]]  # train.json
    evaluate: Mapping[str, Any]  # params.evaluate
    report: Mapping[str, Any]  # params.report
    ablations: Sequence[Shown] = ()  # those that were run
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
    environment.filters.update(png=_png, webp=_webp, shown=_shown, ap=_ap)
    environment.globals.update(colours=plots.COLOURS, strokes=DASHES)
    arranged = [(name, heading, arrange(content)) for name, heading, arrange in SECTIONS]
    return environment.get_template(TEMPLATE).render(
        content=content,
        sections=[(name, heading, data) for name, heading, data in arranged if data is not None],
    )


def _results(content: Content) -> dict[str, Any]:
    return {
        "setting": content.setting,
        "headline": content.comparison.loc[content.setting],
        "cell": tables.cell,
        "evaluate": content.evaluate,
        "upper_bound": tables.SUPERVISION[content.setting].novel_boxed,
        "tables": [(section, tables.section_rows(content.comparison, section)) for section in tables.SECTIONS],
        "notes": tables.notes(content.comparison),
    }


def _settings(content: Content) -> dict[str, Any]:
    return {"meanings": {setting: tables.SUPERVISION[setting] for setting in content.comparison.index}}


def _published(content: Content) -> dict[str, Any] | None:
    """None for every run that does not measure what the published numbers do."""
    if not published.belongs(content.manifest, content.vlm_card, content.counts):
        return None
    table = published.among(content.comparison, content.vlm_card["architecture"])
    rows = [
        {
            **row,
            "cells": [
                (_ap(row[column]), mark == published.DERIVED)
                for column, mark in zip(published.COLUMNS, row["marks"], strict=True)
            ],
        }
        for row in table.to_dict("records")
    ]
    return {"rows": rows, "left_out": [s for s in content.comparison.index if tables.SUPERVISION[s].novel_boxed]}


def _protocols(content: Content) -> dict[str, Any] | None:
    """The same detections under other people's rules, each with its difference from the headline."""
    if not content.variants:
        return None
    first = next(iter(content.variants.values()))
    rows = []
    for place, variant in enumerate(first.to_dict("records")):
        cells = []
        for table in content.variants.values():
            own, headline = table.iloc[place], table.iloc[0]
            for group in tables.GROUPS:
                value = own[f"generalized_{group}_AP50"]
                cells.append((_ap(value), f"{value - headline[f'generalized_{group}_AP50']:+.1f}" if place else ""))
        told = {
            column: "" if pd.isna(variant[column]) else variant[column] for column in ("variant", "differs", "source")
        }
        rows.append({**told, "cells": cells})
    return {"settings": list(content.variants), "groups": tables.GROUPS, "rows": rows}


def _gallery(content: Content) -> dict[str, Any]:
    novel = {mark.name for e in content.exhibits for p in e.panels for mark in p.marks if mark.group == "novel"}
    names = sorted({name for exhibit in content.exhibits for name in exhibit.names})
    return {
        "setting": content.setting,
        "report": content.report,
        "kinds": {
            kind: (rule, [exhibit for exhibit in content.exhibits if exhibit.kind == kind])
            for kind, rule in gallery.RULES.items()
        },
        "names": {
            group: [
                (name, sum(name in exhibit.names for exhibit in content.exhibits))
                for name in names
                if (name in novel) == (group == "novel")
            ]
            for group in ("novel", "base")
        },
        "font_size": pictures.FONT_SIZE,
    }


def _classes(content: Content) -> dict[str, Any]:
    return {"png": content.per_class_png, "setting": content.setting, "settings": list(content.comparison.index)}


def _precision_recall(content: Content) -> dict[str, Any]:
    """The curves of all classes as whole thousandths, for the script that draws one on demand."""
    names: dict[str, str] = {}
    curves: dict[str, dict[str, list[int]]] = {}
    for setting, table in content.precision_recall.items():
        for key, curve in table[table["name"] != MEAN].groupby(["name", "group"], sort=False):
            name, group = map(str, key)
            names[name] = group
            curves.setdefault(name, {})[setting] = [round(1000 * value) for value in curve["precision"]]
    return {
        "png": content.precision_recall_png,
        "settings": list(content.precision_recall),
        "names": {group: sorted(name for name in names if names[name] == group) for group in ("novel", "base")},
        "curves": curves,
    }


def _errors(content: Content) -> dict[str, Any]:
    """For each setting a row a kind: count and gain, of novel and base, fused and detector only."""
    rows = {}
    for setting, table in content.errors.items():
        cell = table.set_index(["scores", "group", "error"])
        rows[setting] = [
            {
                "kind": kind,
                "cells": [
                    (
                        _shown(int(cell.loc[(scores, group, kind), "count"])),
                        f"{cell.loc[(scores, group, kind), 'gain']:+.1f}",
                    )
                    for group in tables.GROUPS
                    for scores in ("fused", "detector only")
                ],
            }
            for kind in dict.fromkeys(table["error"])
        ]
    return {"png": content.errors_png, "rows": rows, "words": KIND_WORDS, "groups": tables.GROUPS}


def _fusion(content: Content) -> dict[str, Any]:
    pair = content.evaluate["alpha"], content.evaluate["beta"]
    return {
        "png": content.fusion_sweep_png,
        "evaluate": content.evaluate,
        "held": {
            setting: table.to_dict("records")
            for setting, sweep in content.sweeps.items()
            if not (table := tables.held_values(sweep, *pair)).empty
        },
    }


def _losses(content: Content) -> dict[str, Any]:
    return {
        "png": content.losses_png,
        "spans": sorted({plots.smoothing_span(len(curve)) for curve in content.curves.values()}),
        "summary": tables.loss_summary(content.curves),
    }


def _data(content: Content) -> dict[str, Any]:
    return {
        "columns": list(content.counts.columns),
        "rows": [[_shown(cell) for cell in row] for row in content.counts.itertuples(index=False)],
        "credit": CREDITS.get(content.manifest["dataset"]),
    }


def _ablations(content: Content) -> dict[str, Any] | None:
    return {"shown": content.ablations} if content.ablations else None


def _vlm(content: Content) -> dict[str, Any]:
    return {"card": flatten(content.vlm_card), "pretraining": content.vlm_card["pretraining"]}


def _provenance(content: Content) -> dict[str, Any]:
    return {
        "records": content.train_records,
        "tower_verdicts": {setting: tower_verdict(record) for setting, record in content.train_records.items()},
        "facts": {
            "Params of training": _by_setting(content.train_records, "params"),
            "Inputs of training, SHA-256": _by_setting(content.train_records, "inputs"),
            "Params of evaluation and report": flatten({"evaluate": content.evaluate, "report": content.report}),
            "Versions": _by_setting(content.train_records, "versions"),
            "Dataset manifest": flatten(content.manifest),
        },
        "input_hashes": content.input_hashes,
    }


# (name: the macro's in sections.html.j2 and the id on the page; heading; what arranges it: None leaves it out)
SECTIONS: tuple[tuple[str, str, Callable[[Content], dict[str, Any] | None]], ...] = (
    ("results", "Results", _results),
    ("settings", "What the settings mean", _settings),
    ("published", "Among published numbers", _published),
    ("protocols", "The same model under other people's protocols", _protocols),
    ("classes", "AP50 by class", _classes),
    ("curves", "Precision and recall", _precision_recall),
    ("errors", "Errors", _errors),
    ("fusion", "Fusion weights", _fusion),
    ("losses", "Training losses", _losses),
    ("ablations", "Ablations", _ablations),
    ("pictures", "Pictures", _gallery),
    ("data", "Data", _data),
    ("vlm", "Vision-language model", _vlm),
    ("provenance", "Provenance", _provenance),
)

DASHES = {"zsd": "none", "ovod": "6 3", "zsd_strict": "6 2 1 2"}  # plots.STROKES in SVG's terms


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


def _ap(value: float) -> str:
    """Percent as tables show it; nothing for a number that is not there."""
    return "" if pd.isna(value) else f"{value:.1f}"


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


def _webp(image: Any) -> str:
    return "data:image/webp;base64," + base64.b64encode(pictures.encode(image, "WEBP")).decode("ascii")

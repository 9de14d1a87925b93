"""The ablations that were run, as tables and plots: files of their own, and a section of the report page.

The pipeline does not depend on ablations: the page shows those whose comparison is there, and says of each whether it
still is of the same params and the same run as the rest of the page.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from .. import layout
from ..ablations import ABLATIONS, Ablation, plan
from ..errors import InputError
from ..io import read_json
from ..params import Params, Setting
from .plots import COLOURS, to_png

Scores = Mapping[str, Mapping[str, Any]]  # of each variant: its scores.json
METRICS = {
    "generalized_novel_AP50": "novel AP50, fused",
    "detector_only_generalized_novel_AP50": "novel AP50, detector only",
    "vlm_only_generalized_novel_AP50": "novel AP50, VLM only",
    "generalized_base_AP50": "base AP50, fused",
    "generalized_all_AP50": "all AP50, fused",
}
OF_THE_TOWER = {
    "running_statistics_shift": "shift of running statistics",
    "tower_unchanged": "tower unchanged",
}
# params that say how something is computed or where it lies, and change no score
NOT_IN_RESULTS = {
    "data.root", "data.mirror", "train.workers", "train.checkpoint_every", "evaluate.sweep", "evaluate.variants",
    "evaluate.processes",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One ablation on the page."""

    name: str
    ablation: Ablation
    table: pd.DataFrame
    png: bytes
    stale: str | None  # why its numbers do not belong to the rest of the page; None: they do


def comparison(name: str, scores: Scores) -> pd.DataFrame:
    """A row for each variant, in the order of the ablation: name, meaning, whose detector, AP50 in percent.

    For `freeze` also what became of the tower.
    """
    ablation = ABLATIONS[name]
    rows = []
    for variant, about in ablation.variants.items():
        row: dict[str, object] = {
            ablation.varied: variant,
            "meaning": about.meaning,
            "detector": _whose(name, variant, scores[variant]["model"]),
        }
        for key, title in METRICS.items():
            row[title] = round(scores[variant]["metrics"][key], 2)
        if name == "freeze":
            for key, title in OF_THE_TOWER.items():
                value = scores[variant][key]
                row[title] = ("yes" if value else "no") if isinstance(value, bool) else round(value, 2)
        rows.append(row)
    return pd.DataFrame(rows)


def _whose(name: str, variant: str, model: str) -> str:
    for other in ABLATIONS[name].variants:
        if model.startswith(f"{layout.ablation(name) / other}/"):
            return "its own" if other == variant else f"that of {other}"
    return "the pipeline's"


def plot(name: str, table: pd.DataFrame) -> Figure:
    """AP50 of novel and base by variant; for `freeze` also how far the running statistics moved."""
    varied, shift = ABLATIONS[name].varied, OF_THE_TOWER["running_statistics_shift"]
    variants = list(table[varied])
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, 1 + (shift in table), width_ratios=(2, 1)[: 1 + (shift in table)], squeeze=False)[0]
    shown = [
        ("novel AP50, fused", COLOURS["novel"], 0.9),
        ("novel AP50, VLM only", COLOURS["novel"], 0.4),
        ("base AP50, fused", COLOURS["base"], 0.9),
    ]
    for i, (column, colour, opacity) in enumerate(shown):
        places = [place + (i - 1) * 0.27 for place in range(len(variants))]
        bars = panels[0].bar(places, table[column], 0.25, color=colour, alpha=opacity, label=column)
        panels[0].bar_label(bars, fmt="%.1f", fontsize=8)
    panels[0].set_xticks(range(len(variants)), variants)
    panels[0].set(ylabel="AP50, percent", xlabel=varied, ylim=(0, 100))
    panels[0].legend(fontsize=8, ncols=3, loc="upper center")
    if shift in table:
        bars = panels[1].bar(variants, table[shift], 0.5, color="0.45")
        panels[1].bar_label(bars, fmt="%.2f", fontsize=8)
        panels[1].set(ylabel="shift of running statistics,\nstandard deviations", xlabel=varied)
        panels[1].margins(y=0.15)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def shown(params: Params, metrics: Mapping[Setting, Mapping[str, float]]) -> list[Shown]:
    """The ablations whose comparison is there, in the order of `ABLATIONS`.

    Args:
        metrics: for each setting of the pipeline the numbers of metrics/<setting>.json, which are the first seed's, as
            the ablations are.

    Raises:
        InputError: a comparison is damaged, or of another version of fvlm.
    """
    found = []
    for name, ablation in ABLATIONS.items():
        path = layout.ablation_comparison(name)
        if not path.exists():
            continue
        remedy = f"run `snakemake {name}_ablation --cores all`, or remove {path.parent}"
        scores = read_json(path, "comparison of an ablation", remedy)
        try:
            table = comparison(name, scores)
            stale = next(_differences(params, name, scores, metrics), None)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not as this version of fvlm writes it ({error!r}); {remedy}") from None
        found.append(Shown(name=name, ablation=ablation, table=table, png=to_png(plot(name, table)), stale=stale))
    return found


def _differences(
    params: Params, name: str, scores: Scores, metrics: Mapping[Setting, Mapping[str, float]]
) -> Iterator[str]:
    """Reasons why the ablation would come out otherwise if it were run now."""
    for variant in ABLATIONS[name].variants:
        recorded, now = scores[variant], plan(params, name, variant)
        for section, then in recorded["params"].items():
            current = json.loads(json.dumps(dataclasses.asdict(getattr(now.params, section))))
            for key in sorted(then.keys() | current.keys()):
                if f"{section}.{key}" not in NOT_IN_RESULTS and then.get(key) != current.get(key):
                    yield f"{variant} had {section}.{key} {then.get(key)!r} and would have {current.get(key)!r} now"
        if now.is_the_pipelines and any(recorded["metrics"][key] != metrics[now.setting][key] for key in METRICS):
            yield f"{variant} is the pipeline's run, and the pipeline has run again since, with other scores"

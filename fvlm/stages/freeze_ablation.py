"""The freeze ablation's table and plot, from the runs of its three modes."""

import pandas as pd
from matplotlib.figure import Figure

from .. import layout
from ..io import read_json, write_aside, write_text
from ..params import FREEZE_MODES, Params
from ..report.plots import COLOURS, to_png
from ..report.tables import pipes

MEANING = {
    "all": "nothing of the tower changes (F-VLM)",
    "norm_eval": "statistics fixed, weights train",
    "none": "weights train, statistics drift",
}
COLUMNS = {
    "generalized_novel_AP50": "novel AP50, fused",
    "detector_only_generalized_novel_AP50": "novel AP50, detector only",
    "vlm_only_generalized_novel_AP50": "novel AP50, VLM only",
    "generalized_base_AP50": "base AP50, fused",
    "running_statistics_shift": "running statistics moved by (standard deviations)",
    "tower_unchanged": "tower bit-identical after training",
}


def run(params: Params) -> None:
    """Write ablations/freeze/comparison.csv, .md and .png."""
    table = comparison(
        {
            mode: read_json(
                layout.freeze_mode(mode) / "scores.json",
                f"scores of freeze mode {mode}",
                f"run `python -m fvlm freeze_mode --mode {mode}`",
            )
            for mode in FREEZE_MODES
        }
    )
    write_text(layout.FREEZE_TABLE.with_suffix(".csv"), table.to_csv(index=False, lineterminator="\n"))
    write_text(
        layout.FREEZE_TABLE.with_suffix(".md"), pipes(list(table.columns), table.astype(str).to_numpy().tolist()) + "\n"
    )
    with write_aside(layout.FREEZE_TABLE.with_suffix(".png")) as aside:
        aside.write_bytes(to_png(plot(table)))
    print(table.to_string(index=False))


def comparison(scores: dict[str, dict[str, float | bool]]) -> pd.DataFrame:
    """A row for each mode of `model.freeze`, in the order of `FREEZE_MODES`; AP in percent."""
    rows = []
    for mode in FREEZE_MODES:
        row: dict[str, object] = {"model.freeze": mode, "meaning": MEANING[mode]}
        for key, title in COLUMNS.items():
            value = scores[mode][key]
            row[title] = ("yes" if value else "no") if isinstance(value, bool) else round(value, 2)
        rows.append(row)
    return pd.DataFrame(rows)


def plot(table: pd.DataFrame) -> Figure:
    """AP50 of base and novel by mode, and beside it how far the running statistics moved."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    scores, shift = figure.subplots(1, 2, width_ratios=(2, 1))
    modes = list(table["model.freeze"])
    shown = [
        ("novel AP50, fused", COLOURS["novel"], 0.9),
        ("novel AP50, VLM only", COLOURS["novel"], 0.4),
        ("base AP50, fused", COLOURS["base"], 0.9),
    ]
    for i, (column, colour, opacity) in enumerate(shown):
        places = [place + (i - 1) * 0.27 for place in range(len(modes))]
        bars = scores.bar(places, table[column], 0.25, color=colour, alpha=opacity, label=column)
        scores.bar_label(bars, fmt="%.1f", fontsize=8)
    scores.set_xticks(range(len(modes)), modes)
    scores.set(ylabel="AP50, percent", xlabel="model.freeze", ylim=(0, 100))
    scores.legend(fontsize=8, ncols=3, loc="upper center")
    bars = shift.bar(modes, table[COLUMNS["running_statistics_shift"]], 0.5, color="0.45")
    shift.bar_label(bars, fmt="%.2f", fontsize=8)
    shift.set(ylabel="shift of running statistics,\nstandard deviations", xlabel="model.freeze")
    shift.margins(y=0.15)
    for axes in (scores, shift):
        axes.spines[["top", "right"]].set_visible(False)
    return figure

"""Losses, sweeps, curves, errors and AP by class as figures; colours mean the same in all, and in the pictures."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from ..params import Setting
from .tables import GROUPS, SUPERVISION, TERMS

# Okabe and Ito's palette, made to be told apart by colour-blind readers (jfly.uni-koeln.de/color).
COLOURS = {"base": "#0072B2", "novel": "#D55E00", "zsd": "#009E73", "ovod": "#CC79A7", "zsd_strict": "#56B4E9"}
STROKES = {"zsd": "-", "ovod": "--", "zsd_strict": "-."}  # tells the settings apart in grey print, too

UNITS = {"loss_rpn_score": "cross-entropy, nats", "loss_class": "cross-entropy, nats"}

SWEPT = {
    "novel": "generalized_novel_AP50",
    "base": "generalized_base_AP50",
    "all": "generalized_all_AP50",
}

DOTS_PER_INCH = 120


def to_png(figure: Figure) -> bytes:
    """The figure as PNG. No version or time is written into it, so that equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def smoothing_span(steps: int) -> int:
    """Span in steps of the exponential moving average that `losses` draws: a thirtieth of the run."""
    return max(1, round(steps / 30))


def losses(curves: Mapping[Setting, pd.DataFrame]) -> Figure:
    """The training losses of all settings on shared axes: the total on top, then each term.

    Args:
        curves: for each setting the table of losses.csv.

    Raw values are faint; the strong line is their exponential moving average over `smoothing_span` steps.
    """
    figure = Figure(figsize=(9.5, 8.5), layout="constrained")
    panels = figure.subplot_mosaic(
        [["loss", "loss"], ["loss_rpn_score", "loss_rpn_box"], ["loss_class", "loss_box"]],
        sharex=True,
        height_ratios=[1.3, 1, 1],
    )
    for term, axes in panels.items():
        for setting, curve in curves.items():
            smooth = curve[term].ewm(span=smoothing_span(len(curve))).mean()
            axes.plot(curve["step"], curve[term], color=COLOURS[setting], alpha=0.25, linewidth=0.7)
            label = f"{setting} ({SUPERVISION[setting].boxes})"
            axes.plot(curve["step"], smooth, STROKES[setting], color=COLOURS[setting], linewidth=1.8, label=label)
        axes.set_title("total: the sum of the four terms" if term == "loss" else TERMS[term], loc="left", fontsize=11)
        axes.set_ylabel(UNITS.get(term, "Huber loss" if term.endswith("_box") else "loss"))
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        _plain(axes)
        axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    for term in ("loss", "loss_class", "loss_box"):
        panels[term].set_xlabel("step")
    panels["loss"].tick_params(labelbottom=True)
    handles, labels = panels["loss"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", frameon=False, ncols=len(curves), handlelength=3.5)
    spans = sorted({smoothing_span(len(curve)) for curve in curves.values()})
    _note(figure, f"Faint: each step. Strong: exponential moving average, span {' or '.join(map(str, spans))} steps.")
    return figure


def at_headline(sweep: pd.DataFrame) -> pd.DataFrame:
    """The rows of fusion_sweep.csv with the headline's VLM temperature and NMS, which are those of its first row."""
    fixed = ["vlm_temperature", "nms_iou"]
    return sweep[(sweep[fixed] == sweep[fixed].iloc[0]).all(axis=1)]


def fusion_sweep(sweeps: Mapping[Setting, pd.DataFrame], *, alpha: float, beta: float) -> Figure:
    """Heat maps of AP50 over the fusion weights, a row of maps for each setting; the headline pair is framed.

    Args:
        sweeps: for each setting a full grid of alpha and beta; see `at_headline`.
        alpha, beta: the pair that the headline numbers use.
    """
    rows, columns = _axis(sweeps, "alpha"), _axis(sweeps, "beta")
    size = (1.2 + 3 * max(2.2, 0.39 * len(columns) + 0.2), 0.6 + len(sweeps) * (0.33 * len(rows) + 1.15))
    figure = Figure(figsize=size, layout="constrained")
    ratios = [*[1.0] * len(sweeps), 0.2]
    *bands, foot = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    for band, (setting, sweep) in zip(bands, sweeps.items(), strict=True):
        idle = ": every class had boxes and takes alpha, so beta changes nothing"
        band.suptitle(setting + idle * SUPERVISION[setting].novel_boxed, fontsize=11, fontweight="bold")
        for axes, (group, column) in zip(band.subplots(1, 3, sharey=True), SWEPT.items(), strict=True):
            grid = sweep.pivot(index="alpha", columns="beta", values=column)
            _heat_map(axes, grid)
            axes.set_title(f"{group} AP50, %", fontsize=10)
            axes.set_xlabel("beta: VLM weight, classes without boxes", fontsize=8.5)
            if group == "novel":
                axes.set_ylabel("alpha: VLM weight,\nclasses with boxes", fontsize=8.5)
            if alpha in rows and beta in columns:
                corner = (columns.index(beta) - 0.5, rows.index(alpha) - 0.5)
                for colour, width in (("white", 4.5), ("black", 2)):  # seen on every colour of the map
                    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=width, zorder=2))
    _note(
        foot,
        f"Framed: the headline's alpha = {alpha:g}, beta = {beta:g}, where they lie on the grid.\n"
        "Measured on the validation pictures: choosing a cell by these numbers would be tuning on the test split.",
    )
    return figure


def _axis(sweeps: Mapping[Setting, pd.DataFrame], name: str) -> list[float]:
    return sorted(set().union(*(sweep[name] for sweep in sweeps.values())))


def _heat_map(axes: Axes, grid: pd.DataFrame) -> None:
    """Cells of `grid` coloured and annotated. The scale is the map's own: the numbers compare across maps."""
    values = grid.to_numpy(dtype=float)
    axes.imshow(values, cmap="cividis", aspect="auto", origin="lower")
    axes.set_xticks(range(len(grid.columns)), [f"{value:g}" for value in grid.columns])
    axes.set_yticks(range(len(grid.index)), [f"{value:g}" for value in grid.index])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    middle = (values.min() + values.max()) / 2
    for (row, column), value in np.ndenumerate(values):
        ink = "black" if value > middle else "white"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=ink)


def per_class(tables: Mapping[Setting, pd.DataFrame], *, order_by: Setting) -> Figure:
    """Fused AP50 of every class as a bar, detector-only AP50 as a ring; a column of bars for each setting.

    Args:
        tables: for each setting the table of per_class.csv.
        order_by: the setting whose fused AP50 orders the classes, best on top, in all columns.

    Novel classes stand above base classes. A class without a validation box has no AP50: it comes last, without bar.
    """
    figure = Figure(figsize=(2.6 + 4.1 * len(tables), 1.6 + 0.205 * len(tables[order_by])), layout="constrained")
    blocks = {}
    for group in ("novel", "base"):
        table = tables[order_by]
        table = table[table["group"] == group]
        blocks[group] = table.sort_values(["AP50", "name"], ascending=[False, True], na_position="last")
    grid = figure.subplots(
        2,
        len(tables),
        squeeze=False,
        sharex=True,
        sharey="row",
        height_ratios=[max(1, len(block)) for block in blocks.values()],
    )
    for row, (group, block) in zip(grid, blocks.items(), strict=True):
        for axes, (setting, table) in zip(row, tables.items(), strict=True):
            ordered = table.set_index("name").loc[block["name"]]
            _bars(axes, ordered, COLOURS[group])
            if group == "novel":
                bound = "\n(novel boxes seen in training: upper bound)" if SUPERVISION[setting].novel_boxed else ""
                axes.set_title(f"{setting}{bound}", fontsize=11, fontweight="bold")
            else:
                axes.set_xlabel("AP50, %")
        labels = [f"{name}  ({boxes})" for name, boxes in zip(block["name"], block["val_boxes"], strict=True)]
        row[0].set_yticks(range(len(block)), labels, fontsize=8.5)
        row[0].set_ylabel(f"{len(block)} {group} classes (boxes in val)", fontsize=10)
        row[0].set_ylim(len(block) - 0.4, -0.6)
    _group_legend(figure)
    return figure


def precision_recall(curves: Mapping[Setting, pd.DataFrame]) -> Figure:
    """Precision against recall at IoU 0.5, the mean over the classes of novel, base and all; a line a setting.

    Args:
        curves: for each setting the means' rows of precision_recall.csv.
    """
    figure = Figure(figsize=(9.5, 3.9), layout="constrained")
    for axes, group in zip(figure.subplots(1, 3, sharex=True, sharey=True), GROUPS, strict=True):
        for setting, table in curves.items():
            curve = table[table["group"] == group]
            if curve.empty:
                continue
            label = f"{setting}: AP50 {100 * curve['precision'].mean():.1f}"
            axes.plot(
                100 * curve["recall"],
                100 * curve["precision"],
                STROKES[setting],
                color=COLOURS[setting],
                linewidth=1.8,
                label=label,
            )
        axes.set_title(group, loc="left", fontsize=11)
        axes.set_xlabel("recall, %")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.grid(linewidth=0.5, alpha=0.5)
        axes.legend(frameon=False, loc="upper right", handlelength=3, fontsize=9)
        _plain(axes)
        if group == "novel":
            axes.set_ylabel("precision, %")
    _note(figure, "The area below a line is the AP50: a mean over classes, fused scores, generalized protocol.")
    return figure


def errors(tables: Mapping[Setting, pd.DataFrame]) -> Figure:
    """What correcting every error of a kind would gain in AP50: a row of panels a setting; fused bars, detector rings.

    Args:
        tables: for each setting the table of errors.csv.
    """
    figure = Figure(figsize=(9.5, 1.1 + 2.3 * len(tables)), layout="constrained")
    grid = figure.subplots(len(tables), 2, squeeze=False, sharex=True, sharey=True)
    for row, (setting, table) in zip(grid, tables.items(), strict=True):
        for axes, group in zip(row, ("novel", "base"), strict=True):
            part = table[table["group"] == group].set_index(["scores", "error"])["gain"]
            kinds = list(dict.fromkeys(table["error"]))
            places = np.arange(len(kinds))
            axes.barh(places, [part["fused", kind] for kind in kinds], color=COLOURS[group], height=0.7)
            axes.plot([part["detector only", kind] for kind in kinds], places, clip_on=False, **_RING)
            axes.set_yticks(places, kinds, fontsize=9)
            axes.set_title(f"{setting}, {group} classes", loc="left", fontsize=11)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", linewidth=0.5, alpha=0.5)
            axes.set_axisbelow(True)
            axes.axvline(0, color="0.3", linewidth=0.8)
            _plain(axes)
    grid[0, 0].invert_yaxis()
    for axes in grid[-1]:
        axes.set_xlabel("points of AP50 gained if all of a kind were put right")
    _group_legend(figure)
    return figure


def _group_legend(figure: Figure) -> None:
    handles = [
        Patch(color=COLOURS["novel"], label="novel, fused"),
        Patch(color=COLOURS["base"], label="base, fused"),
        Line2D([], [], **_RING, label="detector only"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)


_RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 5,
    "linestyle": "none",
    "markerfacecolor": "white",
    "markeredgecolor": "black",
}


def _bars(axes: Axes, table: pd.DataFrame, colour: str) -> None:
    """A bar and a ring for each row of `table`, top to bottom; "no box in val" where there is nothing to measure."""
    positions = np.arange(len(table))
    axes.barh(positions, table["AP50"].to_numpy(dtype=float), color=colour, height=0.72)
    axes.plot(table["detector_only_AP50"].to_numpy(dtype=float), positions, clip_on=False, **_RING)
    for position in positions[table["AP50"].isna().to_numpy()]:
        axes.text(1, position, "no box in val", va="center", fontsize=8, color="0.35")
    axes.set_xlim(0, 100)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
    _plain(axes)


def _note(figure: Figure | SubFigure, text: str) -> None:
    """A line below everything else, for readers who have the picture without the page."""
    figure.supxlabel(text, fontsize=8.5, color="0.3")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)

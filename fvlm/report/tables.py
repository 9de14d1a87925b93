"""The comparison of the settings as one table, written as CSV, Markdown and LaTeX, and shown on the page.

`ovod` trains on boxes of the novel classes, so its novel AP is no open-vocabulary result. Every format says so.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ..params import Setting


@dataclass(frozen=True)
class Supervision:
    """What the boxes of a setting's training split teach."""

    boxes: str
    novel_boxed: bool
    meaning: str

    @property
    def novel_classes(self) -> str:
        return "boxes seen in training" if self.novel_boxed else "never boxed"


SUPERVISION: dict[Setting, Supervision] = {
    "zsd": Supervision(
        "48 base",
        False,
        "Only boxes of the 48 base classes supervise. Every other box is dropped, so objects of other classes are "
        "ordinary background. This is the published OV-COCO training protocol.",
    ),
    "ovod": Supervision(
        "65, base + novel",
        True,
        "Boxes of all 65 classes supervise, the 17 novel ones too. Its novel AP is an upper bound, not an "
        "open-vocabulary result.",
    ),
    "zsd_strict": Supervision(
        "48 base",
        False,
        "As zsd, and training pictures that show any novel object are dropped too: the older habit of zero-shot "
        "detection.",
    ),
}

LABELS = ("setting", "supervised by", "novel classes")  # the columns of words, before the numbers

TERMS = {  # columns of losses.csv
    "loss": "total",
    "loss_rpn_score": "RPN score",
    "loss_rpn_box": "RPN box",
    "loss_class": "class",
    "loss_box": "box",
}
GROUPS = ("novel", "base", "all")
SCORES = {"": "fused", "detector_only_": "detector only", "vlm_only_": "VLM only"}


@dataclass(frozen=True)
class Section:
    """Columns of the comparison that are shown together. Each column is (heading above, heading, metric key)."""

    title: str
    columns: tuple[tuple[str, str, str], ...]

    @property
    def spans(self) -> list[tuple[str, int]]:
        """The headings above, each with the number of columns that it covers."""
        return [(above, len(list(run))) for above, run in itertools.groupby(self.columns, lambda column: column[0])]


def _generalized(measure: str) -> tuple[tuple[str, str, str], ...]:
    return tuple(
        (words, group, f"{prefix}generalized_{group}_{measure}") for prefix, words in SCORES.items() for group in GROUPS
    )


SECTIONS = (
    Section("Generalized protocol (65 classes compete), AP50 in percent", _generalized("AP50")),
    Section(
        "Constrained protocols (48 base or 17 novel classes compete) and proposals, in percent",
        (
            ("AP50", "novel", "constrained_novel_AP50"),
            ("AP50", "base", "constrained_base_AP50"),
            ("AP", "novel", "constrained_novel_AP"),
            ("AP", "base", "constrained_base_AP"),
            ("AR100 of proposals", "novel", "AR100_novel_proposals"),
        ),
    ),
    Section("Generalized protocol, AP over IoU .50 to .95 in percent", _generalized("AP")),
)
METRIC_KEYS = tuple(key for section in SECTIONS for _, _, key in section.columns)


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The first run's metrics; of several runs also how they spread.

    Args:
        runs: metrics of one setting, a mapping with METRIC_KEYS for each seed.

    Returns:
        `runs[0]`, to which several runs add, for each of METRIC_KEYS, <key>_mean and <key>_std, the sample standard
        deviation (divisor n - 1), and their number as `seeds`.
    """
    numbers = dict(runs[0])
    if len(runs) > 1:
        for key in METRIC_KEYS:
            values = [run[key] for run in runs]
            numbers[f"{key}_mean"] = round(statistics.fmean(values), 6)
            numbers[f"{key}_std"] = round(statistics.stdev(values), 6)
        numbers["seeds"] = len(runs)
    return numbers


def cell(numbers: Mapping[str, float] | pd.Series, key: str) -> str:
    """A metric as tables show it: "71.5", or "71.2 ± 0.8" where it is the mean of several seeds."""
    if f"{key}_std" in numbers:
        return f"{numbers[f'{key}_mean']:.1f} ± {numbers[f'{key}_std']:.1f}"
    return f"{numbers[key]:.1f}"


def comparison(metrics: Mapping[Setting, Mapping[str, float]]) -> pd.DataFrame:
    """One row a setting: what supervised it, in words, then every metric.

    Args:
        metrics: for each setting what `over_seeds` gives, percent 0..100; all settings of as many seeds.

    Returns:
        index "setting"; columns "supervised by", "novel classes", then METRIC_KEYS and what several seeds add (float).
    """
    facts = [SUPERVISION[setting] for setting in metrics]
    spread = (*(f"{key}_{part}" for key in METRIC_KEYS for part in ("mean", "std")), "seeds")
    columns = [*METRIC_KEYS, *(key for key in spread if all(key in numbers for numbers in metrics.values()))]
    numbers = pd.DataFrame(
        [[numbers[key] for key in columns] for numbers in metrics.values()],
        columns=columns,
        index=pd.Index(list(metrics), name="setting"),
        dtype=float,
    )
    numbers.insert(0, "supervised by", [fact.boxes for fact in facts])
    numbers.insert(1, "novel classes", [fact.novel_classes for fact in facts])
    return numbers


def section_rows(table: pd.DataFrame, section: Section) -> list[list[str]]:
    """The cells of a section below its headings: setting, supervised by, novel classes, numbers."""
    rows = []
    for setting, row in table.iterrows():
        name = f"{setting} (upper bound)" if SUPERVISION[setting].novel_boxed else str(setting)  # type: ignore[index]
        numbers = [cell(row, key) for _, _, key in section.columns]
        rows.append([name, row["supervised by"], row["novel classes"], *numbers])
    return rows


def notes(table: pd.DataFrame) -> list[str]:
    """What a reader must know before comparing the rows, a sentence or two each."""
    bounds = [
        f"{setting} is an upper bound, not an open-vocabulary result: it has seen boxes of the novel classes."
        for setting in table.index
        if SUPERVISION[setting].novel_boxed
    ]
    columns = (
        "Base and novel are always the 48 and the 17 classes of the split, whatever boxes supervised. "
        "Detector only is the fusion with alpha = beta = 0, VLM only with alpha = beta = 1."
    )
    seeds = (
        [
            f"Each number is the mean ± the sample standard deviation of {table['seeds'].iloc[0]:.0f} trainings with "
            "different seeds; plots, pictures and AP by class are the first one's."
        ]
        if "seeds" in table
        else []
    )
    return [*bounds, *seeds, columns]


def to_csv(table: pd.DataFrame) -> str:
    """The whole comparison with the metrics' own keys and digits, for programs."""
    return table.to_csv(lineterminator="\n")


def to_markdown(table: pd.DataFrame) -> str:
    """Every section as a table with aligned pipes, then the notes."""
    parts = []
    for section in SECTIONS:
        headings = [f"{above}: {name}" for above, name, _ in section.columns]
        parts.append(f"### {section.title}\n\n{pipes([*LABELS, *headings], section_rows(table, section))}")
    return "\n\n".join([*parts, *notes(table)]) + "\n"


def pipes(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if i < len(LABELS) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(aligned) + " |"

    rule = ["-" * width if i < len(LABELS) else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(headings), line(rule), *map(line, rows)])


def to_latex(table: pd.DataFrame) -> str:
    r"""Every section as a `table*` float with booktabs rules: \usepackage{booktabs} is all it needs."""
    parts = ["% \\usepackage{booktabs}"]
    for number, section in enumerate(SECTIONS, 1):
        over, rules, first = [], [], len(LABELS) + 1
        for above, count in section.spans:
            over.append(rf"\multicolumn{{{count}}}{{c}}{{{_tex(above)}}}")
            rules.append(rf"\cmidrule(lr){{{first}-{first + count - 1}}}")
            first += count
        headings = [_tex(cell) for cell in (*LABELS, *(name for _, name, _ in section.columns))]
        caption = " ".join(_tex(sentence) for sentence in (f"{section.title}.", *notes(table)))
        parts.append(
            "\n".join(
                [
                    r"\begin{table*}",
                    r"  \centering\small\setlength{\tabcolsep}{4pt}",
                    rf"  \caption{{{caption}}}",
                    rf"  \label{{tab:fvlm-comparison-{number}}}",
                    rf"  \begin{{tabular}}{{{'l' * len(LABELS)}{'r' * len(section.columns)}}}",
                    r"    \toprule",
                    "    " + " & ".join([" &" * (len(LABELS) - 1), *over]).strip() + r" \\",
                    "    " + " ".join(rules),
                    "    " + " & ".join(headings) + r" \\",
                    r"    \midrule",
                    *("    " + " & ".join(map(_tex, row)) + r" \\" for row in section_rows(table, section)),
                    r"    \bottomrule",
                    r"  \end{tabular}",
                    r"\end{table*}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_"},
}


def _tex(text: str) -> str:
    """`text` with LaTeX's special characters escaped, one by one, so that no escape is escaped again."""
    return "".join(_TEX.get(character, character) for character in text)


def loss_summary(curves: Mapping[Setting, pd.DataFrame]) -> pd.DataFrame:
    """Every loss at the end of training: the mean of the last tenth of the steps, a row for each setting.

    Args:
        curves: for each setting the table of losses.csv.
    """
    ends = {setting: curve.tail(max(1, len(curve) // 10))[list(TERMS)].mean() for setting, curve in curves.items()}
    return pd.DataFrame(ends).T.rename(columns=TERMS).rename_axis("setting")


def held_values(sweep: pd.DataFrame, alpha: float, beta: float) -> pd.DataFrame:
    """What the other VLM temperatures and NMS thresholds give at the headline's alpha and beta; empty if none is.

    Returns:
        Columns of fusion_sweep.csv, the headline first; empty too where the pair is not on the grid.
    """
    pair = sweep[(sweep["alpha"] == alpha) & (sweep["beta"] == beta)]
    return pair if len(pair) > 1 else pair.iloc[:0]

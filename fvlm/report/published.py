"""Published OV-COCO numbers, and ours among them where, and only where, they measure the same."""

import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..io import read_text
from .tables import SUPERVISION

COLUMNS = (
    "constrained_base_AP50",
    "constrained_novel_AP50",
    "generalized_base_AP50",
    "generalized_novel_AP50",
    "generalized_all_AP50",
)
READ, DERIVED, RECALLED, ABSENT = "SDR-"  # what the column `marks` of published.csv says of each of COLUMNS
ROUNDING = 0.1  # of (48 base + 17 novel) / 65 - all, where each of the three is rounded to 0.1
DATASET, VAL_IMAGES, VAL_65_IMAGES = "coco2017", 5000, 4836


@functools.cache
def published() -> pd.DataFrame:
    """published.csv: a row for each method and backbone, AP50 in percent, NaN where there is no number.

    `marks` has a letter for each of `COLUMNS`: S was read in `source`, D is derived from the other two generalized
    columns by all = (48 base + 17 novel) / 65, R is only recalled, - is absent. `adds_up` says whether that equation
    holds to rounding where all three are there. Base and novel are the 48 and 17 classes of Bansal et al., ECCV 2018.
    """
    text = read_text(Path(__file__).with_name("published.csv"), "published numbers", "install fvlm again")
    table = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(COLUMNS, float))
    words = ["method", "backbone", "marks", "adds_up", "source"]
    table[words] = table[words].fillna("")
    return table


def without_recalled(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with recalled numbers blank, and without the rows that have no other."""
    marks = pd.DataFrame([list(marks) for marks in table["marks"]], columns=list(COLUMNS), index=table.index)
    kept = table.copy()
    kept[list(COLUMNS)] = table[list(COLUMNS)].where(marks != RECALLED)
    kept["marks"] = ["".join(row).replace(RECALLED, ABSENT) for row in marks.to_numpy()]
    return kept[kept[list(COLUMNS)].notna().any(axis=1)]


def belongs(manifest: Mapping[str, Any], vlm_card: Mapping[str, Any], counts: pd.DataFrame) -> bool:
    """Whether a run measures what the published numbers do: COCO 2017's whole val set, with OpenAI's CLIP.

    Args:
        manifest: of the data set, as `download` wrote it.
        vlm_card: models/vlm.json.
        counts: counts.csv; the generalized split must have all pictures that show one of the 65 classes.
    """
    images = dict(zip(counts["subset"], counts["images"], strict=True)) if "images" in counts else {}
    provenance = vlm_card.get("provenance", {}).get("weights", {})
    archive = isinstance(provenance, Mapping) and bool(provenance.get("is_openais_archive"))
    return (
        manifest["dataset"] == DATASET
        and manifest["val"].get("image_count") == VAL_IMAGES
        and images.get("val_generalized") == VAL_65_IMAGES
        and (vlm_card["weights"] == "openai" or archive)
    )


def among(comparison: pd.DataFrame, architecture: str) -> pd.DataFrame:
    """The published numbers, without recalled ones, with ours among them.

    Settings that have seen boxes of novel classes are no open-vocabulary results and are left out.

    Args:
        comparison: tables.comparison of a run that `belongs`.
        architecture: of the VLM, as the backbone is called.

    Returns:
        "method", "backbone", COLUMNS, "marks", "adds_up", "source", "ours" (bool), by rising generalized novel AP50.
    """
    theirs = without_recalled(published()).assign(ours=False)
    rows = [
        {
            "method": f"fvlm, {setting}",
            "backbone": f"CLIP {architecture}",
            **{column: float(row[column]) for column in COLUMNS},
            "marks": READ * len(COLUMNS),
            "adds_up": "yes",
            "source": "this run",
            "ours": True,
        }
        for setting, row in comparison.iterrows()
        if not SUPERVISION[setting].novel_boxed  # type: ignore[index]
    ]
    table = pd.concat([theirs, pd.DataFrame(rows, columns=theirs.columns)] if rows else [theirs], ignore_index=True)
    return table.sort_values("generalized_novel_AP50", kind="stable", na_position="first", ignore_index=True)

"""What a published dataset must count to: a wrong file, or a mistake in choosing classes, shows here at once."""

import csv
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..io import read_text
from ..params import Data

EXPECTED = {"coco2017": "coco2017_counts.csv"}  # dataset -> file beside this module, laid out as data/splits/counts.csv
REMEDY = "obtain COCO 2017's own files, or set data.dataset to coco_folder for others"


@functools.cache
def expected_counts(dataset: str) -> dict[str, dict[str, int]]:
    """Subset -> column -> count, as far as it is published; empty for a dataset that nobody counted.

    `annotations` includes crowds, `boxes` does not; `images` of a choice of classes are those with an annotation of
    them.

    Source: ovr-cnn#17, DeCLIP, MEDet's cat_info and counts of COCO's published files, which agree.
    """
    if dataset not in EXPECTED:
        return {}
    text = read_text(Path(__file__).with_name(EXPECTED[dataset]), "expected counts", "install fvlm again")
    return {
        row.pop("subset"): {column: int(count) for column, count in row.items() if count}
        for row in csv.DictReader(text.splitlines())
    }


def check_counts(data: Data, root: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Hold counts against what is published of the dataset; subsets and columns without an expectation pass.

    Args:
        root: the folder of the annotation files, of which the errors speak.
        rows: each with "subset" (train_... or val_...) and some of images, annotations, crowd, boxes.

    Raises:
        InputError: every count that differs, one a line: the file, the expected and the found number.
    """
    expected = expected_counts(data.dataset)
    files = {"train": root / data.train_annotations, "val": root / data.val_annotations}
    findings = []
    for row in rows:
        subset = row["subset"]
        file = files[subset.partition("_")[0]]
        for column, count in expected.get(subset, {}).items():
            if column in row and row[column] != count:
                of_coco = f"{count:,} {column} in {subset}, as in COCO 2017"
                findings.append(f"{file}: expected {of_coco}, found {row[column]:,}; {REMEDY}")
    if findings:
        raise InputError("\n".join(findings))

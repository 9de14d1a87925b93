"""`python -m fvlm predict`: boxes for words on pictures, as a table, as drawn pictures and as a COCO results file.

Pictures stream: one batch of them is in memory, and what was found is written as it is found. A picture that cannot be
read is named and counted, and the others go on.
"""

import contextlib
import errno
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch
from PIL import Image
from tqdm import tqdm

from ..compute import set_up_cpu
from ..errors import InputError
from ..io import read_text, write_aside
from ..params import Precision
from .detections import Detections
from .detector import load_detector
from .drawing import draw
from .pictures import as_pixels, find_pictures

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}  # that drawn pictures keep; others become PNG
WIDTHS = (28, 18)  # of the table's columns of pictures and names, at least


def run(
    pictures: Sequence[str],
    *,
    model: str,
    classes: str | None,
    classes_file: str | None,
    threshold: float,
    alpha: float | None,
    beta: float | None,
    save: str | None,
    json_path: str | None,
    device: str,
    threads: int,
    batch_size: int,
    precision: Precision,
) -> int:
    """Look for `classes` on `pictures`.

    Args:
        pictures: files, folders and patterns.
        model: folder or `hf-hub:<owner>/<name>`.
        classes: names with commas between them.
        classes_file: a text file of names, one a line.
        threshold: least score of a box.
        alpha, beta: None for the model's own.
        save: where to draw: a folder, or, for one picture, a .jpg or .png file.
        json_path: where to write COCO results.

    Returns:
        0, or 1 where a picture could not be read.

    Raises:
        InputError: an argument is wrong; nothing has been written then.
    """
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `as_pixels` says it in one line
    names = names_from(classes, classes_file)
    files = find_pictures(pictures)
    targets = None if save is None else _targets(files, Path(save))
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: expected a CUDA device, found none; say --device cpu")
    if device == "cpu":
        set_up_cpu(threads)
    detector = load_detector(model, device=device, precision=precision)
    evaluate = detector.settings(alpha=alpha, beta=beta, threshold=threshold)
    detector.embed(names, progress=True)

    began, unreadable, found = time.perf_counter(), 0, Counter[str]()
    width = max([WIDTHS[0], *(len(file) for file in files[:1000])])
    outcomes = detector.stream(files, names, evaluate=evaluate, batch_size=batch_size)
    bar = tqdm(total=len(files), desc="predict", unit="image", disable=None if len(files) > 1 else True)
    with writable(), _results(json_path) as results, bar:
        tqdm.write(f"{'picture':<{width}}  {'name':<{WIDTHS[1]}}  score  box (x0 y0 x1 y1, pixels)", file=sys.stdout)
        for number, (file, outcome) in enumerate(zip(files, outcomes, strict=True), start=1):
            if isinstance(outcome, InputError):
                unreadable += 1
                tqdm.write(f"error: {outcome}", file=sys.stderr)
            else:
                found.update(outcome.names)
                _print_rows(file, outcome, width)
                results.add(number, file, outcome)
                if targets is not None:
                    _draw(file, outcome, targets[file])
            bar.update()
    seconds = time.perf_counter() - began
    _say(len(files), unreadable, found, seconds)
    return 1 if unreadable else 0


def names_from(classes: str | None, classes_file: str | None) -> list[str]:
    """Names with commas between them, and those of a text file, one a line.

    Raises:
        InputError: there is none.
    """
    names = [] if classes is None else [name for name in map(str.strip, classes.split(",")) if name]
    if classes_file is not None:
        lines = read_text(classes_file, "file of names", "write one name a line").splitlines()
        names += [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError('expected names to look for, got none; say --classes "dog, red bus", or --classes-file FILE')
    return names


def _targets(files: Sequence[str], save: Path) -> dict[str, Path]:
    """Where each picture is drawn: below the folder `save` as the pictures lie below the folder that holds all."""
    if len(files) == 1 and save.suffix.lower() in FORMATS and not save.is_dir():
        targets = {files[0]: save}
    else:
        absolute = {file: Path(os.path.abspath(file)) for file in files}
        root = Path(os.path.commonpath([path.parent for path in absolute.values()]))
        targets = {}
        for file, path in absolute.items():
            suffix = "" if path.suffix.lower() in FORMATS else ".png"
            targets[file] = save / path.parent.relative_to(root) / (path.name + suffix)
        if save.exists() and not save.is_dir():
            raise InputError(f"--save: expected a folder, since there are {len(files)} pictures, got the file {save}")
    sources = {os.path.realpath(file) for file in files}
    if overwritten := [str(target) for target in targets.values() if os.path.realpath(target) in sources]:
        raise InputError(f"--save: {overwritten[0]} is one of the pictures, and would be lost; name another folder")
    return targets


@contextlib.contextmanager
def writable() -> Iterator[None]:
    """What cannot be written is the fault of who named the file, and not ours; a full disk has its own line."""
    try:
        yield
    except BrokenPipeError:  # `predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError("the table's reader is gone; write it to a file, or use --json") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"cannot write {error.filename or 'the output'} ({error.strerror or error})") from None


def _print_rows(file: str, found: Detections, width: int) -> None:
    rows = zip(found.names, found.scores.tolist(), found.boxes.tolist(), strict=True)
    for name, score, box in rows:
        corners = " ".join(f"{value:.1f}" for value in box)
        tqdm.write(f"{file:<{width}}  {name:<{WIDTHS[1]}}  {score:.3f}  {corners}", file=sys.stdout)
    if not len(found):
        tqdm.write(f"{file:<{width}}  -", file=sys.stdout)


class _Results:
    """A COCO results list that is written entry by entry. Entries also name the picture and the class.

    image_id is the place of the picture among all, from 1; category_id that of the name.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.separator = "[\n"

    def add(self, image_id: int, picture: str, found: Detections) -> None:
        for entry, name in zip(found.to_coco(image_id), found.names, strict=True):
            entry |= {"file_name": picture, "name": name}
            self.file.write(self.separator + json.dumps(entry, ensure_ascii=False, allow_nan=False))
            self.separator = ",\n"

    def end(self) -> None:
        self.file.write("[]\n" if self.separator == "[\n" else "\n]\n")


@contextlib.contextmanager
def _results(path: str | None) -> Iterator[_Results]:
    with contextlib.ExitStack() as stack:
        aside = os.devnull if path is None else stack.enter_context(write_aside(path))
        results = _Results(stack.enter_context(open(aside, "w", encoding="utf-8", newline="\n")))
        yield results
        results.end()


def _draw(file: str, found: Detections, target: Path) -> None:
    image = draw(as_pixels(file), found)  # read again: thousands of pictures would not fit in memory beside the batch
    with write_aside(target) as aside:
        form = FORMATS[target.suffix.lower()]
        image.save(aside, form, **({"quality": 92, "subsampling": 0} if form == "JPEG" else {}))


def _say(count: int, unreadable: int, found: Counter[str], seconds: float) -> None:
    boxes = ", ".join(f"{number:,} {name}" for name, number in found.most_common(8))
    more = f" and {len(found) - 8} names more" if len(found) > 8 else ""
    print(
        f"predict: {count - unreadable:,} of {count:,} pictures in {seconds:.1f} s, {found.total():,} boxes"
        + (f": {boxes}{more}" if found else "")
        + (f"; {unreadable:,} could not be read" if unreadable else ""),
        file=sys.stderr,
    )

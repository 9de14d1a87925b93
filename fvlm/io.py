"""Reading and writing files: never half-written, never unpickled, always traceable by hash."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError

HASH_BLOCK_BYTES = 1 << 20


@contextlib.contextmanager
def write_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it over `path` when the block ends well, remove it otherwise.

    The rename replaces the directory entry and never writes through it, so hard links and symbolic links into DVC's
    cache are safe.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(aside, 0o666 & ~_umask())  # mkstemp's 0600 would hide results from other users of a shared folder
        os.replace(aside, path)
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            error.filename = str(path)  # Python names no file when a write fails, and people have more than one disk
        raise
    finally:
        aside.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 with Unix line ends, whole or not at all."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], value: Any, *, compact: bool = False) -> None:
    """Write JSON with sorted keys, so that equal values give equal bytes. NaN and infinity are refused."""
    layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 1}
    write_text(path, json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, **layout) + "\n")


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write `rows` under `columns`, in that order."""
    with write_aside(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_text(path: str | os.PathLike[str], what: str, remedy: str) -> str:
    """Read a text file, or say which one is missing or unreadable, what it is, and what to do."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: {what} not found; {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {what} cannot be read ({error}); {remedy}") from None


def read_json(path: str | os.PathLike[str], what: str, remedy: str) -> Any:
    """Read a JSON file; `what` and `remedy` complete the error message where that fails."""
    text = read_text(path, what, remedy)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: {what} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); {remedy}"
        ) from None


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """The file's SHA-256, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """A hash of a JSON-able value that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

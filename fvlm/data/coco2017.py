"""COCO 2017 as published: which archives make it up, which of them are missing, and how to obtain those."""

import functools
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import InputError
from ..io import read_json, sha256_of_file, write_json
from .fetch import Remote, fetch
from .progress import shown_bytes
from .unpack import CLUSTER_BYTES, check_space, free_bytes, unpack

MAGIC = b"PK\x03\x04"  # of a zip archive that is not empty
GROWTH = 1.05  # JPEGs are hardly smaller in a zip: what unpacked pictures have at most, in bytes of their archive


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One zip archive and what is unpacked of it: the named files, or a folder of so many pictures."""

    path: str  # below the server's base address
    bytes: int
    sha256: str
    files: Mapping[str, Mapping[str, Any]] | None = None  # path below the root -> its bytes and sha256
    folder: str | None = None
    pictures: int = 0

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[1]

    @property
    def file_count(self) -> int:
        return len(self.files) if self.files else self.pictures

    @property
    def unpacked_bytes(self) -> int:
        """What is unpacked has at most so many bytes; exact for named files."""
        return sum(file["bytes"] for file in self.files.values()) if self.files else int(self.bytes * GROWTH)

    def wants(self, path: str) -> bool:
        """Whether the archive's member `path` is unpacked."""
        if self.files:
            return path in self.files
        folder, _, name = path.rpartition("/")
        return folder == self.folder and name.endswith(".jpg") and not name.startswith(".")


@functools.cache
def _published() -> dict[str, Any]:
    description: dict[str, Any] = read_json(
        Path(__file__).with_name("coco2017.json"), "list of COCO's archives", "install fvlm again"
    )
    return description


def published_archives() -> list[Archive]:
    """The annotations first, as they are small and show early whether the server answers; training pictures last."""
    return [Archive(**archive) for archive in _published()["archives"]]


def published_address() -> str:
    """The base address of COCO's own server. Plain http: its certificate is not of its name. Sums are checked."""
    return str(_published()["base_url"])


def published_annotations(part: str) -> str:
    """The sha256 of COCO's own annotation file of "train" or "val"."""
    path = f"annotations/instances_{part}2017.json"
    return next(str(archive.files[path]["sha256"]) for archive in published_archives() if archive.files)


def obtain(root: Path, archives: Sequence[Archive], address: str) -> None:
    """Fetch and unpack below `root` what is missing or damaged there; nothing else is fetched or written again.

    An archive that lies in `root` already, under its own name, is used and kept. One that is fetched is removed once
    its files are there, and what they are is noted in `root`/unpacked/.

    Args:
        archives: in the order in which they are obtained.
        address: of the server, such as `published_address()`, without a "/" at the end.

    Raises:
        InputError: the disk is too small (before anything is fetched), the folder cannot be written, another process
            is at it; or see `fetch` and `unpack`.
    """
    try:
        if not _missing(root, archives):
            return
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock", timeout=0):
            missing = _missing(root, archives)
            check_space(root, _plan(root, missing, address), "COCO 2017")
            for archive in missing:
                _obtain(root, archive, address)
    except Timeout:
        raise InputError(f"{root}: another process is downloading to this folder; wait until it has finished") from None
    except PermissionError as error:
        raise InputError(
            f"{root}: expected a folder to download to, but it cannot be written ({error}); where COCO 2017 is there "
            "already, name its folder in data.root or FVLM_DATA_ROOT: nothing is fetched then"
        ) from None
    except OSError as error:  # `fvlm.cli` says it in one line
        error.filename = error.filename or str(root)  # a full disk, which Python does not name
        raise


def _missing(root: Path, archives: Sequence[Archive]) -> list[Archive]:
    return [archive for archive in archives if not _is_unpacked(root, archive)]


def _is_unpacked(root: Path, archive: Archive) -> bool:
    """Whether all files of `archive` are below `root`, as far as can be told without reading 19 GB.

    Named files are told by their sha256; pictures by the sizes noted when they were unpacked, or, where a person put
    them there, by their number.
    """
    if _has_size(_part(root, archive), archive.bytes):
        return False  # a kill came between the last byte and the note
    if archive.files:
        return all(_is_file(root / path, **expected) for path, expected in archive.files.items())
    noted = _noted(root, archive)
    if noted is not None:
        return all(_has_size(root / path, size) for path, size in noted.items())
    assert archive.folder is not None
    folder = root / archive.folder
    found = [path for path in folder.glob("*.jpg") if archive.wants(f"{archive.folder}/{path.name}")]
    return len(found) == archive.pictures and all(_size(path) for path in found)


def _noted(root: Path, archive: Archive) -> dict[str, int] | None:
    """The files that were unpacked of `archive`, and their bytes; None where no note of ours says so."""
    note = _note(root, archive)
    if not note.exists():
        return None
    remedy = "remove it and run `python -m fvlm download` again"
    noted = read_json(note, "note of what was unpacked", remedy)
    files = noted.get("files") if isinstance(noted, dict) else None
    if not isinstance(files, dict):
        raise InputError(f"{note}: expected a note of what was unpacked, got something else; {remedy}")
    return files if noted.get("sha256") == archive.sha256 else None


def _is_file(path: Path, bytes: int, sha256: str) -> bool:
    return _has_size(path, bytes) and sha256_of_file(path) == sha256


def _has_size(path: Path, size: int) -> bool:
    return _size(path) == size


def _size(path: Path) -> int | None:
    """Bytes of a file; None where there is none, a link to none, or a folder."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _plan(root: Path, missing: Sequence[Archive], address: str) -> int:
    """Say what will be fetched and how much disk that takes. Returns the bytes that must be free.

    An archive and its files lie side by side until it is unpacked, one archive after the other.
    """
    needed = lasting = 0
    lines = []
    for archive in missing:
        own, part = _own(root, archive), _part(root, archive)
        there = _size(part) or 0
        to_fetch = 0 if own.exists() else max(archive.bytes - there, 0)
        unpacked = archive.unpacked_bytes + archive.file_count * CLUSTER_BYTES
        if archive.folder and (root / archive.folder).is_dir():  # begun, or damaged: most of it is there
            unpacked -= min(unpacked, sum(_size(path) or 0 for path in (root / archive.folder).glob("*.jpg")))
        needed = max(needed, lasting + to_fetch + unpacked)
        lasting += unpacked - (0 if own.exists() else there)
        how = "is there" if own.exists() else shown_bytes(archive.bytes)
        lines.append(f"{archive.name} ({how}{f', {shown_bytes(there)} of it are there' if there else ''})")
    print(f"download: to {root} from {address}: {', '.join(lines)}", flush=True)
    print(
        f"download: needs {shown_bytes(needed)} of free disk, archives included ({shown_bytes(max(lasting, 0))} stay); "
        f"{shown_bytes(free_bytes(root))} are free",
        flush=True,
    )
    return needed


def _obtain(root: Path, archive: Archive, address: str) -> None:
    own, part = _own(root, archive), _part(root, archive)
    if own.exists():
        if not _is_file(own, archive.bytes, archive.sha256):
            raise InputError(
                f"{own}: expected COCO's archive of {archive.bytes:,} bytes and sha256 {archive.sha256[:12]}..., got "
                f"another file of {own.stat().st_size:,} bytes; move it away, and it is fetched"
            )
    else:
        fetch(Remote(f"{address}/{archive.path}", archive.bytes, archive.sha256, MAGIC), part)
    files = unpack(
        own if own.exists() else part,
        root,
        wanted=archive.wants,
        file_count=archive.file_count,
        max_bytes=archive.unpacked_bytes,
    )
    for path, expected in (archive.files or {}).items():
        if not _is_file(root / path, **expected):
            raise InputError(
                f"{root / path}: expected {expected['bytes']:,} bytes of sha256 {expected['sha256'][:12]}..."
            )
    note = {"archive": f"{address}/{archive.path}", "bytes": archive.bytes, "sha256": archive.sha256, "files": files}
    write_json(_note(root, archive), note)
    part.unlink(missing_ok=True)
    print(f"download: {archive.name}: {len(files):,} files are there", flush=True)


def _own(root: Path, archive: Archive) -> Path:
    """Where a person would put the archive."""
    return root / archive.name


def _part(root: Path, archive: Archive) -> Path:
    """Where the archive arrives; it never gets the name under which a person's own would be kept."""
    return root / f".{archive.name}.part"


def _note(root: Path, archive: Archive) -> Path:
    return root / "unpacked" / f"{archive.name}.json"

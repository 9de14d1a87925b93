"""Unpack a zip archive that is not trusted: nothing outside the folder, no links, no more than was promised."""

import lzma
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

from ..errors import InputError
from .progress import ByteProgress, shown_bytes

# what zipfile and its decompressors raise of an archive that is not whole
DAMAGES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, UnicodeError)
BLOCK_BYTES = 1 << 20
CLUSTER_BYTES = 4096  # what a file takes on a disk is a multiple of it


def unpack(
    archive: Path, root: Path, *, wanted: Callable[[str], bool], file_count: int, max_bytes: int
) -> dict[str, int]:
    """Unpack the wanted files of `archive` below `root`; those that are there, whole, are not written again.

    Each file is written aside and renamed, so that one under its own name is whole, and a call after a kill goes on.

    Args:
        wanted: which of the archive's paths, all with "/", to unpack; others are left in it.
        file_count: how many files are wanted.
        max_bytes: the most bytes that they may have together.

    Returns:
        The path below `root` and the bytes of each wanted file.

    Raises:
        InputError: the archive is damaged or holds what it should not (then nothing is written), or the disk is full.
    """
    remedy = "remove it and run `python -m fvlm download` again"
    try:
        with zipfile.ZipFile(archive) as opened:
            _check_names(archive, opened.infolist())
            members = [member for member in opened.infolist() if not member.is_dir() and wanted(member.filename)]
            total = sum(member.file_size for member in members)
            if len(members) != file_count:
                raise InputError(f"{archive}: expected {file_count:,} files to unpack, got {len(members):,}; {remedy}")
            if total > max_bytes:
                raise InputError(f"{archive}: expected at most {max_bytes:,} bytes to unpack, got {total:,}; {remedy}")
            with ByteProgress(f"download: unpacking {archive.name.strip('.')}", total) as progress:
                missing = []
                for member in members:
                    if _is_there(root / member.filename, member):
                        progress.advance(member.file_size)
                    else:
                        missing.append(member)
                check_space(root, sum(member.file_size + CLUSTER_BYTES for member in missing), f"unpacking {archive}")
                for member in missing:
                    _write(opened, member, root / member.filename)
                    progress.advance(member.file_size)
    except DAMAGES as error:
        raise InputError(f"{archive}: expected a whole zip archive, but it is damaged ({error}); {remedy}") from None
    os.sync()  # after a power failure a file under its own name is whole, too; 118,287 fsyncs would take minutes
    return {member.filename: member.file_size for member in members}


def check_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise InputError if the disk of `folder`, which need not exist yet, has less than `needed` bytes free."""
    free = free_bytes(folder)
    if free < needed:
        raise InputError(
            f"{folder}: expected {shown_bytes(needed)} of free disk for {purpose}, got {shown_bytes(free)}; "
            "free some space, or make it a link to a folder on a larger disk"
        )


def free_bytes(folder: Path) -> int:
    """What this user may still write to the disk of `folder`, or of the first folder above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _check_names(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    seen = set()
    for member in members:
        name = member.orig_filename  # zipfile cuts `filename` at a NUL and turns the system's separators
        path = PureWindowsPath(name)  # knows "/", "\\" and drives, so that an archive means the same on every system
        kind = stat.S_IFMT(member.external_attr >> 16)
        if path.anchor or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
            problem = "a path that leaves the folder"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "a link or a device"
        elif name in seen:
            problem = "the same path twice"
        else:
            seen.add(name)
            continue
        raise InputError(f"{archive}: expected plain files, got {problem}: {name[:80]!r}; do not use this archive")


def _is_there(path: Path, member: zipfile.ZipInfo) -> bool:
    """Whether `path` holds the member, byte for byte as far as its CRC-32 tells."""
    try:
        if path.is_symlink() or path.stat().st_size != member.file_size:
            return False
        crc = 0
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                crc = zlib.crc32(block, crc)
    except OSError:
        return False
    return crc == member.CRC


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.unlink(missing_ok=True)  # of a kill; a link there would be written through
    try:
        with opened.open(member) as source, open(aside, "xb") as file:
            shutil.copyfileobj(
                source, file, BLOCK_BYTES
            )  # reads no more than the directory says, and checks the CRC-32
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)

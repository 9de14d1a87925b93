import os
import signal
import stat
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest

from fvlm.data import unpack as module
from fvlm.data.unpack import check_space, free_bytes, unpack
from fvlm.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
FILES = {f"train2017/{i:012d}.jpg": bytes([i]) * (1000 + i) for i in range(5)}


def make_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def run(archive: Path, root: Path, *, file_count: int = 5, max_bytes: int = 10**6) -> dict[str, int]:
    return unpack(
        archive, root, wanted=lambda path: path.startswith("train2017/"), file_count=file_count, max_bytes=max_bytes
    )


def refusal(archive: Path, root: Path, **limits: int) -> str:
    with pytest.raises(InputError) as error:
        run(archive, root, **limits)
    assert not root.exists() or not list(root.rglob("*.jpg"))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_wanted_files_are_unpacked_and_others_are_not(tmp_path, compression):
    archive = make_zip(
        tmp_path / "a.zip", {"train2017/": b"", **FILES, "captions.json": b"{}", "__MACOSX/x": b"x"}, compression
    )
    assert run(archive, tmp_path / "root") == {name: len(content) for name, content in FILES.items()}
    found = {p.relative_to(tmp_path / "root").as_posix(): p for p in (tmp_path / "root").rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == FILES


LEAVING = [
    "../evil.jpg",
    "train2017/../../evil.jpg",
    "/evil.jpg",
    "//host/x",
    "C:\\evil.jpg",
    "..\\evil.jpg",
    "train2017\\x",
]


@pytest.mark.parametrize("name", LEAVING)
def test_a_path_that_leaves_the_folder_stops_everything(tmp_path, name):
    archive = make_zip(tmp_path / "a.zip", {**FILES, name: b"evil"})
    message = refusal(archive, tmp_path / "root")
    assert "expected plain files, got a path that leaves the folder" in message
    assert not (tmp_path / "evil.jpg").exists()


def test_a_name_with_a_nul_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {**FILES, "train2017/x.jpgQ..": b"evil"})
    archive.write_bytes(archive.read_bytes().replace(b"x.jpgQ..", b"x.jpg\0.."))
    assert "a path that leaves the folder" in refusal(archive, tmp_path / "root")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_are_refused(tmp_path, kind):
    archive = make_zip(tmp_path / "a.zip", FILES)
    entry = zipfile.ZipInfo("train2017/link.jpg")
    entry.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(entry, "/etc/passwd")
    assert "got a link or a device: 'train2017/link.jpg'" in refusal(archive, tmp_path / "root", file_count=6)


def test_the_same_path_twice_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", FILES)
    with zipfile.ZipFile(archive, "a") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened.writestr(next(iter(FILES)), b"other")
    assert "the same path twice" in refusal(archive, tmp_path / "root", file_count=6)


def test_more_or_fewer_files_than_known_are_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", FILES)
    assert "expected 6 files to unpack, got 5" in refusal(archive, tmp_path / "root", file_count=6)


def test_more_bytes_than_known_are_refused_before_they_are_unpacked(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {**FILES, "train2017/bomb.jpg": bytes(10**7)}, zipfile.ZIP_DEFLATED)
    assert archive.stat().st_size < 10**5
    assert "expected at most 1,000,000 bytes to unpack, got 10,005,010" in refusal(
        archive, tmp_path / "root", file_count=6
    )


def test_a_member_cannot_be_longer_than_the_directory_says(tmp_path):
    """The limit holds for what is written and not only for what the archive's directory claims."""
    archive = make_zip(tmp_path / "a.zip", {"train2017/bomb.jpg": bytes(10**7)}, zipfile.ZIP_DEFLATED)
    honest = (10**7).to_bytes(4, "little")
    archive.write_bytes(archive.read_bytes().replace(honest, (1000).to_bytes(4, "little")))
    assert "damaged" in refusal(archive, tmp_path / "root", file_count=1)


@pytest.mark.parametrize("kept", [0, 20, 500, -1])
def test_a_damaged_archive_is_named_with_what_to_do(tmp_path, kept):
    archive = make_zip(tmp_path / "a.zip", FILES)
    archive.write_bytes(archive.read_bytes()[:kept])
    assert "a.zip: expected a whole zip archive, but it is damaged" in refusal(archive, tmp_path / "root")


def test_a_wrong_byte_leaves_no_file_behind(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"train2017/a.jpg": b"abcdefgh"})
    archive.write_bytes(archive.read_bytes().replace(b"abcdefgh", b"abcdefgx"))
    assert "Bad CRC-32" in refusal(archive, tmp_path / "root", file_count=1)
    assert list((tmp_path / "root" / "train2017").iterdir()) == []


def test_whole_files_are_not_written_again_and_damaged_ones_are(tmp_path):
    archive, root = make_zip(tmp_path / "a.zip", FILES), tmp_path / "root"
    run(archive, root)
    names = list(FILES)
    (root / names[0]).unlink()
    (root / names[1]).write_bytes(b"short")
    (root / names[2]).write_bytes(b"x" * len(FILES[names[2]]))  # only its CRC-32 tells
    (tmp_path / "elsewhere").write_bytes(FILES[names[3]])
    (root / names[3]).unlink()
    (root / names[3]).symlink_to(tmp_path / "elsewhere")
    kept = (root / names[4]).stat().st_ino
    run(archive, root)
    assert {name: (root / name).read_bytes() for name in names} == FILES
    assert (root / names[4]).stat().st_ino == kept
    assert not (root / names[3]).is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == FILES[names[3]]


def test_a_kill_leaves_whole_files_only_and_the_next_run_goes_on(tmp_path):
    archive, root = make_zip(tmp_path / "a.zip", FILES), tmp_path / "root"
    code = """
import os, shutil, signal, sys
from pathlib import Path
from fvlm.data import unpack as module
copy, calls = shutil.copyfileobj, []
def killed(source, target, length):
    calls.append(1)
    if len(calls) == 3:
        target.write(source.read(10))
        target.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    copy(source, target, length)
module.shutil.copyfileobj = killed
wanted = lambda path: True
module.unpack(Path(sys.argv[1]), Path(sys.argv[2]), wanted=wanted, file_count=5, max_bytes=10**6)
"""
    process = subprocess.run([sys.executable, "-c", code, str(archive), str(root)], cwd=ROOT, capture_output=True)
    assert process.returncode == -signal.SIGKILL
    written = sorted(path for path in (root / "train2017").glob("*.jpg"))
    assert [path.read_bytes() for path in written] == list(FILES.values())[:2]
    inodes = [path.stat().st_ino for path in written]
    run(archive, root)
    assert {name: (root / name).read_bytes() for name in FILES} == FILES
    assert [path.stat().st_ino for path in written] == inodes
    assert len(os.listdir(root / "train2017")) == len(FILES)


def test_a_disk_that_is_too_small_stops_before_anything_is_written(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "a.zip", FILES)
    monkeypatch.setattr(module, "free_bytes", lambda folder: 25_000)
    message = refusal(archive, tmp_path / "root")  # 5,010 bytes, and 4 KiB more for each file
    assert "expected 25.5 kB of free disk for unpacking" in message
    assert "got 25.0 kB" in message
    monkeypatch.setattr(module, "free_bytes", lambda folder: 25_490)
    run(archive, tmp_path / "root")


def test_free_space_is_that_of_the_folder_that_will_hold_it(tmp_path):
    assert abs(free_bytes(tmp_path / "not" / "yet") - free_bytes(tmp_path)) < 2**30
    with pytest.raises(InputError, match=r"not/yet: expected .* of free disk for pictures, got .*; free some space"):
        check_space(tmp_path / "not" / "yet", 2**80, "pictures")

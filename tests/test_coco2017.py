"""COCO 2017 from archive to manifest: a made-up one of the published layout, behind a local server."""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coco_server import CocoServer, breaks_off_after, running
from conftest import make_coco
from filelock import FileLock

from fvlm import layout
from fvlm.data import coco2017, counts
from fvlm.data.coco2017 import Archive, obtain, published_address, published_annotations, published_archives
from fvlm.data.counts import expected_counts
from fvlm.data.manifest import load_part
from fvlm.errors import InputError
from fvlm.params import Params, load_params
from fvlm.stages import download

RECIPE = Path(__file__).parents[1] / "recipes" / "emoji.yaml"
TRAIN, VAL = 12, 8


@dataclasses.dataclass
class World:
    """A tiny COCO 2017, its archives, the server that has them, and params for it."""

    source: Path
    archives: list[Archive]
    server: CocoServer
    params: Params

    @property
    def root(self) -> Path:
        return Path("data/coco2017")

    def obtain(self) -> None:
        obtain(self.root, self.archives, self.server.url)

    def asked_for(self) -> list[str]:
        return [path.rsplit("/", 1)[1] for path, _ in self.server.requests]

    def files(self) -> dict[str, bytes]:
        """What the pipeline reads, by path."""
        names = ["annotations/instances_train2017.json", "annotations/instances_val2017.json"]
        names += [f"{folder}/{p.name}" for folder in ("train2017", "val2017") for p in (self.source / folder).iterdir()]
        return {name: (self.source / name).read_bytes() for name in names}

    def assert_complete(self) -> None:
        for name, content in self.files().items():
            assert (self.root / name).read_bytes() == content
        assert not list(self.root.rglob("*.part"))
        assert not list(self.root.glob("*.zip"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in [n for n in os.environ if n.lower().endswith("_proxy") or n == layout.DATA_ROOT_VARIABLE]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("fvlm.data.fetch.time.sleep", lambda seconds: None)
    source = make_coco(tmp_path / "source", TRAIN, VAL, (64, 48))
    (source / "annotations" / "captions_train2017.json").write_text("{}")
    monkeypatch.chdir(tmp_path)

    with running() as server:
        archives = []
        for published in published_archives():
            folder = published.folder or "annotations"
            content = zipped(source, folder)
            server.files[f"/{published.path}"] = content
            files = {path: described((source / path).read_bytes()) for path in published.files or {}}
            pictures = {"train2017": TRAIN, "val2017": VAL}.get(folder, 0)
            archives.append(
                dataclasses.replace(published, **described(content), files=files or None, pictures=pictures)
            )
        counted = {
            f"{part}_full": {"images": images, "annotations": annotations}
            for part, images, annotations in (("train", 12, 20), ("val", 8, 13))
        }
        monkeypatch.setattr(coco2017, "published_archives", lambda: archives)
        monkeypatch.setattr(counts, "expected_counts", lambda dataset: counted if dataset == "coco2017" else {})
        recipe = load_params(RECIPE)
        data = dataclasses.replace(recipe.data, dataset="coco2017", emoji=None, mirror=server.url)
        yield World(source, archives, server, dataclasses.replace(recipe, data=data))


def zipped(source: Path, folder: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(f"{folder}/", b"")
        for path in sorted((source / folder).iterdir()):
            archive.write(path, f"{folder}/{path.name}")
    return content.getvalue()


def described(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def with_data(params: Params, **changes: Any) -> Params:
    return dataclasses.replace(params, data=dataclasses.replace(params.data, **changes))


def manifest_of(params: Params) -> bytes:
    return layout.manifest(params).read_bytes()


# --- what is published ---


def test_the_published_archives_are_those_of_the_protocol():
    assert {
        archive.name: (archive.bytes, archive.sha256[:8], archive.file_count) for archive in published_archives()
    } == {
        "annotations_trainval2017.zip": (252_907_541, "113a836d", 2),
        "val2017.zip": (815_585_330, "4f7e2ccb", 5_000),
        "train2017.zip": (19_336_861_798, "69a8bb58", 118_287),
    }
    assert all(len(archive.sha256) == 64 for archive in published_archives())
    assert [published_annotations(part)[:8] for part in ("train", "val")] == ["610fce49", "e8c7f790"]
    assert published_address() == "http://images.cocodataset.org"


def test_the_published_numbers_of_pictures_are_the_expected_counts():
    pictures = {archive.folder: archive.pictures for archive in published_archives() if archive.folder}
    for part in ("train", "val"):
        assert pictures[f"{part}2017"] == expected_counts("coco2017")[f"{part}_full"]["images"]


# --- obtaining it ---


def test_everything_is_fetched_unpacked_and_noted_once(world, capsys):
    world.obtain()
    assert world.asked_for() == ["annotations_trainval2017.zip", "val2017.zip", "train2017.zip"]
    world.assert_complete()
    assert not (world.root / "annotations" / "captions_train2017.json").exists()
    note = json.loads((world.root / "unpacked" / "val2017.zip.json").read_text())
    archive = world.archives[1]
    assert (note["archive"], note["sha256"]) == (f"{world.server.url}/zips/val2017.zip", archive.sha256)
    assert len(note["files"]) == VAL
    capsys.readouterr()
    world.obtain()
    assert len(world.server.requests) == 3
    assert capsys.readouterr().out == ""


def test_it_says_what_it_will_fetch_and_what_disk_it_needs_before_the_first_request(world, monkeypatch, capsys):
    monkeypatch.setattr(coco2017, "fetch", lambda *_: pytest.fail("fetched"))
    with contextlib.suppress(pytest.fail.Exception):
        world.obtain()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"download: to data/coco2017 from {world.server.url}: annotations_trainval2017.zip (")
    assert "train2017.zip (" in said[0]
    assert said[1].startswith("download: needs ")
    assert "of free disk, archives included" in said[1]


def test_a_disk_that_is_too_small_stops_before_the_first_request(world, monkeypatch):
    needed: list[int] = []
    monkeypatch.setattr(coco2017, "check_space", lambda folder, count, purpose: needed.append(count))
    world.obtain()
    world.server.requests.clear()
    shutil.rmtree(world.root)
    monkeypatch.undo()
    monkeypatch.chdir(world.source.parent)
    for free, enough in ((needed[0] - 1, False), (needed[0], True)):
        monkeypatch.setattr("fvlm.data.unpack.free_bytes", lambda folder, free=free: free)
        if enough:
            world.obtain()
        else:
            with pytest.raises(
                InputError, match=r"data/coco2017: expected .* of free disk for COCO 2017, got .*; free"
            ):
                world.obtain()
            assert world.server.requests == []
    world.assert_complete()


def test_the_disk_that_real_coco_needs_is_its_files_and_the_largest_archive():
    needed = coco2017._plan(Path("nowhere"), published_archives(), published_address())
    files, largest = 19_336_861_798 + 815_585_330 + 489_773_314, 19_336_861_798
    assert files + largest < needed < 1.06 * (files + largest)


def test_what_was_fetched_before_counts_for_the_disk(world):
    fresh = coco2017._plan(world.root, world.archives, "x")
    world.root.mkdir(parents=True)
    (world.root / ".train2017.zip.part").write_bytes(bytes(5_000))
    assert coco2017._plan(world.root, world.archives, "x") == fresh - 5_000


def test_an_interrupted_download_goes_on_and_fetches_nothing_twice(world):
    world.server.answers = [breaks_off_after(10**9), breaks_off_after(10**9), breaks_off_after(4_000)]
    world.server.answers += [lambda handler, body: handler.head(404, Content_Length=0)]
    with pytest.raises(InputError, match="HTTP status 404"):
        world.obtain()
    assert (world.root / ".train2017.zip.part").stat().st_size == 4_000
    world.server.requests.clear()
    world.obtain()
    assert world.server.requests == [("/zips/train2017.zip", "bytes=4000-")]
    world.assert_complete()


def test_a_kill_while_unpacking_costs_no_second_download(world):
    code = """
import os, signal, sys
from pathlib import Path
from fvlm.data import coco2017, unpack
from fvlm.data.coco2017 import Archive
sync = os.sync
def killed():
    sync()
    if list(Path("data/coco2017").glob("train2017/*.jpg")):
        os.kill(os.getpid(), signal.SIGKILL)
unpack.os.sync = killed
import json
coco2017.obtain(Path("data/coco2017"), [Archive(**a) for a in json.loads(sys.argv[1])], sys.argv[2])
"""
    described = json.dumps([dataclasses.asdict(archive) for archive in world.archives])
    environment = {**os.environ, "PYTHONPATH": str(RECIPE.parents[1])}
    process = subprocess.run([sys.executable, "-c", code, described, world.server.url], env=environment)
    assert process.returncode == -9
    assert len(world.server.requests) == 3
    world.obtain()
    assert len(world.server.requests) == 3
    world.assert_complete()


@pytest.mark.parametrize(
    ("damage", "fetched"),
    [
        (lambda root: (root / "train2017" / "000000000002.jpg").unlink(), ["train2017.zip"]),
        (lambda root: (root / "val2017" / "000000100002.jpg").write_bytes(b"cut"), ["val2017.zip"]),
        (lambda root: shutil.rmtree(root / "val2017"), ["val2017.zip"]),
        (
            lambda root: flip_last_byte(root / "annotations" / "instances_val2017.json"),
            ["annotations_trainval2017.zip"],
        ),
        (lambda root: shutil.rmtree(root / "unpacked"), []),
    ],
)
def test_only_the_archive_of_what_is_damaged_is_fetched_again(world, damage, fetched):
    world.obtain()
    world.server.requests.clear()
    kept = (world.root / "train2017" / "000000000001.jpg").stat().st_ino
    damage(world.root)
    world.obtain()
    assert world.asked_for() == fetched
    world.assert_complete()
    assert (world.root / "train2017" / "000000000001.jpg").stat().st_ino == kept


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_files_that_a_person_put_there_are_not_fetched(world):
    shutil.copytree(world.source, world.root)
    world.obtain()
    assert world.server.requests == []


def test_links_to_no_picture_and_folders_are_no_pictures(world):
    shutil.copytree(world.source, world.root)
    (world.root / "train2017" / "000000000002.jpg").unlink()
    (world.root / "train2017" / "000000000002.jpg").symlink_to("gone.jpg")
    (world.root / "val2017" / "000000100002.jpg").unlink()
    (world.root / "val2017" / "000000100002.jpg").symlink_to("../annotations")
    world.obtain()
    assert world.asked_for() == ["val2017.zip", "train2017.zip"]
    world.assert_complete()


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": []}'])
def test_a_note_that_is_none_of_ours_is_named(world, content):
    world.obtain()
    (world.root / "unpacked" / "train2017.zip.json").write_text(content)
    with pytest.raises(InputError, match=r"unpacked/train2017\.zip\.json: expected a note of what was unpacked"):
        world.obtain()


def test_an_archive_that_a_person_put_there_is_used_and_kept(world):
    world.root.mkdir(parents=True)
    own = world.root / "train2017.zip"
    own.write_bytes(world.server.files["/zips/train2017.zip"])
    world.obtain()
    assert world.asked_for() == ["annotations_trainval2017.zip", "val2017.zip"]
    assert own.exists()
    own.unlink()
    world.assert_complete()


def test_a_wrong_archive_that_a_person_put_there_is_named_and_kept(world):
    world.root.mkdir(parents=True)
    own = world.root / "train2017.zip"
    own.write_bytes(b"x" * world.archives[2].bytes)
    with pytest.raises(InputError, match=r"train2017\.zip: expected COCO's archive of .*; move it away"):
        world.obtain()
    assert own.exists()


def test_a_second_process_at_the_same_folder_is_refused(world):
    world.root.mkdir(parents=True)
    with (
        FileLock(world.root / ".download.lock"),
        pytest.raises(InputError, match="data/coco2017: another process is downloading"),
    ):
        world.obtain()
    world.obtain()


def test_a_disk_that_fills_up_on_the_way_is_named_and_what_came_is_kept(world, monkeypatch):
    def full(remote: object, part: Path) -> None:
        part.write_bytes(b"begun")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(coco2017, "fetch", full)
    with pytest.raises(OSError, match=r"No space left on device: 'data/coco2017'"):
        world.obtain()
    assert (world.root / ".annotations_trainval2017.zip.part").read_bytes() == b"begun"


def test_a_folder_that_cannot_be_written_is_one_line(world, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "data")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(InputError, match=r"cannot be written .*; where COCO 2017 is there already, name its folder"):
        world.obtain()


# --- the stage ---


def test_the_stage_downloads_checks_and_writes_the_manifest(world):
    download.run(world.params)
    manifest = json.loads(manifest_of(world.params))
    assert manifest["dataset"] == "coco2017"
    assert (manifest["train"]["image_count"], manifest["val"]["image_count"]) == (TRAIN, VAL)
    assert manifest["train"]["annotations_sha256"] == published_annotations("train")
    world.assert_complete()
    written, asked = layout.manifest(world.params).stat().st_ino, len(world.server.requests)
    download.run(world.params)
    assert (layout.manifest(world.params).stat().st_ino, len(world.server.requests)) == (written, asked)
    assert len(load_part(world.params, "train")["images"]) == TRAIN


def test_without_a_mirror_cocos_own_server_is_asked(world, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(coco2017, "obtain", lambda root, archives, address: asked.append(address))
    shutil.copytree(world.source, world.root)
    download.run(with_data(world.params, mirror=None))
    assert asked == ["http://images.cocodataset.org"]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("by", ["data.root", "FVLM_DATA_ROOT"])
def test_a_folder_of_the_users_is_only_checked_and_gives_the_same_manifest(world, monkeypatch, by):
    download.run(world.params)
    downloaded = manifest_of(world.params)
    shutil.rmtree("data")
    world.server.requests.clear()
    params = with_data(world.params, root=str(world.source)) if by == "data.root" else world.params
    if by == "FVLM_DATA_ROOT":
        monkeypatch.setenv(by, str(world.source))
    before = snapshot(world.source)
    for folder in (world.source, world.source / "annotations", world.source / "train2017"):
        folder.chmod(0o555)
    download.run(params)
    assert snapshot(world.source) == before
    assert world.server.requests == []
    assert manifest_of(params) == downloaded
    assert layout.data_root(params) == world.source
    assert len(load_part(params, "val")["images"]) == VAL


@pytest.mark.parametrize("what", ["train2017/000000000002.jpg", "annotations/instances_val2017.json"])
def test_what_a_folder_of_the_users_lacks_is_named_and_not_fetched(world, monkeypatch, what):
    (world.source / what).unlink()
    monkeypatch.setenv("FVLM_DATA_ROOT", str(world.source))
    with pytest.raises(InputError, match=Path(what).name):
        download.run(world.params)
    assert world.server.requests == []
    assert not (world.source / what).exists()


def test_a_named_folder_that_is_not_there_is_not_made(world, monkeypatch):
    monkeypatch.setenv("FVLM_DATA_ROOT", "elsewhere")
    with pytest.raises(InputError, match=r"elsewhere: expected the folder .*; correct data\.root \(or FVLM_DATA_ROOT"):
        download.run(world.params)
    assert world.server.requests == []
    assert not Path("elsewhere").exists()


def test_later_stages_find_the_pictures_without_the_variable_too(world, monkeypatch):
    monkeypatch.setenv("FVLM_DATA_ROOT", os.path.relpath(world.source))
    download.run(world.params)
    monkeypatch.delenv("FVLM_DATA_ROOT")
    assert layout.data_root(world.params) == world.source
    assert len(load_part(world.params, "train")["images"]) == TRAIN
    download.run(world.params)  # without the variable it is obtained here, and the note is gone
    assert layout.data_root(world.params) == world.root
    world.assert_complete()


def test_the_variable_goes_before_the_params_and_is_for_coco_2017_alone(world, monkeypatch):
    monkeypatch.setenv("FVLM_DATA_ROOT", "of/the/variable")
    params = with_data(world.params, root="of/the/params")
    assert layout.data_root(params) == Path("of/the/variable")
    assert layout.data_root(with_data(params, dataset="coco_folder", mirror=None)) == Path("of/the/params")
    assert layout.data_root(load_params(RECIPE)) == Path("data/emoji")
    monkeypatch.setenv("FVLM_DATA_ROOT", "")
    assert layout.data_root(params) == Path("of/the/params")


@pytest.mark.parametrize("content", ["[]", "{}", '{"root": 3}'])
def test_a_note_of_the_folder_that_is_none_of_ours_is_named(world, content):
    world.root.mkdir(parents=True)
    layout.root_note(world.params).write_text(content)
    with pytest.raises(InputError, match=r"root\.json: expected a note of the data's folder"):
        layout.data_root(world.params)


@pytest.mark.parametrize("name", ["caf\udce9", "two\nlines"])
def test_a_folder_whose_name_no_line_can_hold_is_refused(world, monkeypatch, name):
    monkeypatch.setenv(layout.DATA_ROOT_VARIABLE, name)
    with pytest.raises(InputError, match="expected a path in UTF-8 without control letters") as error:
        download.run(world.params)
    assert "\n" not in str(error.value)


def test_other_names_than_the_published_are_refused_before_anything_is_fetched(world):
    with pytest.raises(InputError, match=r"data\.val_images: expected val2017, as COCO 2017 is downloaded, got x/val"):
        download.run(with_data(world.params, val_images="x/val"))
    assert world.server.requests == []


def test_a_file_that_does_not_count_to_coco_2017_is_named_with_both_numbers(world, monkeypatch):
    make_coco(Path("other"), TRAIN, VAL + 1, (64, 48))
    with pytest.raises(InputError) as error:
        download.run(with_data(world.params, root="other"))
    first = str(error.value).splitlines()[0]
    assert first.startswith("other/annotations/instances_val2017.json: expected 8 images in val_full")
    assert "found 9; obtain COCO 2017's own files, or set data.dataset to coco_folder" in first
    assert not layout.manifest(world.params).exists()


def test_a_file_that_counts_right_but_is_not_the_published_one_is_said(world, capsys):
    file = world.source / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text() + " ")
    download.run(with_data(world.params, root=str(world.source)))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("download: note:")]
    assert said == [f"download: note: {file} counts like COCO 2017's own file, but its sha256 is another"]


def test_neither_git_nor_dvc_looks_at_what_was_downloaded():
    """Only the manifest is DVC's; hashing 19 GB of pictures, or even listing them, would take minutes each time."""
    import pathspec

    repository = RECIPE.parents[1]
    paths = ["train2017/a.jpg", "annotations/a.json", "unpacked/a.json", "train2017.zip", ".train2017.zip.part"]
    paths = [f"data/coco2017/{path}" for path in [*paths, ".download.lock"]]
    for file in (".gitignore", ".dvcignore"):
        ignored = pathspec.PathSpec.from_lines("gitignore", (repository / file).read_text().splitlines())
        assert [path for path in paths if not ignored.match_file(path)] == []
    assert not ignored.match_file("data/coco2017/manifest.json")

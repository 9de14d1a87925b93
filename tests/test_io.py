"""Files are written whole or not at all, through no link, with equal bytes for equal content."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from fvlm.errors import InputError
from fvlm.io import (
    read_json,
    read_text,
    sha256_of_file,
    sha256_of_json,
    write_aside,
    write_csv,
    write_json,
    write_text,
)
from fvlm.tensors import load_tensors, save_tensors, sha256_of_tensors

WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_text(path, "new" * 100_000),
    "json": lambda path: write_json(path, {"new": list(range(100_000))}),
    "csv": lambda path: write_csv(path, [{"new": i} for i in range(100_000)], ["new"]),
    "tensors": lambda path: save_tensors(path, {"new": torch.zeros(100_000)}, {}),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_file_is_written_into_folders_that_do_not_exist_yet(tmp_path: Path, writer: Callable[[Path], None]) -> None:
    path = tmp_path / "a" / "b" / "file"
    writer(path)
    assert path.stat().st_size > 0
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)  # the latest moment at which a file system reports it
    with pytest.raises(OSError, match=f"No space left on device.*{path}"):
        WRITERS[name](path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_tensor_file_that_does_not_fit_is_told_as_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors has an error type of its own, with the reason in its text; the command line looks for it there."""

    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("fvlm.tensors.save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_tensors(tmp_path / "file", {"new": torch.zeros(1000)}, {})
    assert os.listdir(tmp_path) == []


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), write_aside(path) as aside:
        aside.write_text(f"ne{1 / 0}")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_link_into_a_cache_is_replaced_and_never_written_through(
    tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    cached, path = tmp_path / "cached", tmp_path / "file"
    cached.write_text("old")
    link(cached, path)
    write_text(path, "new")
    assert cached.read_text() == "old"
    assert path.read_text() == "new"
    assert not path.is_symlink()


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "file", "")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "y": "é"})
    write_json(tmp_path / "b", {"y": "é", "x": 1})
    save_tensors(tmp_path / "c", {"x": torch.ones(2), "y": torch.zeros(1)}, {"k": 1, "j": 2})
    save_tensors(tmp_path / "d", {"y": torch.zeros(1), "x": torch.ones(2)}, {"j": 2, "k": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b'{\n "x": 1,\n "y": "\xc3\xa9"\n}\n'
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", {"loss": value})
    assert os.listdir(tmp_path) == []


def test_csv_has_the_columns_in_order_and_empty_cells_for_none(tmp_path: Path) -> None:
    write_csv(tmp_path / "file", [{"b": None, "a": 1}, {"a": "x,y", "b": 2.5}], ["a", "b"])
    assert (tmp_path / "file").read_bytes() == b'a,b\n1,\n"x,y",2.5\n'


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    tensors = {"half": torch.randn(3, 2).half(), "ids": torch.arange(4), "empty": torch.zeros(0, 4)}
    save_tensors(tmp_path / "file", tensors, {"names": ["é"], "temperature": 0.01})
    loaded, metadata = load_tensors(tmp_path / "file", "a file", "make it again")
    assert metadata == {"names": ["é"], "temperature": 0.01}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)


def test_a_missing_or_broken_file_is_told_with_what_it_is_and_the_remedy(tmp_path: Path) -> None:
    save_tensors(tmp_path / "cut", {"x": torch.zeros(100)}, {})
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:200])
    (tmp_path / "bad.json").write_text('{"a": 1,}')
    with pytest.raises(InputError, match=r"cut: model is not a readable safetensors file .*; train again"):
        load_tensors(tmp_path / "cut", "model", "train again")
    with pytest.raises(InputError, match=r"none: model not found; train again"):
        load_tensors(tmp_path / "none", "model", "train again")
    with pytest.raises(InputError, match=r"bad\.json: card is not valid JSON \(line 1, column \d+: .*\); run vlm"):
        read_json(tmp_path / "bad.json", "card", "run vlm")
    with pytest.raises(InputError, match=r"none: card not found; run vlm"):
        read_text(tmp_path / "none", "card", "run vlm")
    with pytest.raises(InputError, match=r"card cannot be read .*; run vlm"):
        read_text(tmp_path, "card", "run vlm")


def test_hashes_tell_content_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_json({"a": 1, "b": [2]}) == sha256_of_json({"b": [2], "a": 1})
    assert sha256_of_json({"a": 1}) != sha256_of_json({"a": 2})
    x, y = torch.arange(6.0).reshape(2, 3), torch.tensor(3)
    assert sha256_of_tensors({"x": x, "y": y}) == sha256_of_tensors({"y": y, "x": x.clone()})
    assert sha256_of_tensors({"x": x}) != sha256_of_tensors({"x": x.reshape(3, 2)})
    assert sha256_of_tensors({"x": x}) != sha256_of_tensors({"z": x})
    assert sha256_of_tensors({"x": x}) == sha256_of_tensors({"x": x.T.contiguous().T})

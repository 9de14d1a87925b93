"""The command line: exit code 2 and one line a finding for bad input, never a traceback."""

import errno
import os
import shutil
import sys
import types
from pathlib import Path

import pytest
import yaml

from fvlm import cli
from fvlm.errors import InputError
from fvlm.params import Params, read_tree

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the default params; environment changes of the command line are undone."""
    shutil.copy(ROOT / "recipes" / "emoji.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return tmp_path


def stage_that(monkeypatch: pytest.MonkeyPatch, name: str, run) -> None:
    monkeypatch.setitem(sys.modules, f"fvlm.stages.{name}", types.SimpleNamespace(run=run))


def failing_with(error: BaseException):
    def run(params: Params, setting: str = "") -> None:
        raise error

    return run


def test_a_stage_gets_the_params_and_its_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[Params, str]] = []
    stage_that(monkeypatch, "train", lambda params, setting, seed: got.append((params, setting)))
    assert cli.main(["train", "--setting", "ovod"]) == 0
    ((params, setting),) = got
    assert setting == "ovod"
    assert params.train.batch_size == 8
    assert os.environ["OMP_NUM_THREADS"] == str(params.compute.threads), "and not what Snakemake's --cores says"
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE", "or a busy machine slows training several times"


def test_every_finding_in_params_is_a_line_and_no_stage_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage_that(monkeypatch, "train", lambda **_: pytest.fail("the stage ran"))
    tree = read_tree("params.yaml")
    tree["train"].update(steps=-1, lrr=2)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))
    assert cli.main(["train", "--setting", "zsd"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2
    assert all(line.startswith("params.yaml: train.") for line in err.splitlines())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("osr", ["expected one of zsd, ovod, got 'osr'"]),
        ("zsd_strict", ["expected one of zsd, ovod, got 'zsd_strict'", "add it to settings in params.yaml"]),
        ("", ["got ''"]),
    ],
)
def test_an_unknown_setting_is_told_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], setting: str, words: list[str]
) -> None:
    assert cli.main(["train", "--setting", setting]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --setting: ")
    assert all(word in line for word in words)


def with_seeds(folder: Path, *seeds: int) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump({**read_tree("params.yaml"), "seeds": list(seeds)}))


@pytest.mark.parametrize("stage", ["train", "detect", "evaluate"])
def test_a_stage_of_a_run_gets_the_seed_that_is_asked_for_or_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    got: list[int | None] = []
    stage_that(monkeypatch, stage, lambda params, setting, seed: got.append(seed))
    with_seeds(folder, 5, 0)
    assert cli.main([stage, "--setting", "zsd", "--seed", "0"]) == 0
    assert cli.main([stage, "--setting", "zsd", "--seed", "5"]) == 0
    assert cli.main([stage, "--setting", "zsd"]) == 0
    assert got == [0, 5, None]


@pytest.mark.parametrize(
    ("seed", "line"),
    [
        ("2", "error: --seed: expected one of 5, 0, got '2'; add it to seeds in params.yaml"),
        ("-1", "error: --seed: expected one of 5, 0, got '-1'"),
        ("one", "error: --seed: expected one of 5, 0, got 'one'"),
        ("", "error: --seed: expected one of 5, 0, got ''"),
    ],
)
def test_an_unknown_seed_is_told_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], seed: str, line: str
) -> None:
    with_seeds(folder, 5, 0)
    assert cli.main(["train", "--setting", "zsd", "--seed", seed]) == 2
    assert capsys.readouterr().err == line + "\n"


def test_bad_input_found_by_a_stage_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage_that(monkeypatch, "text", failing_with(InputError("models/vlm.json: not found; run `python -m fvlm vlm`")))
    assert cli.main(["text"]) == 2
    assert capsys.readouterr().err == "error: models/vlm.json: not found; run `python -m fvlm vlm`\n"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError("cannot write: No space left on device")]
)
def test_a_full_disk_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError
) -> None:
    stage_that(monkeypatch, "text", failing_with(error))
    assert cli.main(["text"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the disk is full: ")


def test_a_file_that_the_system_refuses_is_one_line_and_an_error_without_a_file_is_the_program_s(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage_that(monkeypatch, "text", failing_with(PermissionError(errno.EACCES, "Permission denied", "/home/you/coco")))
    assert cli.main(["text"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /home/you/coco: Permission denied (PermissionError); ")
    stage_that(monkeypatch, "text", failing_with(OSError(errno.EBADF, "Bad file descriptor")))
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main(["text"])


def test_a_torch_that_torchvision_does_not_go_with_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def import_module(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(cli.importlib, "import_module", import_module)
    assert cli.main(["text"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "torch and torchvision do not go together" in line


def test_an_error_of_the_program_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_that(monkeypatch, "text", failing_with(RuntimeError("ours")))
    with pytest.raises(RuntimeError, match="ours"):
        cli.main(["text"])


def test_an_interrupt_ends_with_130(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage_that(monkeypatch, "text", failing_with(KeyboardInterrupt()))
    assert cli.main(["text"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_folder_without_params_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["download"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "copy one of recipes/*.yaml to params.yaml" in line


@pytest.mark.parametrize(
    "arguments",
    [[], ["trian"], ["train"], ["report", "--setting", "zsd"], ["splits", "--setting", "zsd", "--seed", "0"]],
)
def test_wrong_arguments_end_with_2(folder: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


def test_check_params_says_that_they_are_valid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-params"]) == 0
    assert capsys.readouterr().out == "params.yaml: valid\n"


def test_every_stage_has_a_module() -> None:
    modules = {path.stem for path in (ROOT / "fvlm" / "stages").glob("[a-z]*.py")}
    assert set(cli.STAGES) == modules

"""Environment of the training's processes; how they are started and ended is in test_stage_train.py."""

import dataclasses
from pathlib import Path

import pytest

from fvlm import processes
from fvlm.errors import InputError
from fvlm.params import load_params

COMPUTE = load_params(Path(__file__).resolve().parents[1] / "recipes" / "emoji.yaml").compute
VARIABLES = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture
def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert (processes.rank(), processes.local_rank(), processes.join(COMPUTE)) == (0, 0, 1)
    monkeypatch.setenv("RANK", "1")  # some schedulers set it for purposes of their own
    assert not processes.under_torchrun() and processes.rank() == 0


def test_torchruns_variables_say_which_process_this_is(under_torchrun: None) -> None:
    assert (processes.rank(), processes.local_rank()) == (3, 1)


@pytest.mark.parametrize("count", [1, 2])
def test_another_number_of_processes_than_the_params_say_is_explained_in_one_line(
    under_torchrun: None, count: int
) -> None:
    with pytest.raises(
        InputError, match=rf"compute\.processes: expected the 4 that torchrun started.*, got {count}; "
    ) as e:
        processes.join(dataclasses.replace(COMPUTE, processes=count))
    assert "\n" not in str(e.value)


def test_more_processes_than_the_params_say_need_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="expected the 1 that"):
        processes.join(dataclasses.replace(COMPUTE, processes=2))


def test_before_they_are_connected_the_first_process_of_a_machine_speaks(
    under_torchrun: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not processes.is_first_to_fail()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert processes.is_first_to_fail()

"""Two processes compute what one computes on the whole batch: losses, gradients, batch norm, and a resumed run."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from two_processes import CASES, build, observe

from fvlm.detector.detector import FVLM
from fvlm.io import read_json
from fvlm.tensors import load_tensors
from fvlm.training.parallel import ALONE, SynchronizedBatchNorm, synchronize_norms

ROOT = Path(__file__).resolve().parents[1]
FLOAT32, BFLOAT16 = 5e-4, 5e-2  # relative errors of a tensor: sums in another order, divided by a temperature of 0.05


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two processes computed."""
    folder = tmp_path_factory.mktemp("of_two")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, ROOT / "tests" / "two_processes.py", folder],
            env=common | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return folder


def found(folder: Path, case: str) -> dict[str, Tensor]:
    """What both processes computed, which is the same to the last bit."""
    first, second = (load_tensors(folder / f"{case}_{rank}.safetensors", "", "")[0] for rank in range(2))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    return first


# A batch norm that trains takes a constant off again: the bias before it has a gradient of rounding errors alone.
BEFORE_NORM = re.compile(r"gradient (rpn\.convs|box_head\.convs|box_head\.fc)\b.*\.bias")


def assert_close(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, *, norms_train: bool = False
) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if norms_train and BEFORE_NORM.match(name):
            continue
        error = (found[name] - tensor).norm() / tensor.norm().clamp(min=1e-3)
        assert error < tolerance, f"{name}: relative error {error:.2g}"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_losses_gradients_and_statistics_of_one(of_two: Path, case: str) -> None:
    tolerance = BFLOAT16 if case == "bfloat16" else FLOAT32
    assert_close(found(of_two, case), observe(ALONE, CASES[case]), tolerance, norms_train=CASES[case].norms_train)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_passes_have_the_normalisers_of_the_whole_batch(accumulation: int) -> None:
    case = CASES["fixed_norms"]
    assert_close(observe(ALONE, case, accumulation), observe(ALONE, case), FLOAT32)


@pytest.mark.slow
def test_passes_of_two_processes_have_the_normalisers_of_the_whole_batch(of_two: Path) -> None:
    assert_close(found(of_two, "accumulation"), observe(ALONE, CASES["fixed_norms"]), FLOAT32)


@pytest.mark.slow
def test_two_processes_that_are_stopped_and_started_again_end_with_the_same_bytes(of_two: Path) -> None:
    hashes = [read_json(of_two / f"hashes_{rank}.json", "", "") for rank in range(2)]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 4 and len(set(hashes[0].values())) == 1


def norms(module: nn.Module) -> list[str]:
    return [name for name, m in module.named_modules() if isinstance(m, SynchronizedBatchNorm)]


def test_the_norms_that_train_are_synchronised_and_keep_their_names() -> None:
    detector: FVLM = build("none")
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    synchronize_norms(detector)
    assert detector.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    assert [m for m in detector.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)] == []
    frozen = build("all")
    synchronize_norms(frozen)
    assert norms(frozen.box_head) and not norms(frozen.tower)


def test_without_training_a_synchronised_norm_is_a_batch_norm() -> None:
    norm, expected = SynchronizedBatchNorm(3).eval(), nn.BatchNorm2d(3).eval()
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(norm(x), expected(x))

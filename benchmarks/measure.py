"""How a benchmark measures: interleaved runs, peak memory, operations, the machine's own rate, and what it records."""

import argparse
import datetime
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

import fvlm
from fvlm.io import write_json

MIB = 2**20
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}  # of the product that measures the machine: large enough for its full rate


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """What every benchmark takes."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="bfloat16: autocast")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, interleaved; medians are shown")
    parser.add_argument("--json", metavar="FILE", help="write all numbers here, too")


def set_up(arguments: argparse.Namespace) -> torch.device:
    """Threads, and float32 that is float32: on CUDA torch would take TF32 in convolutions."""
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(arguments.device)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Lap:
    """One timed call: seconds on the clock, and seconds of processor that this process used, all threads together.

    On a machine that others use too, the second says more; idle threads that spin count in it (OMP_WAIT_POLICY=passive
    stops that).
    """

    seconds: float
    cpu_seconds: float


def lap(run: Callable[[], Any], device: torch.device) -> Lap:
    synchronise(device)
    began, began_cpu = time.perf_counter(), time.process_time()
    run()
    synchronise(device)
    return Lap(time.perf_counter() - began, time.process_time() - began_cpu)


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[Lap]]:
    """`repeats` calls of each, in rounds, so that whatever else the machine does meets all of them.

    Each round begins with another one. The caller has warmed them up.
    """
    names = list(runs)
    laps: dict[str, list[Lap]] = {name: [] for name in names}
    for round_number in range(repeats):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            laps[name].append(lap(runs[name], device))
    return laps


def tera_operations(run: Callable[[], Any]) -> float:
    """Floating-point operations of one call in 1e12: convolutions and matrix products, backward included."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12


def matrix_rate(device: torch.device, precision: torch.dtype, repeats: int = 7) -> float:
    """TFLOP/s of a large square matrix product: what this machine gives at most. The median of `repeats`."""
    side = MATRIX_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(precision) for _ in range(2))
    for _ in range(2):
        a @ b
    return 2 * side**3 / 1e12 / statistics.median(lap(lambda: a @ b, device).seconds for _ in range(repeats))


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has held: the allocator's on CUDA, the resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage begins with the peak of the process that started this one
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_in_a_process(module: str, argv: Sequence[str], name: str) -> dict[str, int]:
    """`peak_bytes` of contestant `name`, alone in a process of its own: `python -m module argv --memory-of name`.

    `peak`, and `before` it was built: on a CPU the libraries take three quarters of a GiB.

    To be called while this process is still small: Linux hands a parent's resident set on to its child's maximum.
    """
    command = [sys.executable, "-m", module, *argv, "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


class Stopwatch:
    """Seconds by phase: `timing` puts a clock around functions and methods of others.

    Phases do not overlap: time in a nested phase counts for the inner one only.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def _switch(self) -> None:
        synchronise(self.device)
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def timing(self, phases: Mapping[str, Sequence[tuple[Any, str]]]) -> Iterator[None]:
        """Within the block each (owner, attribute) of a phase is timed as that phase."""
        with ExitStack() as stack:
            for name, places in phases.items():
                for owner, attribute in places:
                    stack.enter_context(patch.object(owner, attribute, self._timed(name, getattr(owner, attribute))))
            yield

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return timed


def operators(run: Callable[[], Any], device: torch.device, count: int = 12) -> list[dict[str, Any]]:
    """The operators that take most of one call, by their own time, in seconds."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        synchronise(device)
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, own))[:count]
    return [{"operator": e.key, "seconds": getattr(e, own) / 1e6, "calls": e.count} for e in events]


def record(arguments: argparse.Namespace, module: str, argv: Sequence[str], **results: Any) -> dict[str, Any]:
    """What the JSON file holds: the results, and all that is needed to judge and to repeat them."""
    device = torch.device(arguments.device)
    return {
        "benchmark": module,
        "command": shlex.join(["python", "-m", module, *argv]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "system": platform.platform(),
        },
        "versions": {
            "fvlm": fvlm.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "cuda": torch.version.cuda if device.type == "cuda" else None,
        },
        "arguments": {name: value for name, value in vars(arguments).items() if name != "json"},
        **results,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def show(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print `rows` under the keys of `columns`, whose values are formats; a value that is None prints as a dash."""
    cells = [[*columns], *([_cell(row[name], form) for name, form in columns.items()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print(
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        )


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def finish(arguments: argparse.Namespace, result: dict[str, Any]) -> dict[str, Any]:
    """Write the JSON file where one is asked for."""
    if arguments.json:
        write_json(arguments.json, result)
        print(f"written: {arguments.json}")
    return result

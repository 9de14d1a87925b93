"""What `train_step` and `inference` share: contestants against each other, and where our own time goes."""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import measure
from .contestants import OURS, Contestant, Sizes

COLUMNS = {
    "detector": "",
    "s": ".3f",
    "s/image": ".3f",
    "images/s": ".3f",
    "times ours": ".2f",
    "CPU s": ".2f",
    "CPU times ours": ".2f",
    "peak MiB": ".0f",
    "less libraries": ".0f",
    "TFLOP": ".3f",
    "TFLOP/s": ".3f",
    "of matmul": ".0%",
}


def parse(description: str, argv: Sequence[str]) -> tuple[argparse.Namespace, Sizes]:
    parser = argparse.ArgumentParser(description=description)
    measure.common_arguments(parser)
    parser.add_argument("--image-size", type=int, default=1024, help="pixels per side, a multiple of 64")
    parser.add_argument("--batch", type=int, default=2, help="pictures")
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--channels-last", action=flag, default=True, help="our memory format")
    parser.add_argument("--torchvision-channels-last", action=flag, default=False, help="torchvision's")
    parser.add_argument("--memory", action=flag, default=True, help="peak memory, each detector in its own process")
    parser.add_argument("--profile", action="store_true", help="show where our time goes")
    parser.add_argument("--quick", action="store_true", help="tiny sizes that prove nothing: the smoke test")
    parser.add_argument("--memory-of", metavar="DETECTOR", help=argparse.SUPPRESS)  # the process of one measurement
    arguments = parser.parse_args(argv)
    device = measure.set_up(arguments)
    sizes = Sizes(
        image_size=64 if arguments.quick else arguments.image_size,
        batch=arguments.batch,
        rois=8 if arguments.quick else 512,
        proposals=20 if arguments.quick else 1000,
        classes=48,
        boxes=7,
        device=device,
        precision=measure.PRECISIONS[arguments.precision],
        channels_last=arguments.channels_last,
        torchvision_channels_last=arguments.torchvision_channels_last,
        miniature=arguments.quick,
    )
    return arguments, sizes


def compare(
    module: str,
    argv: Sequence[str],
    arguments: argparse.Namespace,
    sizes: Sizes,
    names: Sequence[str],
    build: Callable[[str, Sizes], Contestant],
    profile: Callable[[Contestant, measure.Stopwatch], None],
) -> dict[str, Any]:
    """Measure the contestants `names`, print the table, return the record."""
    if arguments.memory_of:
        before = measure.peak_bytes(sizes.device)
        build(arguments.memory_of, sizes).run()
        print(json.dumps({"before": before, "peak": measure.peak_bytes(sizes.device)}))
        return {}
    peaks = {n: measure.peak_in_a_process(module, argv, n) if arguments.memory else None for n in names}
    contestants = {name: build(name, sizes) for name in names}
    operations = {name: measure.tera_operations(c.run) for name, c in contestants.items()}  # and warms up
    rate = measure.matrix_rate(sizes.device, sizes.precision)
    laps = measure.interleaved({n: c.run for n, c in contestants.items()}, arguments.repeats, sizes.device)
    rows = _rows(names, sizes.batch, laps, peaks, operations, rate)
    print(
        f"{sizes.device}, {torch.get_num_threads()} threads, {arguments.precision}, {sizes.batch} pictures of "
        f"{sizes.image_size} px, medians of {arguments.repeats}; matrix product {rate:.3f} TFLOP/s"
    )
    measure.show(rows, COLUMNS)
    results: dict[str, Any] = {"matmul_tflops_per_s": rate, "rows": rows}
    results["laps"] = {name: [dataclasses.asdict(lap) for lap in laps[name]] for name in names}
    if arguments.profile:
        results |= _profile(contestants[OURS], arguments.repeats, sizes.device, profile)
    return measure.finish(arguments, measure.record(arguments, module, argv, **results))


def _rows(
    names: Sequence[str],
    batch: int,
    laps: Mapping[str, Sequence[measure.Lap]],
    peaks: Mapping[str, dict[str, int] | None],
    operations: Mapping[str, float],
    rate: float,
) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        # each round's ratio, then the median: a slow minute of the machine falls out
        pairs = list(zip(laps[name], laps[OURS], strict=True))
        seconds, cpu_seconds = (
            statistics.median(getattr(lap, of) for lap in laps[name]) for of in ("seconds", "cpu_seconds")
        )
        peak = peaks[name]
        rows.append(
            {
                "detector": name,
                "s": seconds,
                "s/image": seconds / batch,
                "images/s": batch / seconds,
                "times ours": statistics.median(lap.seconds / ours.seconds for lap, ours in pairs),
                "CPU s": cpu_seconds,
                "CPU times ours": statistics.median(lap.cpu_seconds / ours.cpu_seconds for lap, ours in pairs),
                "peak MiB": None if peak is None else peak["peak"] / measure.MIB,
                "less libraries": None if peak is None else (peak["peak"] - peak["before"]) / measure.MIB,
                "TFLOP": operations[name],
                "TFLOP/s": operations[name] / seconds,
                "of matmul": operations[name] / seconds / rate,
            }
        )
    return rows


def _profile(
    contestant: Contestant,
    repeats: int,
    device: torch.device,
    profile: Callable[[Contestant, measure.Stopwatch], None],
) -> dict[str, Any]:
    """Medians of the seconds of each phase, and the operators that take longest."""
    laps = []
    for _ in range(repeats):
        watch = measure.Stopwatch(device)
        profile(contestant, watch)
        laps.append(watch.seconds)
    phases: list[dict[str, Any]] = [
        {"phase": name, "s": statistics.median(lap[name] for lap in laps)} for name in laps[0]
    ]
    total = sum(row["s"] for row in phases)
    phases = [row | {"share": row["s"] / total} for row in phases]
    top = measure.operators(contestant.run, device)
    print()
    measure.show(phases, {"phase": "", "s": ".4f", "share": ".1%"})
    print()
    measure.show(top, {"operator": "", "seconds": ".4f", "calls": ""})
    return {"phases": phases, "operators": top}

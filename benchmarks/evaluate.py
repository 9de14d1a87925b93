"""How long, and in how much memory, COCO-sized raw detections are scored; beside pycocotools and faster-coco-eval.

    python -m benchmarks.evaluate --processes 2 --json evaluate.json

Makes the raw detections of 5,000 pictures with 1,000 proposals each and similarities to background and 80 classes
(boxes in clusters about objects, similarities with peaks; from a fixed seed) and runs, each in a process of its own:

- `protocol`: from the file to generalized base, novel and all AP50, 65 classes, 100 detections a picture;
- `sweep`: the same for 25 pairs of alpha and beta;
- the counting alone, AP at ten IoU thresholds, of the very same detections: by us, faster-coco-eval and pycocotools.

Exit code 1 where a limit is passed: one protocol in 60 s and 4 GiB, the sweep in 600 s, the file in 2 GiB. Seconds of
processor are those of all processes together, and say more than the clock where others use the machine, too.
"""

import argparse
import contextlib
import io
import json
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fvlm.compute import set_up_cpu
from fvlm.data.coco import categories, category_records
from fvlm.data.splits import base_names, build_val_all, build_val_split, novel_names
from fvlm.evaluation.ap import ClassScore, average_precision, group_mean
from fvlm.evaluation.detections import coco_results, detect_cases
from fvlm.evaluation.matching import Truth, class_scores, count
from fvlm.evaluation.protocols import case_of, protocols
from fvlm.evaluation.raw import TENSOR_DTYPES, RawDetections
from fvlm.evaluation.scoring import generalized_ap50
from fvlm.evaluation.sweep import sweep_fusion
from fvlm.io import read_json, write_json
from fvlm.params import Evaluate, Sweep
from fvlm.tensors import METADATA_KEY

from . import measure

MODULE = "benchmarks.evaluate"
LIMITS = {"protocol_s": 60, "protocol_bytes": 4 << 30, "sweep_s": 600, "file_bytes": 2 << 30}
SIDE_HW = (480, 640)
OBJECTS = 7.3  # of a picture, on average: val2017's 36,335 boxes on 5,000 pictures
WORKS = ("protocol", "sweep", "counting")
COLUMNS = {"": "", "s": ".1f", "CPU s": ".1f", "peak GiB": ".2f", "AP50 novel": ".4f"}
SAFETENSORS_DTYPE = {torch.int64: "I64", torch.float32: "F32", torch.float16: "F16"}


def rules(processes: int) -> Evaluate:
    grid = (0.0, 0.2, 0.35, 0.5, 0.65)
    return Evaluate(
        images="split",
        vocabulary="scored",
        vlm_background=True,
        alpha=0.2,
        beta=0.5,
        renormalise=True,
        vlm_temperature=None,
        nms_iou=0.5,
        score_threshold=0.0,
        max_detections=100,
        sweep=Sweep(alpha=grid, beta=grid, vlm_temperature=(None,), nms_iou=(None,)),
        processes=processes,
    )


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return the record that --json writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--regions", type=int, default=1000, help="of each image")
    parser.add_argument("--processes", type=int, default=2, help="evaluate.processes")
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), help="what to run")
    parser.add_argument("--json", metavar="FILE", help="write all numbers here, too")
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.device = "cpu"
    set_up_cpu(1)
    if arguments.work:
        print(json.dumps(WORK[arguments.work](arguments.folder, rules(arguments.processes))))
        return {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fvlm-benchmark-") as name:
        folder = Path(name)
        file_bytes = make(folder, arguments.images, arguments.regions)
        print(f"{arguments.images} images of {arguments.regions} regions, {arguments.processes} processes", end="; ")
        print(f"raw detections {file_bytes / 2**30:.2f} GiB (limit {LIMITS['file_bytes'] / 2**30:.0f})", flush=True)
        for work in arguments.only:
            rows += run(work, folder, arguments.processes)
    measure.show(rows, COLUMNS)
    of = {row[""]: row for row in rows}
    exceeded = [file_bytes > LIMITS["file_bytes"]]
    if "protocol" in of:
        exceeded.append(of["protocol"]["s"] > LIMITS["protocol_s"])
        exceeded.append((of["protocol"]["peak GiB"] or 0) * 2**30 > LIMITS["protocol_bytes"])
    if "sweep" in of:
        exceeded.append(of["sweep"]["s"] > LIMITS["sweep_s"])
    print(f"limits: one protocol {LIMITS['protocol_s']} s and 4 GiB, sweep {LIMITS['sweep_s']} s: ", end="")
    print("exceeded" if any(exceeded) else "kept")
    result = {"rows": rows, "file_bytes": file_bytes, "limits": LIMITS, "limit_exceeded": any(exceeded)}
    return measure.finish(arguments, measure.record(arguments, MODULE, argv, **result))


def run(work: str, folder: Path, processes: int) -> list[dict[str, Any]]:
    """The rows of one piece of work, done in a process of its own."""
    command = [sys.executable, "-m", MODULE, "--work", work, "--folder", str(folder), "--processes", str(processes)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak: list[int] = [0]
    watch = threading.Thread(target=_watch, args=(process, peak))
    watch.start()
    printed, _ = process.communicate()
    watch.join()
    if process.returncode:
        sys.exit(f"{work} ended with exit code {process.returncode}")
    rows: list[dict[str, Any]] = json.loads(printed.splitlines()[-1])
    if len(rows) == 1:
        rows[0].update({"s": time.perf_counter() - began, "peak GiB": peak[0] / 2**30 or None})
    return rows


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Most memory of the process and those that it started, in bytes; what they share counts once (Linux's PSS)."""
    while process.poll() is None:
        with contextlib.suppress(OSError):  # a process that has ended, or no Linux
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            peak[0] = max(peak[0], sum(_pss(int(pid)) for pid in (str(process.pid), *children)))
        time.sleep(0.5)


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 0


def _read(folder: Path) -> tuple[RawDetections, dict[str, Any]]:
    coco = read_json(folder / "val.json", "annotations", "")
    splits = {name: build_val_split(coco, name) for name in ("base", "novel", "generalized")}
    return RawDetections.load(folder / "raw.safetensors"), {**splits, "all": build_val_all(coco)}


def _row(name: str, seconds: float | None, cpu_seconds: float, novel: float | None) -> dict[str, Any]:
    return {"": name, "s": seconds, "CPU s": cpu_seconds, "peak GiB": None, "AP50 novel": novel}


def _cpu_seconds() -> float:
    """Of this process and those that it started and that have ended."""
    import resource

    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _protocol(folder: Path, evaluate: Evaluate) -> list[dict[str, Any]]:
    raw, splits = _read(folder)
    cases = [case_of(protocols()["generalized"], splits, evaluate)]
    [scores] = generalized_ap50(raw, splits, cases, evaluate.processes)
    return [_row("protocol", None, _cpu_seconds(), scores["generalized_novel_AP50"])]


def _sweep(folder: Path, evaluate: Evaluate) -> list[dict[str, Any]]:
    raw, splits = _read(folder)
    rows = sweep_fusion(raw, splits, evaluate)
    [own] = [row for row in rows if (row["alpha"], row["beta"]) == (evaluate.alpha, evaluate.beta)]
    return [_row("sweep", None, _cpu_seconds(), own["generalized_novel_AP50"])]


def _mean_ap50(scores: Mapping[str, ClassScore | None]) -> float:
    """AP50 of the novel classes; 0 where a world of few pictures has a box of none."""
    mean = group_mean(scores, novel_names())
    return mean.AP50 if mean else 0.0


def _counting(folder: Path, evaluate: Evaluate) -> list[dict[str, Any]]:
    raw, splits = _read(folder)
    split = splits["generalized"]
    [found] = detect_cases(raw, [case_of(protocols()["generalized"], splits, evaluate)], evaluate.processes)
    del raw
    results = coco_results(found)
    rows = []

    def ours() -> float:
        truth = Truth.of(split)
        scores = class_scores(count(found, truth), truth)
        return _mean_ap50(scores)

    def faster() -> float:
        scores = average_precision(results, split)
        return _mean_ap50(scores)

    def plain() -> float:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = split
            truth.createIndex()
            evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
            evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
            evaluator.params.maxDets = [100]
            evaluator.evaluate()
            evaluator.accumulate()
        names = [category["name"] for category in sorted(split["categories"], key=lambda c: c["id"])]
        precision = evaluator.eval["precision"][0, :, [name in novel_names() for name in names], 0, 0]
        return float(100 * precision[precision > -1].mean())  # -1: a class without a box

    for name, work in (("counting, fvlm", ours), ("faster-coco-eval", faster), ("pycocotools", plain)):
        began, began_cpu = time.perf_counter(), time.process_time()
        novel = work()
        rows.append(_row(name, time.perf_counter() - began, time.process_time() - began_cpu, novel))
    return rows


WORK = {"protocol": _protocol, "sweep": _sweep, "counting": _counting}


def make(folder: Path, images: int, regions: int) -> int:
    """Write val.json and raw.safetensors; returns the latter's bytes.

    The file is filled picture by picture, since it would not fit into a small machine's memory twice.
    """
    rng = np.random.default_rng(0)
    names = ["background", *(name for _, name in categories())]
    scored = [category_id for category_id, name in categories() if name in base_names() + novel_names()]
    column_of = {category_id: column for column, (category_id, _) in enumerate(categories(), start=1)}
    known = np.array([0.0, *(0.25 if name in base_names() else 0.02 for name in names[1:])])
    total = images * regions
    shapes = {
        "image_ids": (images,),
        "image_sizes_hw": (images, 2),
        "offsets": (images + 1,),
        "proposals": (total, 4),
        "proposal_scores": (total,),
        "boxes": (total, 4),
        "detector_similarity": (total, len(names)),
        "vlm_similarity": (total, len(names)),
    }
    metadata = {
        "names": names,
        "category_ids": [category_id for category_id, _ in categories()],
        "detector_temperature": 0.01,
        "vlm_temperature": 0.01,
        "supervised": base_names(),
        "setting": "zsd",
        "model_sha256": "0" * 64,
    }
    tensors = _empty_file(folder / "raw.safetensors", shapes, metadata)
    tensors["image_ids"][:] = np.arange(1, images + 1)
    tensors["image_sizes_hw"][:] = SIDE_HW
    tensors["offsets"][:] = np.arange(images + 1) * regions
    annotations: list[dict[str, Any]] = []
    for index in range(images):
        objects = rng.poisson(OBJECTS)
        category_ids = rng.choice(scored, size=objects, p=_frequencies(len(scored)))
        sides = np.exp(rng.uniform(np.log(20), np.log(300), (objects, 2)))
        corners = rng.uniform(0, 1, (objects, 2)) * np.maximum([SIDE_HW[1], SIDE_HW[0]] - sides, 1)
        for category_id, corner, side in zip(category_ids.tolist(), corners, sides, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": category_id,
                    "bbox": [*corner.round(2).tolist(), *side.round(2).tolist()],
                    "area": float(side[0] * side[1]),
                    "iscrowd": int(rng.random() < 0.012),
                }
            )
        rows = slice(index * regions, (index + 1) * regions)
        similarity = rng.standard_normal((2, regions, len(names)), dtype=np.float32) * 0.025 + 0.15
        centres = rng.uniform(0, 1, (regions, 2)) * [SIDE_HW[1], SIDE_HW[0]]
        spans = np.exp(rng.uniform(np.log(16), np.log(300), (regions, 2)))
        similarity[0, :, 0] += 0.2
        if objects:
            near = np.flatnonzero(rng.random(regions) < 0.6)  # proposals come in heaps on objects
            of = rng.integers(objects, size=len(near))
            off = rng.normal(0, 1, (len(near), 4)) * rng.exponential(0.12, (len(near), 1))
            centres[near] = corners[of] + sides[of] * (0.5 + off[:, :2])
            spans[near] = sides[of] * np.exp(off[:, 2:])
            quality = np.exp(-3 * np.abs(off).mean(axis=1))
            columns = np.array([column_of[category_id] for category_id in category_ids.tolist()])[of]
            similarity[0, near, columns] += (0.05 + known[columns]) * quality
            similarity[0, near, 0] -= 0.15 * quality
            similarity[1, near, columns] += 0.09 * quality
        limit = np.array([SIDE_HW[1], SIDE_HW[0]] * 2)
        boxes = np.concatenate([centres - spans / 2, centres + spans / 2], axis=1).clip(0, limit)
        tensors["boxes"][rows] = boxes
        tensors["proposals"][rows] = (boxes + rng.normal(0, 2, boxes.shape)).clip(0, limit)
        tensors["proposal_scores"][rows] = np.sort(rng.random(regions))[::-1]
        tensors["detector_similarity"][rows], tensors["vlm_similarity"][rows] = similarity
    sizes = {"width": SIDE_HW[1], "height": SIDE_HW[0]}
    records = [{"id": i + 1, "file_name": f"{i + 1}.jpg", **sizes} for i in range(images)]
    write_json(folder / "val.json", {"images": records, "annotations": annotations, "categories": category_records()})
    return (folder / "raw.safetensors").stat().st_size


def _frequencies(classes: int) -> np.ndarray:
    """Long-tailed, as COCO's: the first class has a quarter of all boxes."""
    weights = 1 / np.arange(1, classes + 1)
    return weights / weights.sum()


def _empty_file(path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, Any]) -> dict[str, np.memmap]:
    """A safetensors file full of zeros, and its tensors as arrays that write into it."""
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: json.dumps(metadata, sort_keys=True)}}
    end = 0
    for name in sorted(shapes, key=lambda name: -TENSOR_DTYPES[name].itemsize):  # aligned: the widest numbers first
        dtype, size = TENSOR_DTYPES[name], int(np.prod(shapes[name]))
        begin, end = end, end + size * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_DTYPE[dtype], "shape": shapes[name], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    arrays = {}
    for name, shape in shapes.items():
        number = np.dtype(str(TENSOR_DTYPES[name]).removeprefix("torch."))
        offset = 8 + len(text) + header[name]["data_offsets"][0]
        arrays[name] = np.memmap(path, dtype=number, mode="r+", offset=offset, shape=shape)
    return arrays


if __name__ == "__main__":
    sys.exit(int(main(sys.argv[1:]).get("limit_exceeded", False)))

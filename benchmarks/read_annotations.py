"""How long, and with how much memory, the stage `splits` reads COCO's largest annotation file.

    python benchmarks/read_annotations.py [--json result.json] [--setting zsd] [--repeat 3]

Makes a file of the size and structure of instances_train2017.json (469,785,474 bytes, 118,287 images, 860,001
annotations with their segmentations, 10,052 of them crowds), since the real one may not be at hand, and runs
`python -m fvlm splits` on it in a process of its own. Exit code 1 where a limit is passed: 60 s, 4 GiB.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from fvlm.data.coco import category_records
from fvlm.io import sha256_of_file, write_json
from fvlm.params import read_tree

ROOT = Path(__file__).resolve().parents[1]
FILE_BYTES = 469_785_474
IMAGES, ANNOTATIONS, CROWDS = 118_287, 860_001, 10_052
LIMIT_S, LIMIT_BYTES = 60, 4 << 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the result to this file, too")
    parser.add_argument("--setting", default="zsd", choices=["zsd", "ovod", "zsd_strict"])
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the median time counts (default: 3)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fvlm-benchmark-") as folder:
        size = prepare(Path(folder), arguments.setting)
        runs = [run(Path(folder), arguments.setting) for _ in range(arguments.repeat)]
    seconds, cpu_seconds = (sorted(values)[len(runs) // 2] for values in list(zip(*runs, strict=True))[:2])
    peak_bytes = max(peak for _, _, peak in runs)
    result = {
        "benchmark": "read_annotations",
        "setting": arguments.setting,
        "file_bytes": size,
        "images": IMAGES,
        "annotations": ANNOTATIONS,
        "seconds": round(seconds, 2),
        "seconds_of_runs": [round(s, 2) for s, _, _ in runs],
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_rss_bytes": peak_bytes,
        "limits": {"seconds": LIMIT_S, "peak_rss_bytes": LIMIT_BYTES},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    print(f"file       {size / 1e6:8.1f} MB, {IMAGES:,} images, {ANNOTATIONS:,} annotations")
    print(f"time       {seconds:8.1f} s   median of {len(runs)}; limit {LIMIT_S} s")
    print(f"CPU time   {cpu_seconds:8.1f} s   median; below the time above where others use the machine, too")
    print(f"peak RSS   {peak_bytes / 2**30:8.2f} GiB limit {LIMIT_BYTES / 2**30:.0f} GiB")
    if arguments.json:
        write_json(arguments.json, result)
    return int(seconds > LIMIT_S or peak_bytes > LIMIT_BYTES)


def prepare(folder: Path, setting: str) -> int:
    """Fill `folder` with what `splits` reads: annotations, manifest, params. Returns the annotation file's bytes."""
    tree = read_tree(ROOT / "recipes" / "coco_folder.yaml")
    tree["settings"], tree["report"]["setting"] = [setting], setting
    tree["data"]["root"] = str(folder)
    tree["data"]["val_images"], tree["data"]["val_annotations"] = (
        tree["data"]["train_images"],
        tree["data"]["train_annotations"],
    )
    (folder / "params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    file = folder / tree["data"]["train_annotations"]
    file.parent.mkdir()
    write_instances(file)
    part = {
        "images": tree["data"]["train_images"],
        "annotations": tree["data"]["train_annotations"],
        "annotations_sha256": sha256_of_file(file),
    }
    manifest = folder / "data" / "coco_folder" / "manifest.json"
    write_json(manifest, {"dataset": "coco_folder", "emoji": None, "train": part, "val": part})
    return file.stat().st_size


def write_instances(file: Path) -> None:
    """Write the file record by record, as COCO's is laid out; its records are of our own making, from a fixed seed."""
    draw = random.Random(0)
    category_ids = [record["id"] for record in category_records()]
    with open(file, "w", encoding="utf-8") as out:
        out.write('{"info": {"description": "of the size and structure of COCO 2017"},"licenses": [],"images": [')
        out.write(",".join(_image(i, draw) for i in range(IMAGES)))
        out.write('],"annotations": [')
        tail = '],"categories": ' + json.dumps(category_records()) + "}"
        room = 0.0
        for i in range(ANNOTATIONS):
            if (
                i % 1000 == 0
            ):  # what is left of the size decides how long outlines are, so that the file comes out right
                room = (FILE_BYTES - len(tail) - out.tell()) / (ANNOTATIONS - i)
            out.write(("," if i else "") + _annotation(i, room, draw.choice(category_ids), draw))
        out.write(tail)


def _image(i: int, draw: random.Random) -> str:
    name = f"{4 * i + 9:012d}.jpg"
    return (
        f'{{"license": {draw.randint(1, 8)},"file_name": "{name}",'
        f'"coco_url": "http://images.cocodataset.org/train2017/{name}","height": {draw.randint(240, 640)},'
        f'"width": {draw.randint(240, 640)},"date_captured": "2013-11-14 11:18:45",'
        f'"flickr_url": "http://farm9.staticflickr.com/8186/{draw.randint(10**9, 10**10 - 1)}_24eb0a40f5_z.jpg",'
        f'"id": {4 * i + 9}}}'
    )


def _annotation(i: int, room: float, category_id: int, draw: random.Random) -> str:
    crowd = int(i % (ANNOTATIONS // CROWDS) == 0 and i // (ANNOTATIONS // CROWDS) < CROWDS)
    x, y, width, height = (round(draw.uniform(1, 200), 2) for _ in range(4))
    box = (
        f'"area": {width * height:.4f},"iscrowd": {crowd},"image_id": {4 * (i % IMAGES) + 9},'
        f'"bbox": [{x},{y},{width},{height}],"category_id": {category_id},"id": {i + 1}}}'
    )
    # outlines differ in length from a handful of numbers to hundreds: the shape of an exponential distribution
    numbers = max(6, 2 * int(draw.expovariate(2 / max(room - len(box) - 22, 1)) / 7 + 0.5))
    if crowd:
        counts = ",".join(str(draw.randint(1, 900)) for _ in range(numbers))
        return f'{{"segmentation": {{"counts": [{counts}],"size": [480,640]}},{box}'
    outline = ",".join(f"{draw.random() * 540 + 100:.2f}" for _ in range(numbers))
    return f'{{"segmentation": [[{outline}]],{box}'


def run(folder: Path, setting: str) -> tuple[float, float, int]:
    """Run the stage in a process of its own. Returns (seconds, CPU seconds, peak RSS in bytes)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "fvlm", "splits", "--setting", setting], cwd=folder, env=environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"`fvlm splits` ended with exit code {process.returncode}")
    unit: Any = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit


if __name__ == "__main__":
    sys.exit(main())

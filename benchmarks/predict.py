"""Prediction from picture files to boxes: pictures a second by batch size, where the time goes, and the VLM pool.

    python -m benchmarks.predict --image-size 640 --batches 1 4 8 --repeats 3 --json predict.json
    python -m benchmarks.predict --image-size 192 --model runs/zsd

Without --model it is a RN50 with random weights and the paper's head. The second table is `benchmarks.pooling`: the
attention pool on the map of the picture, against its plain form over crops, for each tower with its own grid.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import nn

import fvlm.detector.detector as parts
import fvlm.predict.detector as prediction
from fvlm.params import load_params
from fvlm.predict.detections import decide
from fvlm.predict.detector import Detector, load_detector
from fvlm.predict.folder import ModelRecord
from fvlm.vlm.clip import VlmCard, real_tower_config

from . import measure, pooling
from .contestants import RECIPE, Sizes, build_ours

MODULE = "benchmarks.predict"
PHASES = ("picture", "tower", "detector", "VLM branch", "post-processing", "the rest")
COLUMNS = {"batch": "", "images/s": ".2f", "ms/image": ".1f", "CPU ms/image": ".1f"} | dict.fromkeys(PHASES, ".1%")


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return the record that --json writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    measure.common_arguments(parser)
    parser.add_argument("--model", help="a model folder; without, a RN50 with random weights")
    parser.add_argument("--image-size", type=int, default=640, help="longest side of the pictures (and of the canvas)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="batch sizes")
    parser.add_argument("--names", type=int, default=65, help="that are looked for")
    parser.add_argument("--proposals", type=int, default=1000, help="of a picture; a model folder has its own")
    parser.add_argument("--plain-regions", type=int, default=20, help="for the plain form of the pool")
    parser.add_argument("--no-pool", action="store_true", help="leave the second table out")
    parser.add_argument("--quick", action="store_true", help="tiny sizes that prove nothing: the smoke test")
    arguments = parser.parse_args(argv)
    device = measure.set_up(arguments)
    detector = _random(arguments) if arguments.model is None else _loaded(arguments)
    names = [f"thing {number}" for number in range(arguments.names)]
    detector.embed(names) if arguments.model else None
    with tempfile.TemporaryDirectory() as folder:
        files = _pictures(Path(folder), arguments.image_size, max(arguments.batches))
        rows = _rows(detector, files, names, arguments, device)
    print(f"{device}, {torch.get_num_threads()} threads, {arguments.precision}, ", end="")
    print(f"{detector.network.model.image_size} px, {detector.network.model.rpn_post_nms_top_n} proposals, ", end="")
    print(f"{arguments.names} names, medians of {arguments.repeats}; shares without reading ahead")
    measure.show(rows, COLUMNS)
    pool = [] if arguments.no_pool else _pool(arguments)
    return measure.finish(arguments, measure.record(arguments, MODULE, argv, rows=rows, pool=pool))


def _rows(
    detector: Detector, files: Sequence[str], names: Sequence[str], arguments: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    def predict(batch: int) -> None:
        detector.predict(files[:batch], names, batch_size=batch)

    for batch in arguments.batches:
        predict(batch)
    laps = measure.interleaved(
        {str(batch): functools.partial(predict, batch) for batch in arguments.batches}, arguments.repeats, device
    )
    rows = []
    for batch in arguments.batches:
        seconds = statistics.median(lap.seconds for lap in laps[str(batch)])
        cpu_seconds = statistics.median(lap.cpu_seconds for lap in laps[str(batch)])
        row = {"batch": batch, "images/s": batch / seconds, "ms/image": 1e3 * seconds / batch}
        rows.append(row | {"CPU ms/image": 1e3 * cpu_seconds / batch} | _shares(detector, files[:batch], names, device))
    return rows


def _shares(detector: Detector, files: Sequence[str], names: Sequence[str], device: torch.device) -> dict[str, float]:
    """Of the time of one batch, by phase; what is in no other phase (cosines, copies) is `the rest`."""
    network, watch = detector.network, measure.Stopwatch(device)
    phases: dict[str, list[tuple[Any, str]]] = {
        "picture": [(prediction, "as_pixels"), (prediction, "fit"), (prediction, "render")],
        "tower": [(network.tower, "forward")],
        "detector": [
            (network.fpn, "forward"),
            (network.rpn, "forward"),
            (parts, "propose"),
            (parts, "anchors_on"),
            (parts, "pool_pyramid"),
            (network.box_head, "forward"),
        ],
        "VLM branch": [(parts, "pool_regions")],
    }
    with watch.timing(phases), watch.phase("the rest"):
        raw = detector.raw(files, names, batch_size=len(files))  # one thread, so that phases do not overlap
        with watch.phase("post-processing"):
            decide(raw, detector.evaluate)
    total = sum(watch.seconds.values())
    return {name: watch.seconds.get(name, 0.0) / total for name in PHASES}


def _loaded(arguments: argparse.Namespace) -> Detector:
    return load_detector(arguments.model, device=arguments.device, precision=arguments.precision)


def _random(arguments: argparse.Namespace) -> Detector:
    """A RN50 with random weights; its words have random embeddings, so that nothing but pictures is computed."""
    sizes = Sizes(
        image_size=arguments.image_size,
        batch=1,
        rois=1,
        proposals=arguments.proposals,
        classes=arguments.names,
        boxes=1,
        device=torch.device(arguments.device),
        precision=measure.PRECISIONS[arguments.precision],
        channels_last=False,
        torchvision_channels_last=False,
        miniature=arguments.quick,
    )
    network, embed_dim = build_ours(sizes)
    names = tuple(f"thing {number}" for number in range(arguments.names))
    card = VlmCard(
        architecture="RN50-quickgelu",
        weights="random",
        model_config=real_tower_config("RN50-quickgelu"),
        image_mean=open_clip.OPENAI_DATASET_MEAN,
        image_std=open_clip.OPENAI_DATASET_STD,
        logit_scale=100.0,
        grid=network.grid,
        weights_sha256="",
        pretraining=None,
        provenance={},
    )
    record = ModelRecord(
        setting="zsd",
        supervised=(),
        model_sha256="",
        text_sha256="",
        names=("background", *names),
        category_ids=tuple(range(1, 1 + len(names))),
        templates=("{}",),
        tokenizer={},
        evaluate=dataclasses.replace(load_params(RECIPE).evaluate, score_threshold=0.0),
        provenance={},
    )
    text = torch.randn(1 + len(names), embed_dim, generator=torch.Generator().manual_seed(2))
    return Detector(network, nn.Identity(), text, card, record, device=sizes.device, precision=arguments.precision)


def _pictures(folder: Path, side: int, count: int) -> list[str]:
    """JPEGs of 4 to 3, of smooth noise, which decoders take as long for as for photographs."""
    files = []
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (side // 16, side * 4 // 3 // 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        files.append(str(folder / f"{number}.jpg"))
        picture.save(files[-1], quality=90)
    return files


def _pool(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    argv = ["--device", arguments.device, "--threads", str(arguments.threads), "--precision", arguments.precision]
    argv += ["--repeats", str(arguments.repeats), "--plain-regions", str(arguments.plain_regions)]
    argv += ["--quick", "--image-size", "128", "--regions", "6"] if arguments.quick else []
    return list(pooling.main(argv)["rows"])


if __name__ == "__main__":
    main(sys.argv[1:])

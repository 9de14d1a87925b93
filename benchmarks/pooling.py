"""The VLM branch's pool of region embeddings, as fvlm computes it against its definition, for the four towers' sizes.

    python -m benchmarks.pooling --regions 1000 --plain-regions 50 --json pooling.json

The definition aligns crops and runs open_clip's attention pool on them (`pool_crops`). fvlm computes the same on the
map of the image (`pool_regions`). A RN50x64 needs 13 TFLOP an image for the former, so it is given fewer regions, and
both are compared by the time of one region.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch
from open_clip.modified_resnet import AttentionPool2d

from fvlm.vlm.clip import C5_STRIDE, REAL_TOWERS, real_tower_config
from fvlm.vlm.pooling import pool_crops, pool_regions

from . import measure

MODULE = "benchmarks.pooling"
COLUMNS = {
    "tower": "",
    "grid": "",
    "channels": "",
    "heads": "",
    "s": ".3f",
    "ms/region": ".3f",
    "plain ms/region": ".3f",
    "times ours": ".1f",
    "CPU times ours": ".1f",
    "largest difference": ".1e",
}


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return the record that --json writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    measure.common_arguments(parser)
    parser.add_argument("--towers", nargs="+", choices=REAL_TOWERS, default=REAL_TOWERS)
    parser.add_argument("--image-size", type=int, default=1024, help="pixels per side, a multiple of 32")
    parser.add_argument("--regions", type=int, default=1000, help="of the one image")
    parser.add_argument("--plain-regions", type=int, default=50, help="of these, for the plain form")
    parser.add_argument("--quick", action="store_true", help="tiny sizes that prove nothing: the smoke test")
    arguments = parser.parse_args(argv)
    device = measure.set_up(arguments)
    rows = [_row(name, arguments, device) for name in arguments.towers]
    print(f"{device}, {torch.get_num_threads()} threads, {arguments.precision}, {arguments.image_size} px, ", end="")
    print(f"{arguments.regions} regions ({arguments.plain_regions} for the plain form), medians of {arguments.repeats}")
    measure.show(rows, COLUMNS)
    return measure.finish(arguments, measure.record(arguments, MODULE, argv, rows=rows))


@torch.no_grad()
def _row(name: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    config = real_tower_config(name)
    vision = config["vision_cfg"]
    channels, grid, size = vision["width"] * 32, vision["image_size"] // C5_STRIDE, arguments.image_size
    heads = channels // 64  # 64 channels a head in every tower, as in open_clip's `_build_vision_tower`
    if arguments.quick:
        channels //= 32
    attnpool = AttentionPool2d(grid, channels, heads, config["embed_dim"]).to(device)
    features = torch.randn(1, channels, size // C5_STRIDE, size // C5_STRIDE, device=device).relu()
    sides = size * (1 / 32 + 31 / 32 * torch.rand(arguments.regions, 2, device=device))
    corner = (size - sides) * torch.rand(arguments.regions, 2, device=device)
    boxes = torch.cat([corner, corner + sides], dim=1)
    few = boxes[: arguments.plain_regions]
    place: dict[str, int] = {"grid": grid, "stride": C5_STRIDE}

    difference = pool_regions(attnpool, features, [few], **place) - pool_crops(attnpool, features, [few], **place)
    precision = measure.PRECISIONS[arguments.precision]

    def plain() -> torch.Tensor:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return pool_crops(attnpool, features, [few], **place)

    def ours() -> torch.Tensor:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return pool_regions(attnpool, features, [boxes], **place)

    ours()
    laps = measure.interleaved({"ours": ours, "plain": plain}, arguments.repeats, device)
    pairs = list(zip(laps["ours"], laps["plain"], strict=True))
    seconds = statistics.median(lap.seconds for lap in laps["ours"])
    per_region = len(few) / len(boxes)  # what makes a ratio of the two one of equal numbers of regions
    return {
        "tower": name,
        "grid": grid,
        "channels": channels,
        "heads": heads,
        "s": seconds,
        "ms/region": 1e3 * seconds / len(boxes),
        "plain ms/region": 1e3 * statistics.median(lap.seconds for lap in laps["plain"]) / len(few),
        "times ours": statistics.median(p.seconds / o.seconds for o, p in pairs) / per_region,
        "CPU times ours": statistics.median(p.cpu_seconds / o.cpu_seconds for o, p in pairs) / per_region,
        "largest difference": difference.abs().max().item(),
    }


if __name__ == "__main__":
    main(sys.argv[1:])

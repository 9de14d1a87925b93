"""Inference of a batch, the VLM branch on 1,000 proposals included, against torchvision's `fasterrcnn_resnet50_fpn_v2`.

    python -m benchmarks.inference --image-size 640 --batch 1 --repeats 5 --profile --json inference.json

What must hold, as medians of one run: at most 1.3 times torchvision's time. Ours ends with both branches' similarities
and the refined boxes (scores and their suppression belong to `evaluate`); torchvision's ends with its detections, of
which random weights give next to none.
"""

import sys
from collections.abc import Sequence
from typing import Any, cast

import fvlm.detector.detector as parts
from fvlm.detector.detector import FVLM

from . import duel
from .contestants import OURS, Contestant, inference
from .measure import Stopwatch

MODULE = "benchmarks.inference"


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return the record that --json writes."""
    arguments, sizes = duel.parse(__doc__.splitlines()[0], argv)
    return duel.compare(MODULE, argv, arguments, sizes, (OURS, "torchvision, frozen"), inference, _profile)


def _profile(contestant: Contestant, watch: Stopwatch) -> None:
    """One inference, its phases on `watch`: what is in no other phase is `the rest`."""
    detector = cast(FVLM, contestant.model)
    phases: dict[str, list[tuple[Any, str]]] = {
        "tower": [(detector.tower, "forward")],
        "FPN": [(detector.fpn, "forward")],
        "RPN": [(detector.rpn, "forward")],
        "proposals": [(parts, "propose"), (parts, "anchors_on")],
        "RoIAlign": [(parts, "pool_pyramid")],
        "box head": [(detector.box_head, "forward")],
        "VLM pool": [(parts, "pool_regions")],
    }
    with watch.timing(phases), watch.phase("the rest"):
        contestant.run()


if __name__ == "__main__":
    main(sys.argv[1:])

"""One training step: ours against torchvision's `fasterrcnn_resnet50_fpn_v2`, trained and with a frozen backbone.

    python -m benchmarks.train_step --image-size 640 --batch 2 --repeats 5 --profile --json train_step.json

What must hold, as medians of one run: at least 1.35 times the images/s of torchvision's with three trained stages and
1.0 times those of its frozen one ("times ours" of the two), at most 60% of the former's peak memory at 1024 px.
"""

import sys
from collections.abc import Sequence
from typing import Any, cast

import torch

import fvlm.detector.detector as parts
from fvlm.detector.detector import FVLM

from . import duel
from .contestants import OURS, TRAINABLE_STAGES, Contestant, training
from .measure import Stopwatch

MODULE = "benchmarks.train_step"


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return the record that --json writes."""
    arguments, sizes = duel.parse(__doc__.splitlines()[0], argv)
    names = (OURS, *TRAINABLE_STAGES)
    return duel.compare(MODULE, argv, arguments, sizes, names, training, _profile)


def _profile(contestant: Contestant, watch: Stopwatch) -> None:
    """One step, its phases on `watch`: what is in no other phase is `the rest`."""
    detector = cast(FVLM, contestant.model)
    phases: dict[str, list[tuple[Any, str]]] = {
        "tower": [(detector.tower, "forward")],
        "FPN": [(detector.fpn, "forward")],
        "RPN": [(detector.rpn, "forward")],
        "proposals": [(parts, "propose"), (parts, "anchors_on")],
        "targets": [(parts, "assign_anchors"), (parts, "sample_regions")],
        "RoIAlign": [(parts, "pool_pyramid")],
        "box head": [(detector.box_head, "forward")],
        "losses": [(parts, name) for name in ("rpn_score_sum", "rpn_box_sums", "class_sum", "box_sum", "cosine")],
        "backward": [(torch.Tensor, "backward")],
        "optimiser": [(torch.optim.SGD, "step")],
    }
    with watch.timing(phases), watch.phase("the rest"):
        contestant.run()


if __name__ == "__main__":
    main(sys.argv[1:])

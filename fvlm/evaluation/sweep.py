"""The fusion weights on a grid, from raw detections alone.

The grid is scored on validation boxes, novel ones included: choosing alpha and beta by it is tuning on the test set.
The headline is the pair declared in params; the sweep is reported beside it.
"""

from collections.abc import Iterator
from dataclasses import replace

from ..data.coco import CocoDict
from ..params import Evaluate
from .ap import average_precision, group_mean
from .protocols import detections_of, protocols
from .raw import RawDetections

COLUMNS = ("alpha", "beta", "generalized_base_AP50", "generalized_novel_AP50", "generalized_all_AP50")


def sweep_fusion(raw: RawDetections, coco: CocoDict, evaluate: Evaluate) -> Iterator[dict[str, float | None]]:
    """Score every pair of `evaluate.sweep` under the generalized protocol.

    Args:
        raw: raw detections.
        coco: the generalized validation split.
        evaluate: the grid, and all that is held fixed.

    Yields:
        Rows of `COLUMNS`, alpha in the outer loop; AP50 in percent, None for a group without ground truth.
    """
    generalized = protocols()["generalized"]
    image_ids = [image["id"] for image in coco["images"]]
    unsupervised = set(generalized.names) - set(raw.supervised)
    of_alpha: dict[float, dict[str, float | None]] = {}
    for alpha in evaluate.sweep.alpha:
        for beta in evaluate.sweep.beta:
            # where every class was supervised (ovod), beta weighs nothing
            if unsupervised or alpha not in of_alpha:
                detections = detections_of(raw, generalized.names, image_ids, replace(evaluate, alpha=alpha, beta=beta))
                scores = average_precision(detections, coco, iou_thresholds=(0.5,))
                means = {group: group_mean(scores, names) for group, names in generalized.groups.items()}
                of_alpha[alpha] = {f"{group}_AP50": mean and round(mean.AP50, 4) for group, mean in means.items()}
            yield {"alpha": alpha, "beta": beta, **of_alpha[alpha]}

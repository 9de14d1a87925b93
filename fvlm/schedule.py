"""The learning rate as a pure function of the step."""

import math
from collections.abc import Sequence
from typing import Literal


def learning_rate(
    done: int,
    *,
    steps: int,
    peak: float,
    warmup_steps: int,
    warmup_start: float,
    schedule: Literal["step", "cosine"],
    milestones: Sequence[float] = (),
    gamma: float = 1.0,
) -> float:
    """The learning rate of a step before which `done` were done: 0 for the first, which losses.csv calls step 1.

    It rises linearly from warmup_start * peak at 0 to `peak` at `warmup_steps`. Schedule `step` multiplies by `gamma`
    as soon as a fraction `milestone` of `steps` is done, once for each. Schedule `cosine` falls from the end of warm-up
    to 0 at `steps`, one beyond the last step.

    Source: F-VLM's released configs (linear warm-up; x0.1 at 0.8, 0.9 and 0.95 of the iterations). Departure: `cosine`
    is ours, for short runs.
    """
    if done < warmup_steps:
        peak *= warmup_start + (1 - warmup_start) * done / warmup_steps
    if schedule == "step":
        # 0.55 * 100 is 55.00000000000001: without the tolerance that decay would come a step late
        passed = sum(done >= milestone * steps - 1e-6 for milestone in milestones)
        return peak * gamma**passed
    progress = max(done - warmup_steps, 0) / max(steps - warmup_steps, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))

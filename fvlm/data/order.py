"""Which picture is seen at which step, and with which random numbers: pure functions of the seed.

Nothing here keeps a state, so a run that was killed goes on with exactly the pictures, crops and flips that it would
have seen, and the number of loader workers changes nothing.
"""

import functools
import hashlib

import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that is a hash of `parts`: neighbouring parts (step 7, step 8) give unrelated random numbers."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_of(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `seed_of(*parts)`."""
    return torch.Generator().manual_seed(seed_of(*parts))


@functools.lru_cache(maxsize=2)  # a step touches one epoch, or two at the seam
def epoch_order(seed: int, epoch: int, image_count: int) -> Tensor:
    """(image_count,) int64: the order in which `epoch` (counted from 0) goes through the pictures."""
    return torch.randperm(image_count, generator=generator_of(seed, "order", epoch))


def samples_of_step(step: int, *, image_count: int, batch_size: int, seed: int) -> list[tuple[int, int]]:
    """The `batch_size` samples (epoch, picture index) of `step`, which counts from 1.

    Epochs follow each other without a gap: each shows every picture once, and a batch may hold the end of one and the
    start of the next, so that no picture is left out and every batch is full.
    """
    first = (step - 1) * batch_size
    samples = []
    for position in range(first, first + batch_size):
        epoch, place = divmod(position, image_count)
        samples.append((epoch, int(epoch_order(seed, epoch, image_count)[place])))
    return samples

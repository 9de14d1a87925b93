"""Kept pictures: under their own keys, within bytes and time."""

import pytest
import torch

from fvlm.demo.store import GoneError, Store
from fvlm.predict.detector import Seen


def seen(regions: int = 10) -> Seen:
    return Seen(
        proposals=torch.zeros(regions, 4),
        proposal_scores=torch.zeros(regions),
        boxes=torch.zeros(regions, 4),
        detector=torch.zeros(regions, 8),
        vlm=torch.zeros(regions, 8),
        size_hw=(4, 4),
    )


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def gone(store: Store, key: str) -> bool:
    try:
        store.get(key)
    except GoneError:
        return True
    return False


def test_a_key_gives_its_own_picture_and_no_other_key_gives_any():
    store, first, second = Store(most_bytes=10_000, seconds=60), seen(), seen()
    keys = store.add(first), store.add(second)
    assert [store.get(key)[0] for key in keys] == [first, second]
    assert len(keys[0]) >= 22, "128 random bits"
    with pytest.raises(GoneError, match="choose it again"):
        store.get("")


def test_what_was_not_used_for_longest_goes_first_and_the_newest_stays_however_large():
    assert seen().bytes == 10 * (4 + 1 + 4 + 8 + 8) * 4
    store = Store(most_bytes=2500, seconds=60)
    first, second = store.add(seen()), store.add(seen())
    store.get(first)
    third = store.add(seen())
    assert [gone(store, key) for key in (first, second, third)] == [False, True, False]
    large = store.add(seen(1000))
    assert [gone(store, key) for key in (first, third, large)] == [True, True, False]
    assert len(store) == 1


def test_a_picture_goes_after_its_time_without_use():
    clock = Clock()
    store = Store(most_bytes=10_000, seconds=60, clock=clock)
    used, idle = store.add(seen()), store.add(seen())
    clock.now = 50
    store.get(used)
    clock.now = 100
    assert [gone(store, key) for key in (used, idle)] == [False, True]

from typing import Any

import pytest

from fvlm.schedule import learning_rate


def rates(steps, **changes):
    settings: dict[str, Any] = {"peak": 1.0, "warmup_steps": 0, "warmup_start": 0.0, "schedule": "step", **changes}
    return [learning_rate(done, steps=steps, **settings) for done in range(steps)]


def test_warm_up_rises_linearly_from_its_start_and_reaches_the_peak_after_its_steps():
    assert rates(6, peak=2.0, warmup_steps=4, warmup_start=0.2) == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])


def test_the_published_coco_recipe():
    recipe: dict[str, Any] = {
        "steps": 11250,
        "peak": 0.02,
        "warmup_steps": 1000,
        "warmup_start": 0.16,
        "schedule": "step",
        "milestones": (0.9, 0.95, 0.975),
        "gamma": 0.1,
    }
    expected = {0: 0.0032, 500: 0.0116, 1000: 0.02, 10124: 0.02, 10125: 2e-3, 10687: 2e-3, 10688: 2e-4, 10969: 2e-5}
    for done, rate in expected.items():
        assert learning_rate(done, **recipe) == pytest.approx(rate), done


def test_a_milestone_whose_product_is_rounded_up_does_not_come_late():
    assert 0.55 * 100 > 55
    assert rates(100, milestones=(0.55,), gamma=0.5)[54:56] == [1.0, 0.5]


def test_cosine_falls_from_the_end_of_warm_up_to_zero_one_beyond_the_last_step():
    falling = rates(6, schedule="cosine", warmup_steps=2, warmup_start=0.5)
    assert falling == pytest.approx([0.5, 0.75, 1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert learning_rate(6, steps=6, peak=1.0, warmup_steps=2, warmup_start=0.5, schedule="cosine") == pytest.approx(0)


def test_cosine_ignores_milestones():
    assert rates(5, schedule="cosine", milestones=(0.2,), gamma=0.1) == rates(5, schedule="cosine")


def test_a_run_shorter_than_its_warm_up_is_warm_up_only():
    assert rates(2, schedule="cosine", warmup_steps=4, warmup_start=0.0) == [0.0, 0.25]

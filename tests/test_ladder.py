"""Which numbers each rung calls ok, suspicious or failed, and when it says that it cannot tell."""

import dataclasses

import pytest
import torch

from fvlm.evaluation import ladder
from fvlm.evaluation.regions import VARIANTS, BoxClasses
from fvlm.vlm.clip import VlmCard

BASE, NOVEL = range(48), range(48, 65)
CARD = VlmCard(
    architecture="RN50-quickgelu",
    weights="openai",
    model_config={},
    image_mean=(0.5,) * 3,
    image_std=(0.5,) * 3,
    logit_scale=100.0,
    grid=7,
    weights_sha256="0" * 64,
    pretraining=None,
    provenance={},
)


def named(base: float, novel: float, *, boxes: int = 10, **by_variant: float) -> BoxClasses:
    """Every class has `boxes` boxes, of which these shares are named rightly; `by_variant` overrides both groups."""
    truths = torch.arange(65).repeat_interleave(boxes)
    place = torch.arange(boxes).repeat(65) / boxes

    def guesses(variant: str) -> torch.Tensor:
        share = torch.where(truths < 48, by_variant.get(variant, base), by_variant.get(variant, novel))
        return torch.where(place < share - 1e-6, truths, (truths + 1) % 65)

    return BoxClasses(truths=truths, guesses={variant: guesses(variant) for variant in VARIANTS})


@pytest.mark.parametrize(
    ("boxes", "verdict", "words"),
    [
        (named(0.8, 0.7), "ok", ""),
        (named(0.8, 0.0), "failed", "rung text"),
        (named(0.0, 0.8), "failed", "rung text"),
        (named(0.1, 0.1), "suspicious", "model.image_size"),
        (named(0.8, 0.3), "suspicious", "names of the novel classes"),
        (named(0.5, 0.5, up=0.8), "suspicious", "moved up, crops are named better"),
        (named(0.5, 0.5, half_a_cell_up_left=0.7), "suspicious", "moved half a cell up left, crops are named better"),
        (named(0.8, 0.8, left=0.4), "suspicious", "moved left by a tenth"),
        (named(0.8, 0.8, half_a_cell_down_right=0.2), "ok", ""),  # half a cell is much for the miniature
    ],
)
def test_the_vlm_on_ground_truth_boxes(boxes, verdict, words):
    rung = ladder.judge_regions(boxes, BASE, NOVEL, CARD)
    assert rung.verdict == verdict
    assert words in rung.look_at and bool(rung.look_at) == (verdict != "ok")
    assert rung.numbers is not None and rung.numbers["base_boxes"] == 480


def test_a_vlm_at_chance_fails_although_one_class_has_most_boxes():
    truths = torch.cat([torch.zeros(900, dtype=torch.int64), torch.arange(65).repeat(4)])
    person = BoxClasses(truths=truths, guesses={variant: torch.zeros_like(truths) for variant in VARIANTS})
    rung = ladder.judge_regions(person, BASE, NOVEL, CARD)
    assert rung.verdict == "failed"
    assert "base 82.8 % of 1092 boxes, mean over classes 2.1 % (always the most frequent class: 82.8 %)" in rung.found


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ({"weights": "random"}, "the VLM's weights are random"),
        (
            {"weights": "pretrain", "pretraining": {"held_out_accuracy": 0.05, "chance": 1 / 81}},
            "the VLM is not trained: 5.0 % of held-out captions in pretraining (chance 1.2 %)",
        ),
    ],
)
def test_of_an_untrained_vlm_nothing_is_expected(card, reason):
    rung = ladder.judge_regions(named(0.0, 0.0), BASE, NOVEL, dataclasses.replace(CARD, **card))
    assert (rung.verdict, rung.look_at) == ("skipped", "")
    assert rung.found.endswith(reason)


def test_a_trained_vlm_at_chance_fails():
    card = dataclasses.replace(CARD, weights="pretrain", pretraining={"held_out_accuracy": 0.8, "chance": 1 / 81})
    assert ladder.judge_regions(named(0.0, 0.0), BASE, NOVEL, card).verdict == "failed"


def test_too_few_boxes_are_told_and_not_judged():
    rung = ladder.judge_regions(named(0.0, 0.0, boxes=2), BASE, NOVEL, CARD)
    assert rung.verdict == "skipped" and rung.found.endswith("too few novel boxes to judge")


def test_batch_norm_settles_after_1533_steps_of_the_papers_momentum_and_44_of_a_tenth():
    assert not ladder.settled(0.003, 1532) and ladder.settled(0.003, 1533)
    assert not ladder.settled(0.1, 43) and ladder.settled(0.1, 44)


def tower(**changed: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([changed.get(name, 0.0)]) for name in ("weight", "running_mean")}


@pytest.mark.parametrize(
    ("freeze", "after", "trained", "verdict"),
    [
        ("all", "a", tower(), "ok"),
        ("all", "b", tower(), "failed"),
        ("all", "a", tower(running_mean=1e-6), "failed"),
        ("all", "a", {"weight": torch.zeros(1)}, "failed"),
        ("none", "b", tower(running_mean=1.0), "skipped"),
    ],
)
def test_the_tower(freeze, after, trained, verdict):
    rung = ladder.judge_tower(freeze=freeze, before="a", after=after, vlm=tower(), trained=trained)
    assert rung.verdict == verdict


def test_a_changed_tensor_is_named():
    rung = ladder.judge_tower(freeze="all", before="a", after="a", vlm=tower(), trained=tower(running_mean=1.0))
    assert rung.found == "1 of the tower's 2 tensors differ from the VLM's, the first is running_mean"


@pytest.mark.parametrize(
    ("base", "novel", "verdict"),
    [(46, 52, "ok"), (46, 22, "suspicious"), (14, 15, "suspicious"), (11, 30, "failed"), (40, 12, "suspicious")],
)
def test_proposals_against_those_of_another_picture(base, novel, verdict):
    recalls = {"base": base, "novel": novel, "base_chance": 10.0, "novel_chance": 10.0}
    assert ladder.judge_proposals(recalls, {"base": 700, "novel": 130}, 100).verdict == verdict
    assert ladder.judge_proposals(recalls, {"base": 700, "novel": 13}, 100).verdict == "skipped"


def metrics(base=65.1, novel=59.4, detector=60.9, vlm=58.7) -> dict[str, float]:
    """By default those of the default recipe."""
    return {
        "generalized_base_AP50": base,
        "generalized_novel_AP50": novel,
        "generalized_all_AP50": (48 * base + 17 * novel) / 65,
        "detector_only_generalized_base_AP50": detector,
        "vlm_only_generalized_base_AP50": vlm,
    }


@pytest.mark.parametrize(
    ("detector", "vlm", "verdict"),
    [(60.9, 58.7, "ok"), (40, 28.3, "ok"), (30, 58.7, "suspicious"), (20, 58.7, "failed"), (3, 1, "failed")],
)
def test_the_detector_alone_on_base(detector, vlm, verdict):
    assert ladder.judge_detector(metrics(detector=detector, vlm=vlm), 723).verdict == verdict


@pytest.mark.parametrize(("fused", "verdict"), [(65.1, "ok"), (55, "ok"), (50, "suspicious"), (40, "failed")])
def test_fusion_on_base(fused, verdict):
    assert ladder.judge_fusion(metrics(base=fused), 0.2, 723).verdict == verdict


@pytest.mark.parametrize(
    ("fused", "beta_0", "verdict"),
    [(59.4, 29.5, "ok"), (28.0, 1.0, "ok"), (30, 25, "suspicious"), (20, 25, "failed"), (2, 0, "failed")],
)
def test_novel_is_the_vlms_doing(fused, beta_0, verdict):
    rung = ladder.judge_novel(metrics(novel=fused), beta_0, 0.45, 134, "zsd")
    assert rung.verdict == verdict


def test_base_scores_are_not_judged_by_a_handful_of_boxes():
    for rung in (ladder.judge_detector(metrics(detector=0), 49), ladder.judge_fusion(metrics(base=0), 0.2, 49)):
        assert (rung.verdict, rung.look_at) == ("skipped", "")
        assert rung.found.endswith("too few base boxes to judge (49)")


def test_novel_is_not_judged_without_its_inputs():
    assert "add them to evaluate.sweep" in ladder.judge_novel(metrics(), None, 0.45, 134, "zsd").found
    assert ladder.judge_novel(metrics(), 20.0, 0.45, 13, "zsd").found.endswith("too few novel boxes to judge (13)")
    assert ladder.judge_novel(metrics(), 20.0, 0.45, 134, "ovod").verdict == "skipped"


def test_the_published_numbers_are_held_against_their_own_experiment_only():
    assert ladder.judge_published(metrics(43.7, 28.0), "zsd", CARD, 4836).verdict == "ok"
    as_a_file = dataclasses.replace(CARD, weights="RN50.pt", provenance={"weights": {"is_openais_archive": True}})
    assert ladder.judge_published(metrics(43.7, 28.0), "zsd", as_a_file, 4836).verdict == "ok"
    assert ladder.judge_published(metrics(43.7, 24.0), "zsd", CARD, 4836).verdict == "suspicious"
    assert ladder.judge_published(metrics(30.0, 28.0), "zsd", CARD, 4836).verdict == "suspicious"
    for setting, card, images in (
        ("ovod", CARD, 4836),
        ("zsd", dataclasses.replace(CARD, weights="random"), 4836),
        ("zsd", CARD, 378),
    ):
        assert ladder.judge_published(metrics(0, 0), setting, card, images).verdict == "skipped"


def test_text_embeddings():
    none = ladder.judge_text(None, "miniature")
    assert none.verdict == "skipped" and none.found.startswith("not applicable: no golden values for miniature")
    assert ladder.judge_text([], "RN50-quickgelu").verdict == "ok"
    failed = ladder.judge_text(["background: off", "person: off"], "RN50-quickgelu")
    assert (failed.verdict, failed.found) == ("failed", "background: off; person: off")

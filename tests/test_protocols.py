from dataclasses import replace
from typing import Any

import pytest
import torch
from raw_world import EVALUATE, made_up_coco, made_up_raw
from torchvision.ops import nms

from fvlm.data.splits import base_names, novel_names
from fvlm.evaluation import best as module
from fvlm.evaluation.best import best_detections
from fvlm.evaluation.detections import detections_of, proposals_of
from fvlm.evaluation.protocols import protocols
from fvlm.evaluation.raw import RawDetections


def one_image(boxes, detector_probs, vlm_probs, names, supervised) -> RawDetections:
    """Similarities whose softmax at temperature 1 is the given probabilities."""
    return RawDetections(
        image_ids=torch.tensor([7]),
        image_sizes_hw=torch.tensor([[100, 100]]),
        offsets=torch.tensor([0, len(boxes)]),
        proposals=torch.tensor(boxes),
        proposal_scores=torch.linspace(1, 0, len(boxes)),
        boxes=torch.tensor(boxes),
        detector_similarity=torch.tensor(detector_probs).log().half(),
        vlm_similarity=torch.tensor(vlm_probs).log().half(),
        names=("background", *names),
        category_ids=tuple(range(1, 1 + len(names))),
        detector_temperature=1.0,
        vlm_temperature=1.0,
        supervised=tuple(supervised),
        setting="zsd",
        model_sha256="",
    )


def naive(boxes, probs, *, nms_iou, score_threshold, max_detections):
    """NMS class by class over everything, then one sort: the definition."""
    kept = []
    for class_ in range(probs.shape[1]):
        order = probs[:, class_].argsort(descending=True, stable=True)[:1000]
        order = order[probs[order, class_] >= score_threshold]
        survivors = order[nms(boxes[order].double(), probs[order, class_].double(), nms_iou)]
        kept += [(-float(probs[region, class_]), int(region), class_) for region in survivors]
    best = sorted(kept)[:max_detections]  # ties: by region, then class
    return [(region, class_, -score) for score, region, class_ in best]


def crowded(regions, classes, seed, levels=None, heaps=6):
    """Boxes in heaps, so that NMS removes most; `levels` makes score ties."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(heaps, 2, generator=generator).repeat(regions // heaps + 1, 1)[:regions] * 200 + 50
    centres += torch.randn(regions, 2, generator=generator) * 6
    sides = 40 + torch.rand(regions, 2, generator=generator) * 20
    probs = torch.randn(regions, 1 + classes, generator=generator).mul(2).softmax(dim=1)[:, 1:]
    if levels:
        probs = (probs * levels).round() / levels
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=1), probs


@pytest.mark.parametrize("levels", [None, 50])
@pytest.mark.parametrize("threshold", [0.0, 0.02])
@pytest.mark.parametrize(("regions", "limit"), [(100, 5), (100, 100), (37, 300), (1, 100), (0, 10)])
def test_taking_the_best_candidates_first_equals_nms_over_everything(regions, limit, threshold, levels):
    boxes, probs = crowded(regions, 65, seed=regions, levels=levels)
    limits = {"nms_iou": 0.5, "score_threshold": threshold, "max_detections": limit}
    found = best_detections(boxes, probs, **limits)
    assert list(zip(*(part.tolist() for part in found), strict=True)) == naive(boxes, probs, **limits)


def test_candidates_are_added_until_enough_survive(monkeypatch):
    rounds: list[int] = []
    keep = module._keep

    def counted(candidates, *rest):
        rounds.append(len(candidates))
        keep(candidates, *rest)

    monkeypatch.setattr(module, "_keep", counted)
    boxes, probs = crowded(200, 3, seed=2, heaps=2)
    limits: dict[str, Any] = {"nms_iou": 0.3, "score_threshold": 0.0, "max_detections": 5}
    found = best_detections(boxes, probs, **limits)
    assert list(zip(*(part.tolist() for part in found), strict=True)) == naive(boxes, probs, **limits)
    assert len(rounds) > 1 and sum(rounds) < 300  # of 600: the first left too few, and nobody looked at the rest


def test_overlaps_found_for_one_protocol_serve_the_next():
    boxes, probs = crowded(60, 30, seed=3)
    limits: dict[str, Any] = {"nms_iou": 0.5, "score_threshold": 0.0}
    overlaps = module.Overlaps(boxes, 0.5)
    for scores, limit in ((probs, 2), (probs.flip(0), 40), (probs.flip(1), 300)):
        found = best_detections(boxes, scores, **limits, max_detections=limit, overlaps=overlaps)
        expected = naive(boxes, scores, **limits, max_detections=limit)
        assert list(zip(*(part.tolist() for part in found), strict=True)) == expected


def test_boxes_without_area_suppress_nothing():
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]])
    probs = torch.tensor([[0.9], [0.8], [0.7]])
    limits: dict[str, Any] = {"nms_iou": 0.5, "score_threshold": 0.0, "max_detections": 10}
    found = best_detections(boxes, probs, **limits)
    assert list(zip(*(part.tolist() for part in found), strict=True)) == naive(boxes, probs, **limits)
    assert len(found[0]) == 3


def test_only_the_best_thousand_of_a_class_enter_nms(monkeypatch):
    monkeypatch.setattr(module, "PRE_NMS_TOP_N", 2)
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    probs = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    regions, classes, _ = best_detections(boxes, probs, nms_iou=0.5, score_threshold=0.0, max_detections=10)
    assert list(zip(regions.tolist(), classes.tolist(), strict=True)) == [(0, 1), (1, 1), (2, 0), (1, 0)]


def test_nms_suppresses_within_a_class_and_not_across():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    probs = torch.tensor([[0.6, 0.3], [0.5, 0.4]])
    regions, classes, scores = best_detections(boxes, probs, nms_iou=0.5, score_threshold=0.0, max_detections=10)
    assert (regions.tolist(), classes.tolist()) == ([0, 1], [0, 1])
    torch.testing.assert_close(scores, torch.tensor([0.6, 0.4]))


def test_the_threshold_is_the_least_score_and_the_limit_counts_over_all_classes():
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 0, 60, 10]])
    probs = torch.tensor([[0.6, 0.25], [0.5, 0.125]])
    limits: dict[str, Any] = {"nms_iou": 0.5, "score_threshold": 0.25}
    assert best_detections(boxes, probs, **limits, max_detections=10)[2].tolist() == pytest.approx([0.6, 0.5, 0.25])
    assert best_detections(boxes, probs, **limits, max_detections=2)[2].tolist() == pytest.approx([0.6, 0.5])


def test_columns_are_chosen_by_name_and_no_other_class_competes():
    # dog takes 0.5 of the detector's mass, but a protocol without dogs does not know it
    raw = one_image([[5.0, 6, 15, 26]], [[0.1, 0.3, 0.5, 0.1]], [[0.25, 0.25, 0.25, 0.25]], ["cat", "dog", "cow"], [])
    evaluate = replace(EVALUATE, alpha=0.0, beta=0.0)
    detections = detections_of(raw, ["cow", "cat"], [7], evaluate)
    assert [d["category_id"] for d in detections] == [1, 3]  # cat, cow
    assert [d["score"] for d in detections] == pytest.approx([0.3 / 0.5, 0.1 / 0.5], rel=1e-3)
    assert detections[0]["bbox"] == [5.0, 6.0, 10.0, 20.0]
    assert detections[0]["image_id"] == 7


def test_the_vlm_softmax_holds_the_same_classes():
    raw = one_image([[0.0, 0, 10, 20]], [[0.2, 0.4, 0.4]], [[0.1, 0.1, 0.8]], ["cat", "dog"], [])
    detection = detections_of(raw, ["cat"], [7], replace(EVALUATE, beta=1.0))[0]
    # background 0.2 / 0.6 of the detector, cat 0.1 / 0.2 of the VLM; normalised
    assert detection["score"] == pytest.approx(0.5 / (0.5 + 1 / 3), rel=1e-3)


def test_alpha_weighs_the_classes_with_boxes_in_training():
    parts = ([[0.0, 0, 10, 20]], [[0.2, 0.4, 0.4]], [[0.2, 0.1, 0.7]], ["cat", "dog"])
    evaluate = replace(EVALUATE, alpha=0.0, beta=1.0)

    def scores(supervised):
        found = detections_of(one_image(*parts, supervised), ["cat", "dog"], [7], evaluate)
        return {d["category_id"]: d["score"] for d in found}

    assert scores(["cat"]) == pytest.approx({1: 0.4 / 1.3, 2: 0.7 / 1.3}, rel=1e-3)
    assert scores(["dog"]) == pytest.approx({1: 0.1 / 0.7, 2: 0.4 / 0.7}, rel=1e-3)


def test_a_given_vlm_temperature_replaces_the_vlms_own():
    raw = one_image([[0.0, 0, 10, 20]], [[0.2, 0.4, 0.4]], [[0.2, 0.1, 0.7]], ["cat", "dog"], [])
    sharp = detections_of(raw, ["cat", "dog"], [7], replace(EVALUATE, beta=1.0, vlm_temperature=0.5))
    squares = 0.2**2 + 0.1**2 + 0.7**2
    assert sharp[0]["score"] == pytest.approx(0.7**2 / squares / (0.2 + 0.5 / squares), rel=2e-3)


def test_images_outside_the_split_are_left_out():
    raw = made_up_raw(made_up_coco(images=5))
    detections = detections_of(raw, base_names(), [101, 103], EVALUATE)
    assert [d["image_id"] for d in detections] == [101] * 100 + [103] * 100
    assert detections_of(raw, base_names(), [], EVALUATE) == []


def test_the_protocols_are_48_17_and_65_classes_plus_background():
    raw = made_up_raw(made_up_coco(images=1))
    found = {name: (p.split, len(raw.columns(p.names))) for name, p in protocols().items()}
    assert found == {
        "constrained_base": ("base", 49),
        "constrained_novel": ("novel", 18),
        "generalized": ("generalized", 66),
    }
    groups = protocols()["generalized"].groups
    assert groups["generalized_novel"] == tuple(novel_names())
    assert groups["generalized_base"] == tuple(base_names())
    assert len(groups["generalized_all"]) == 65


def test_proposals_are_the_best_of_each_image_by_objectness():
    raw = one_image([[0.0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]], [[0.5, 0.5]] * 3, [[0.5, 0.5]] * 3, ["cat"], [])
    raw = replace(raw, proposal_scores=torch.tensor([0.1, 0.9, 0.5]), boxes=raw.boxes + 50)
    assert proposals_of(raw, 2, {7}).boxes_xywh.tolist() == [[0, 0, 2, 2], [0, 0, 3, 3]]
    assert len(proposals_of(raw, 2, {8})) == 0

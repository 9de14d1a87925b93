from dataclasses import replace
from typing import Any

import pytest
from raw_world import EVALUATE, made_up_coco, made_up_raw, val_splits
from test_ap import by_pycocotools

from fvlm.data.splits import base_names, excluded_names, novel_names
from fvlm.detector.scores import class_log_probs
from fvlm.errors import InputError
from fvlm.evaluation.detections import coco_results, detect_cases, detections_of
from fvlm.evaluation.protocols import case_of, protocols
from fvlm.evaluation.scoring import score
from fvlm.evaluation.variants import COLUMNS, RULES, known_variants, rules_of, score_variants
from fvlm.params import Variant


@pytest.fixture(scope="module")
def world():
    """On four of eighteen pictures nobody annotated what is found; 40 regions of 80 classes each compete for places."""
    coco = made_up_coco(images=18)
    raw = made_up_raw(coco, proposals=40)
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] < 114]
    return raw, val_splits(coco)


@pytest.fixture(scope="module")
def rows(world):
    raw, splits = world
    return score_variants(raw, splits, EVALUATE)


def exported(raw, splits, protocol, rules):
    [found] = detect_cases(raw, [case_of(protocol, splits, rules)])
    return coco_results(found)


@pytest.mark.parametrize("number", range(1 + len(known_variants())))
def test_plain_pycocotools_finds_the_numbers_of_every_variant(world, rows, number):
    variant = [Variant(name="headline", source=""), *known_variants()][number]
    rules = rules_of(variant, EVALUATE)
    raw, splits = world
    assert rows[number]["variant"] == variant.name
    metrics = score(raw, splits, rules).metrics
    for name, protocol in protocols().items():
        for key, mean in by_pycocotools(exported(raw, splits, protocol, rules), protocol, splits, rules.images).items():
            assert metrics[key] == pytest.approx(mean, abs=1e-4)  # percent, and rounded to four decimals
            if name == "generalized" and key.endswith("_AP50"):
                assert rows[number][key] == pytest.approx(mean, abs=1e-4)


def test_the_table_holds_the_rules_and_says_what_differs(rows):
    assert all(tuple(row) == COLUMNS for row in rows)
    of = {row["variant"]: row for row in rows}
    assert len(of) == len(rows) == 1 + len(known_variants())
    assert of["headline"]["differs"] == of["NMS at 0.5"]["differs"] == "nothing"  # the headline has 0.5
    assert of["NMS at 0.4"]["differs"] == "nms_iou 0.4 instead of 0.5"
    assert of["not renormalised"]["differs"] == "renormalise false instead of true"
    assert [of["chenxi52/F-VLM_pytorch"][rule] for rule in RULES] == [
        "split", "masked", 300, 0.4, 0.0, "true", "true", 0.2, 0.65,
    ]  # fmt: skip
    assert all(row["source"] for row in rows)


def test_all_is_the_weighted_mean_of_base_and_novel_in_every_row(rows):
    for row in rows:
        base, novel, every = (row[f"generalized_{group}_AP50"] for group in ("base", "novel", "all"))
        assert (48 * base + 17 * novel) / 65 == pytest.approx(every, abs=1e-3)


def test_departures_show_and_masking_does_not(rows):
    headline = {row["variant"]: row["generalized_all_AP50"] for row in rows}
    own = headline["headline"]
    assert headline["80 classes, 15 masked"] == pytest.approx(own, abs=1e-3)
    for variant in ("every picture", "80 classes compete", "NMS at 0.4", "not renormalised", "VLM without background"):
        assert abs(headline[variant] - own) > 1e-3, variant


def test_a_user_adds_a_variant_and_cannot_take_a_name_that_is_known(world):
    raw, splits = world
    mine = Variant(name="mine", source="my paper", max_detections=5, nms_iou=0.7)
    rows = score_variants(raw, splits, replace(EVALUATE, variants=(mine,)))
    assert rows[-1]["variant"] == "mine"
    assert rows[-1]["differs"] == "max_detections 5 instead of 100; nms_iou 0.7 instead of 0.5"
    metrics = score(raw, splits, replace(EVALUATE, max_detections=5, nms_iou=0.7)).metrics
    assert rows[-1]["generalized_all_AP50"] == metrics["generalized_all_AP50"]
    taken = Variant(name="headline", source="", alpha=1.0)
    with pytest.raises(InputError, match=r"evaluate\.variants: the names headline are taken; choose other ones"):
        score_variants(raw, splits, replace(EVALUATE, variants=(taken,)))


def test_under_the_full_vocabulary_other_classes_take_mass_and_places_and_are_not_found(world):
    raw, _ = world
    names, images = base_names() + novel_names(), [100]
    limited: dict[str, Any] = {
        "vlm_background": True,
        "max_detections": 20,
        "alpha": 0.0,
        "beta": 0.0,
        "renormalise": False,
    }
    alone, among = (
        detections_of(raw, names, images, replace(EVALUATE, vocabulary=v, **limited)) for v in ("scored", "all")
    )
    every = detections_of(raw, names + excluded_names(), images, replace(EVALUATE, **limited))
    ids = {raw.category_ids[column - 1] for column in raw.columns(names)[1:]}
    assert len(alone) == 20
    assert among == [d for d in every if d["category_id"] in ids]
    assert 0 < len(among) < 20
    probs = class_log_probs(raw.detector_similarity[raw.rows(0)], raw.detector_temperature).exp()
    assert among[0]["score"] == pytest.approx(float(probs[:, raw.columns(names)[1:]].max()), rel=1e-5)

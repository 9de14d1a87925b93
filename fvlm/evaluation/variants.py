"""The same detector under other people's protocols: known deviations between code bases, scored from one inference.

All call their numbers generalized AP50 on OV-COCO. What they differ in is data: variants.json has one entry for each
single departure that is known, and one for each code base whose protocol is known as a whole; `evaluate.variants` in
params.yaml adds to it. RegionCLIP's soft NMS and DetPro's and F-ViT's temperatures are not among them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.coco import CocoDict
from ..errors import InputError
from ..io import read_json
from ..params import Evaluate, Variant
from .protocols import case_of, protocols
from .raw import RawDetections
from .scoring import check_images, generalized_ap50

RULES = (  # of a variant, as columns; what they are called in words
    "images",
    "vocabulary",
    "max_detections",
    "nms_iou",
    "score_threshold",
    "renormalise",
    "vlm_background",
    "alpha",
    "beta",
)
COLUMNS = (
    "variant",
    "differs",
    "source",
    *RULES,
    "generalized_base_AP50",
    "generalized_novel_AP50",
    "generalized_all_AP50",
)
HEADLINE = "headline"


def known_variants() -> tuple[Variant, ...]:
    """Those of variants.json, in its order."""
    entries = read_json(Path(__file__).with_name("variants.json"), "protocol variants", "install fvlm again")
    return tuple(Variant(**entry) for entry in entries)


def score_variants(
    raw: RawDetections, splits: Mapping[str, CocoDict], evaluate: Evaluate, progress: str = ""
) -> list[dict[str, Any]]:
    """A row of `COLUMNS` for the headline, then for each known variant and for each of `evaluate.variants`.

    Args:
        raw: raw detections of all validation pictures.
        splits: validation splits by name: base, novel, generalized, all.
        evaluate: the headline's rules, which a variant has but for what it names.
        progress: what a bar is to be called; none without it.

    Raises:
        InputError: a variant of the params has the name of a known one, or the images of `raw` and `splits` differ.
    """
    check_images(raw, splits)
    variants = known_variants()
    if taken := {HEADLINE, *(v.name for v in variants)} & {v.name for v in evaluate.variants}:
        raise InputError(
            f"params.yaml: evaluate.variants: the names {', '.join(sorted(taken))} are taken; choose other ones"
        )
    own = Variant(name=HEADLINE, source="params.yaml: evaluate")
    rows = [own, *variants, *evaluate.variants]
    rules = [rules_of(variant, evaluate) for variant in rows]
    generalized = protocols()["generalized"]
    cases = [case_of(generalized, splits, of_variant) for of_variant in rules]
    scores = generalized_ap50(raw, splits, cases, evaluate.processes, progress)
    return [
        {
            "variant": variant.name,
            "differs": _differences(of_variant, evaluate),
            "source": variant.source,
            **{rule: _shown(getattr(of_variant, rule)) for rule in RULES},
            **of_groups,
        }
        for variant, of_variant, of_groups in zip(rows, rules, scores, strict=True)
    ]


def rules_of(variant: Variant, headline: Evaluate) -> Evaluate:
    """The headline's rules with what `variant` has of its own."""
    own = {rule: value for rule in RULES if (value := getattr(variant, rule)) is not None}
    return dataclasses.replace(headline, **own)


def _differences(rules: Evaluate, headline: Evaluate) -> str:
    """In words, from the rules themselves, so that a variant never claims to differ in what the headline has, too."""
    changes: Sequence[str] = [
        f"{rule} {_shown(getattr(rules, rule))} instead of {_shown(getattr(headline, rule))}"
        for rule in RULES
        if getattr(rules, rule) != getattr(headline, rule)
    ]
    return "; ".join(changes) or "nothing"


def _shown(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value

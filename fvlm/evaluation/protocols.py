"""The protocols of the field: which classes are scored, on which pictures, and under which rules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..data.coco import CocoDict
from ..data.splits import base_names, novel_names
from ..params import Evaluate


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Which classes compete in the softmax, on which images, and over which classes AP is averaged."""

    split: str  # names the validation split whose images and boxes count: base, novel or generalized
    names: tuple[str, ...]  # K class names; with background they are the whole softmax, in both branches
    groups: Mapping[str, tuple[str, ...]]  # metric prefix -> classes averaged under it


def protocols() -> dict[str, Protocol]:
    """Constrained base (48 classes), constrained novel (17) and generalized (65), by name.

    Source: OVR-CNN's three validation sets (its configs' TEST); the classes are those of Bansal et al., ECCV 2018.
    """
    base, novel = tuple(base_names()), tuple(novel_names())
    every = base + novel
    return {
        "constrained_base": Protocol(split="base", names=base, groups={"constrained_base": base}),
        "constrained_novel": Protocol(split="novel", names=novel, groups={"constrained_novel": novel}),
        "generalized": Protocol(
            split="generalized",
            names=every,
            groups={"generalized_base": base, "generalized_novel": novel, "generalized_all": every},
        ),
    }


class Case(NamedTuple):
    """One way from raw detections to detections."""

    names: tuple[str, ...]  # the classes whose detections are wanted
    image_ids: frozenset[int]
    rules: Evaluate  # fusion, softmax, NMS and limits; its `images` is already applied


def case_of(protocol: Protocol, splits: Mapping[str, CocoDict], rules: Evaluate) -> Case:
    """The pictures of `protocol` under `rules`: those that hold a box of its classes, or all."""
    split = splits[protocol.split if rules.images == "split" else "all"]
    return Case(protocol.names, frozenset(image["id"] for image in split["images"]), rules)

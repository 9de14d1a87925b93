"""The ladder of checks: where a wrong score comes from, rung by rung, from the text tower up to the headline.

Each rung rests on those below it, so the first that is not ok is the place to look; what stands above it says little.
Every function judges numbers that were measured elsewhere and gives a `Rung`.

Source: what public ports and their users report (named at each rung); the order is ours.
Thresholds compare with chance or with another branch of the same model, so that they hold on the embedded world and on
real CLIP alike; a number of a paper stands in the last rung only.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..vlm.clip import VlmCard
from .regions import TENTHS, VARIANTS, BoxClasses

Verdict = Literal["ok", "suspicious", "failed", "skipped"]
FEWEST_BOXES = 50  # of a group of classes; below, one box is more than two points and nothing is concluded
SETTLED = 0.01  # share of batch norm's initial running statistics that may be left after training
TIMES_CHANCE = 10  # of a VLM that knows its classes; the miniature reaches 50
OV_COCO_VAL_IMAGES = 4836  # of val2017 that hold one of the 65 classes
CHANCE_AP50 = 100 / 65  # about what perfect boxes with names drawn at random reach among 65 classes


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One check and its outcome."""

    name: str
    verdict: Verdict
    found: str  # the numbers in words, or why there are none
    expected: str = ""  # the range, and where it comes from
    look_at: str = ""  # what to look at where it is not ok
    numbers: Mapping[str, float | None] | None = None  # the same for a program, percent unless said


def settled(norm_momentum: float, steps: int) -> bool:
    """Whether batch norm's running statistics arrived: what is left of their start is momentum's power of the steps.

    With 0.003 that takes 1,533 steps, with 0.1 it takes 44. A detector before that scores about 0 whatever it learned.

    With 0.003 the statistics are 95 % there after 1,000 steps; scores of runs under about 2,000 mean nothing.
    """
    return (1 - norm_momentum) ** steps <= SETTLED


def knows_no_classes(card: VlmCard) -> str | None:
    """Why nothing can be expected of this VLM; None if something can."""
    if card.weights == "random":
        return "the VLM's weights are random"
    if card.pretraining is not None:
        accuracy, chance = card.pretraining["held_out_accuracy"], card.pretraining["chance"]
        if accuracy < TIMES_CHANCE * chance:
            return (
                f"the VLM is not trained: {100 * accuracy:.1f} % of held-out captions in pretraining "
                f"(chance {100 * chance:.1f} %)"
            )
    return None


def judge_text(findings: Sequence[str] | None, architecture: str) -> Rung:
    """Text embeddings against golden values; `findings` is None where there are none for this VLM."""
    if findings is None:
        return Rung(
            name="text",
            verdict="skipped",
            found=f"not applicable: no golden values for {architecture} with these weights and prompts",
        )
    expected = "the embeddings that OpenAI's weights give for known words (the F-VLM authors' released vectors)"
    if findings:
        return Rung(
            name="text",
            verdict="failed",
            found="; ".join(findings),
            expected=expected,
            look_at="QuickGELU (vlm.architecture ends in -quickgelu), the weights, text.templates clip80, "
            "normalisation before the mean over templates",
        )
    return Rung(name="text", verdict="ok", found="the golden values are met", expected=expected)


def judge_regions(named: BoxClasses, base: Sequence[int], novel: Sequence[int], card: VlmCard) -> Rung:
    """The VLM alone on ground-truth boxes: it knows its classes, novel as well as base, and its crops lie right.

    Args:
        base, novel: class indices of the two groups; together all that compete.
    """
    groups, every = {"base": base, "novel": novel}, [*base, *novel]
    boxes = {group: named.count(among) for group, among in groups.items()}
    numbers: dict[str, float | None] = {f"top1_{variant}": named.top1(variant, every) for variant in VARIANTS}
    shown = []
    for group, among in groups.items():
        top1, mean = named.top1("as_it_is", among), named.class_mean("as_it_is", among)
        share = named.largest_share(among)
        numbers |= {f"{group}_boxes": boxes[group], f"{group}_top1": top1}
        numbers |= {f"{group}_class_mean": mean, f"{group}_largest_class": share}
        if top1 is not None and mean is not None and share is not None:
            shown.append(
                f"{group} {top1:.1f} % of {boxes[group]} boxes, mean over classes {mean:.1f} % "
                f"(always the most frequent class: {share:.1f} %)"
            )
    found = f"top-1 among {len(every)} names: {'; '.join(shown)}"
    few = next((f"too few {group} boxes to judge" for group in groups if boxes[group] < FEWEST_BOXES), None)
    if reason := few or knows_no_classes(card):
        return Rung(name="regions", verdict="skipped", found=f"{found}; {reason}", numbers=numbers)

    top1_of = {variant: named.top1(variant, every) or 0.0 for variant in VARIANTS}
    means = {group: named.class_mean("as_it_is", among) or 0.0 for group, among in groups.items()}
    verdict, look_at = _verdict_on_regions(top1_of, means, chance=100 / len(every), boxes=len(named.truths))
    tenths = [top1_of[variant] for variant in TENTHS]
    return Rung(
        name="regions",
        verdict=verdict,
        found=f"{found}; all {top1_of['as_it_is']:.1f} %, with crops moved by a tenth of the box {min(tenths):.1f} to "
        f"{max(tenths):.1f} %, by half a cell of C5 {top1_of['half_a_cell_up_left']:.1f} (up left) and "
        f"{top1_of['half_a_cell_down_right']:.1f} % (down right)",
        expected=f"mean over classes from {TIMES_CHANCE} times chance ({100 / len(every):.1f} %) on, novel at least "
        "half of base (the VLM saw no box of either), little lost by small moves, nothing gained",
        look_at=look_at,
        numbers=numbers,
    )


def _verdict_on_regions(
    top1: Mapping[str, float], class_mean: Mapping[str, float], *, chance: float, boxes: int
) -> tuple[Verdict, str]:
    """The verdict, and what to look at; shares in percent, `top1` by variant and `class_mean` of base and novel."""
    present = top1["as_it_is"]
    # of the difference of two such shares, if they were independent; they are not, so it is less
    error = 100 * math.sqrt(2 * present / 100 * (1 - present / 100) / boxes)
    best, worst = max(top1, key=lambda v: top1[v]), min(TENTHS, key=lambda v: top1[v])
    if min(class_mean.values()) < 3 * chance:
        return "failed", (
            "rung text; model.vlm_crop; C5 before the attention pool; the pictures' normalisation and order of colours"
        )
    if min(class_mean.values()) < TIMES_CHANCE * chance:
        return "suspicious", "model.image_size (objects of a size that the VLM saw); model.vlm_crop; the normalisation"
    if class_mean["novel"] < class_mean["base"] / 2:
        return "suspicious", "names of the novel classes, and their rows in data/text_embeddings.safetensors"
    if top1[best] > present + 2 * error:
        moved = best.replace("_", " ")
        return "suspicious", f"model.vlm_crop: moved {moved}, crops are named better, so the present ones are displaced"
    if top1[worst] < present * 2 / 3:
        return "suspicious", f"model.vlm_crop, model.image_size: moved {worst} by a tenth, crops lose their object"
    return "ok", ""


def judge_tower(
    *, freeze: str, before: str, after: str, vlm: Mapping[str, Tensor], trained: Mapping[str, Tensor]
) -> Rung:
    """Training changed nothing of the image tower.

    Args:
        freeze: the run's `model.freeze`.
        before, after: the tower's hashes in the training record.
        vlm, trained: the tower's tensors by name, in the VLM's file and in the detector's.
    """
    changed = sorted(
        name for name in vlm.keys() | trained.keys()
        if name not in vlm or name not in trained or not vlm[name].equal(trained[name])
    )  # fmt: skip
    numbers: dict[str, float | None] = {"tensors": len(vlm), "changed_tensors": len(changed)}
    found = f"{len(changed)} of the tower's {len(vlm)} tensors differ from the VLM's"
    if freeze != "all":
        return Rung(
            name="tower", verdict="skipped", found=f"{found}; model.freeze is {freeze}, so they may", numbers=numbers
        )
    expected = "not a bit changes, running statistics included (F-VLM; requires_grad alone does not see to that)"
    if not changed and before == after:
        return Rung(name="tower", verdict="ok", found=found, expected=expected, numbers=numbers)
    return Rung(
        name="tower",
        verdict="failed",
        found=found
        + (f", the first is {changed[0]}" if changed else "")
        + ("" if before == after else "; the training record's hashes before and after differ"),
        expected=expected,
        look_at="fvlm/vlm/freeze.py and whatever calls train() on the tower; or models/ changed since (train again)",
        numbers=numbers,
    )


def judge_proposals(recalls: Mapping[str, float | None], boxes: Mapping[str, int], per_image: int) -> Rung:
    """Proposals cover objects, those of classes without boxes in training too.

    Args:
        recalls: "base", "novel", and "base_chance", "novel_chance" with the proposals of another picture; percent.
        boxes: ground-truth boxes of "base" and "novel".
        per_image: most proposals of an image.
    """
    numbers: dict[str, float | None] = {f"AR_{name}": value for name, value in recalls.items()}
    few = [group for group in ("base", "novel") if boxes[group] < FEWEST_BOXES]
    if few:
        return Rung(
            name="proposals",
            verdict="skipped",
            found=f"too few {few[0]} boxes to judge ({boxes[few[0]]})",
            numbers=numbers,
        )
    base, novel, base_chance, novel_chance = (
        recalls[name] or 0.0 for name in ("base", "novel", "base_chance", "novel_chance")
    )
    found = (
        f"AR@{per_image} base {base:.1f}, novel {novel:.1f}; with the proposals of another picture "
        f"{base_chance:.1f} and {novel_chance:.1f}"
    )
    expected = (
        "at least 1.5 times what another picture's proposals find; novel at least half of base "
        "(a base-trained RPN on COCO: recall@100 of 40 on base and 30 on novel, alirezazareian/ovr-cnn#6)"
    )
    lift = min(base / max(base_chance, 1e-9), novel / max(novel_chance, 1e-9))
    verdict: Verdict = "ok"
    look_at = ""
    if base < 1.2 * base_chance:
        verdict, look_at = "failed", "loss_rpn_score in losses.csv (it should fall well below 0.3), model.anchor_scale"
    elif lift < 1.5 or novel < base / 2:
        verdict = "suspicious"
        look_at = "model.anchor_scale against the sizes of the objects, train.steps, model.rpn_post_nms_top_n"
    return Rung(name="proposals", verdict=verdict, found=found, expected=expected, look_at=look_at, numbers=numbers)


def judge_detector(metrics: Mapping[str, float], boxes: int) -> Rung:
    """The detector alone on the classes that it was trained on, of which there are `boxes` ground-truth boxes."""
    detector, vlm = (metrics[f"{branch}_only_generalized_base_AP50"] for branch in ("detector", "vlm"))
    return _judged(
        Rung(
            name="detector",
            verdict="ok",
            found=f"base AP50, detector alone {detector:.1f}; VLM alone on the same boxes {vlm:.1f}",
            expected=f"from three quarters of the VLM's and from {3 * CHANCE_AP50:.1f} on (three times random names on "
            "perfect boxes); on COCO CLIP on cropped regions has 28.3 (ViLD's table), F-VLM fused 43.7 (implied)",
            look_at="loss_class and loss_box in losses.csv; labels and text rows in the same order (background is 0); "
            "model.temperature; box coding with weights 10, 10, 5, 5",
            numbers={"detector_only_base_AP50": detector, "vlm_only_base_AP50": vlm},
        ),
        boxes=("base", boxes),
        failed=detector < 3 * CHANCE_AP50 or detector < vlm / 2,
        suspicious=detector < vlm * 3 / 4,
    )


def judge_fusion(metrics: Mapping[str, float], alpha: float, boxes: int) -> Rung:
    """Fusion on base classes, `boxes` ground-truth boxes: the VLM's say must not spoil what the detector knows."""
    detector, fused = metrics["detector_only_generalized_base_AP50"], metrics["generalized_base_AP50"]
    return _judged(
        Rung(
            name="fusion",
            verdict="ok",
            found=f"base AP50, fused with alpha {alpha:g}: {fused:.1f}; detector alone {detector:.1f}",
            expected="at least nine tenths of the detector alone (a small alpha; it gains on the embedded world)",
            look_at="rung regions; evaluate.vlm_temperature (null takes the VLM's own: 0.01 for CLIP); evaluate.alpha; "
            "background from the detector and a second normalisation in fvlm/detector/scores.py",
            numbers={"base_AP50": fused, "detector_only_base_AP50": detector},
        ),
        boxes=("base", boxes),
        failed=fused < 0.7 * detector,
        suspicious=fused < 0.9 * detector,
    )


def judge_novel(metrics: Mapping[str, float], beta_0: float | None, beta: float, boxes: int, setting: str) -> Rung:
    """Novel AP50 is the VLM's doing: with beta = 0 most of it goes.

    Args:
        beta_0: novel AP50 with beta = 0 and alpha as declared; None where the sweep lacks it.
        boxes: ground-truth boxes of the novel classes.
    """
    if setting == "ovod":
        return Rung(
            name="novel",
            verdict="skipped",
            found="not applicable: under ovod novel boxes supervise, beta weighs nothing",
        )
    fused = metrics["generalized_novel_AP50"]
    numbers = {"novel_AP50": fused, "novel_AP50_beta_0": beta_0}
    if beta_0 is None:
        return Rung(
            name="novel",
            verdict="skipped",
            found="the sweep has no pair of the declared alpha and beta 0; add them to evaluate.sweep and run evaluate",
            numbers=numbers,
        )
    return _judged(
        Rung(
            name="novel",
            verdict="ok",
            found=f"novel AP50, fused with beta {beta:g}: {fused:.1f}; with beta 0: {beta_0:.1f}",
            expected="beta 0 at most two thirds of fused (embedded world: a half; COCO: next to nothing, "
            f"google-research#1750), fused from {3 * CHANCE_AP50:.1f} on (three times random names on perfect boxes)",
            look_at="rungs regions and proposals; which classes count as supervised (fusion weighs those with alpha); "
            "a novel box in the training split",
            numbers=numbers,
        ),
        boxes=("novel", boxes),
        failed=fused < 3 * CHANCE_AP50 or beta_0 > fused,
        suspicious=beta_0 > fused * 2 / 3,
    )


def judge_published(metrics: Mapping[str, float], setting: str, card: VlmCard, val_images: int) -> Rung:
    """The headline against the published one, where it is the same experiment: OV-COCO with OpenAI's RN50."""
    run = (setting, card.architecture, card.is_openais, val_images)
    if run != ("zsd", "RN50-quickgelu", True, OV_COCO_VAL_IMAGES):
        return Rung(
            name="published",
            verdict="skipped",
            found="not applicable: published numbers are of setting zsd with OpenAI's RN50 on COCO's "
            f"{OV_COCO_VAL_IMAGES:,} validation pictures",
        )
    novel, every = metrics["generalized_novel_AP50"], metrics["generalized_all_AP50"]
    return _judged(
        Rung(
            name="published",
            verdict="ok",
            found=f"novel AP50 {novel:.1f}, all {every:.1f}",
            expected="novel from 26, all from 39 on (F-VLM: 28.0 and 39.6; best public port, chenxi52: 26.3 and 41.0)",
            look_at="all rungs before this one, then in this order: train.background_weight 0.2, 0.6, 0.9; "
            "train.weight_decay 1e-4 and 1e-2; model.temperature 0.01, 0.02, 0.1",
            numbers={"novel_AP50": novel, "all_AP50": every},
        ),
        failed=False,
        suspicious=novel < 26 or every < 39,
    )


def _judged(rung: Rung, *, failed: bool, suspicious: bool, boxes: tuple[str, int] | None = None) -> Rung:
    """`rung` with its verdict; advice stays only where something is wrong. `boxes`: the group that counts, its size."""
    if boxes is not None and boxes[1] < FEWEST_BOXES:
        too_few = f"{rung.found}; too few {boxes[0]} boxes to judge ({boxes[1]})"
        return dataclasses.replace(rung, verdict="skipped", found=too_few, expected="", look_at="")
    if failed or suspicious:
        return dataclasses.replace(rung, verdict="failed" if failed else "suspicious")
    return dataclasses.replace(rung, look_at="")

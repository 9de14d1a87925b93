"""Whether weights are OpenAI's: what their text tower makes of a few names, against values that others computed.

OpenAI's weights with the wrong activation, or a tower of the same shape from another training, load without a word,
and every result is then wrong. For RN50 there are independent values to compare with (`clip_golden.json`, with their
sources). For the larger towers we have none: there the archive's checksum decides, where OpenAI's own file was used.
"""

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import CLIP
from torch import Tensor

from ..errors import InputError
from .prompts import CLIP_TEMPLATES
from .text import embed_names

OPENAI_LOGIT_SCALE = 100.0  # where OpenAI clipped it in training; F-VLM's temperature of 0.01 is its inverse
# the two sources of background are 1.2 % and 0.0005 apart, and one of them averages templates before normalisation
LARGEST_DEVIATION = 0.03
LARGEST_COSINE_ERROR = 0.005
LARGEST_NORM_ERROR = 0.003
ALIKE = 0.9999  # cosine of texts
SAME = 1e-6  # largest difference of a component of two pictures' embeddings
QUICK_GELU_PROBE = (-3.0, -1.0, 0.5, 2.0)


@dataclass(frozen=True)
class Comparison:
    """Of text embeddings with golden values."""

    deviation: float  # of the components, relative, root mean square; of the name that deviates most
    findings: tuple[str, ...]  # what is too far off, in words; empty where the weights are OpenAI's


def golden_values(architecture: str) -> dict[str, Any] | None:
    """The golden values for a tower; None where nobody published any."""
    text = resources.files(__package__).joinpath("clip_golden.json").read_text(encoding="utf-8")
    values: dict[str, dict[str, Any]] = json.loads(text)
    return values.get(architecture)


def compare(embeddings: Mapping[str, Tensor], golden: Mapping[str, Any]) -> Comparison:
    """Compare embeddings with golden values.

    Args:
        embeddings: by name, (D,) each, over CLIP's 80 templates as `embed_names` gives them.
        golden: `background_norm`, `first_components` and `every_32nd_component` of normalised embeddings, and
            `cosines` of pairs of names.
    """
    findings = []
    norm = embeddings["background"].norm().item()
    if not abs(norm - golden["background_norm"]) <= LARGEST_NORM_ERROR:
        findings.append(f"norm of background {norm:.4f} instead of {golden['background_norm']:.4f}")
    deviations = []
    for part, step in (("first_components", 1), ("every_32nd_component", 32)):
        for name, components in golden[part].items():
            expected = torch.tensor(components)
            found = F.normalize(embeddings[name], dim=0)[::step][: len(expected)]
            deviation = ((found - expected).norm() / expected.norm()).item()
            deviations.append(deviation)
            if not deviation <= LARGEST_DEVIATION:
                what = part.replace("_", " ")
                findings.append(f"{what} of {name} off by {deviation:.1%}, at most {LARGEST_DEVIATION:.0%}")
    for first, second, expected_cosine in golden["cosines"]:
        cosine = F.cosine_similarity(embeddings[first], embeddings[second], dim=0).item()
        if not abs(cosine - expected_cosine) <= LARGEST_COSINE_ERROR:
            findings.append(f"cosine of {first} and {second} {cosine:.4f} instead of {expected_cosine:.4f}")
    return Comparison(max(deviations), tuple(findings))


def compare_model(model: CLIP, architecture: str) -> Comparison | None:
    """`compare` for the text tower of `model`: 240 texts. None where there are no golden values."""
    golden = golden_values(architecture)
    if golden is None:
        return None
    names = list(golden["first_components"])
    return compare(dict(zip(names, embed_names(model, names, CLIP_TEMPLATES), strict=True)), golden)


def check_whole(model: CLIP, where: str) -> list[tuple[str, str, float]]:
    """Refuse weights that are no model: not finite, a tower that tells no pictures or no texts apart, no logit scale.

    Returns:
        Pairs of names with the cosine of their embeddings.
    """
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError(
            f"vlm: {where}: expected finite tensors, got NaN or infinity in {broken[0]} and {len(broken) - 1} more; "
            "the file is damaged: get it again"
        )
    cosines = text_cosines(model)
    if min(cosine for *_, cosine in cosines) > ALIKE:
        raise InputError(
            f"vlm: {where}: expected texts to differ, but all have the same embedding; these weights are of no use"
        )
    picture, black = _embedded_pictures(model)
    if not picture.isfinite().all() or (picture - black).abs().max() < SAME:
        came = "the same embedding" if picture.isfinite().all() else "NaN or infinity"
        raise InputError(
            f"vlm: {where}: expected pictures to differ, but all have {came}; the image tower's weights are of no use"
        )
    scale = model.logit_scale.double().exp().item()
    if not 0 < scale < math.inf:
        raise InputError(f"vlm: {where}: expected exp(logit_scale) above 0 and finite, got {scale}; get the file again")
    return cosines


@torch.inference_mode()
def _embedded_pictures(model: CLIP) -> Tensor:
    """(2, D): of noise, and of a picture without content."""
    size = model.visual.image_size
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return model.encode_image(torch.cat([noise, torch.zeros_like(noise)]), normalize=True)


def check_openai(model: CLIP, architecture: str, where: str) -> Comparison | None:
    """Refuse weights that pass for OpenAI's and are not, or that its text tower is wrongly built around.

    Args:
        where: the file, for the message.

    Returns:
        The comparison with golden values; None for a tower without any.

    Raises:
        InputError: activation, logit scale or golden values are not OpenAI's: what came out, and the likely reason.
    """
    for index, block in enumerate(model.transformer.resblocks):
        if not is_quick_gelu(block.mlp.gelu):
            raise InputError(
                f"vlm: {where}: expected QuickGELU in the text tower, as OpenAI trained it, got "
                f"{type(block.mlp.gelu).__name__} in block {index}; build it under its -quickgelu name"
            )
    scale = model.logit_scale.exp().item()
    if not math.isclose(scale, OPENAI_LOGIT_SCALE, rel_tol=1e-2):
        raise InputError(
            f"vlm: {where}: expected OpenAI's logit scale of {OPENAI_LOGIT_SCALE:g}, got {scale:.4g}; these are "
            "other weights of the same shape (yfcc15m and cc12m are such): get the file again, or say so in vlm.weights"
        )
    comparison = compare_model(model, architecture)
    if comparison is not None and comparison.findings:
        raise InputError(
            f"vlm: {where}: not OpenAI's {architecture}: {'; '.join(comparison.findings)}. The activation is right, so "
            "these are other weights of the same shape (yfcc15m and cc12m are such), or a damaged file: get it again"
        )
    return comparison


def is_quick_gelu(activation: torch.nn.Module) -> bool:
    """Whether it computes x * sigmoid(1.702 x), whatever its class is called. GELU differs by up to 0.02."""
    x = torch.tensor(QUICK_GELU_PROBE)
    return torch.allclose(activation(x), x * torch.sigmoid(1.702 * x), rtol=0, atol=1e-5)


def text_cosines(model: CLIP) -> list[tuple[str, str, float]]:
    """Cosines among a few names by a few templates: no golden values, but there to be looked at in the card."""
    names = ["background", "person", "fire hydrant"]
    embeddings = embed_names(model, names, CLIP_TEMPLATES[:4])
    return [
        (names[i], names[j], round(F.cosine_similarity(embeddings[i], embeddings[j], dim=0).item(), 4))
        for i, j in itertools.combinations(range(len(names)), 2)
    ]

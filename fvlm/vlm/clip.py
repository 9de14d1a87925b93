"""The vision-language model: open_clip's `CLIP` with a ModifiedResNet tower, its two files, and C2..C5 of the tower.

Two files hold it, whether it was pretrained here or comes from elsewhere: the weights (safetensors) and the card
(JSON), which says what the weights are and how to build a model around them.
"""

import copy
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import open_clip
import torch
from open_clip import CLIP
from open_clip.modified_resnet import AttentionPool2d, Bottleneck, ModifiedResNet
from torch import Tensor, nn

from ..errors import InputError
from ..io import read_json, write_json
from ..params import FreezeMode
from ..tensors import load_tensors, save_tensors, sha256_of_tensors
from .freeze import freeze

REAL_TOWERS = ("RN50-quickgelu", "RN50x4-quickgelu", "RN50x16-quickgelu", "RN50x64-quickgelu")
C5_STRIDE = 32  # pixels of the network input in a cell of C5, under every tower
MODEL_CONFIG_KEYS = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
VISION_KEYS = {"image_size", "layers", "width"}
MORE_VISION_KEYS = {"head_width", "patch_size"}  # the latter stands in open_clip's own configs, and is null
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers"}
LARGEST_SIZE = 10**6  # of a model's width, depth, vocabulary or picture
REMEDY = "run `python -m fvlm vlm` to make models/vlm.safetensors and models/vlm.json again"


@dataclass(frozen=True, kw_only=True)
class VlmCard:
    """What a VLM's weights are: all that is needed to rebuild it and to use it rightly."""

    architecture: str  # "miniature", or open_clip's name
    weights: str  # as params have it: pretrain, random, openai, a tag, a repository or a path
    model_config: dict[str, Any]  # keyword arguments of open_clip.CLIP
    image_mean: tuple[float, ...]  # of RGB in 0..1
    image_std: tuple[float, ...]
    logit_scale: float  # what cosines are multiplied with: 100 for OpenAI's
    grid: int  # side of the attention pool's positional grid, in cells of C5: 7 for RN50
    weights_sha256: str  # over names, shapes and bytes of all tensors
    pretraining: dict[str, Any] | None  # how it was pretrained and its held-out accuracy, if that was done here
    provenance: dict[str, Any]

    @property
    def temperature(self) -> float:
        """Cosine / temperature = the VLM's logits."""
        return 1 / self.logit_scale

    @property
    def is_openais(self) -> bool:
        """Whether the weights are OpenAI's, also where they came as a file: by its checksum, or its text embeddings."""
        origin = self.provenance.get("weights", {})
        golden = origin.get("golden_values")
        by_texts = isinstance(golden, dict) and bool(golden.get("reproduced"))
        return self.weights == "openai" or bool(origin.get("is_openais_archive")) or by_texts

    @classmethod
    def describe(
        cls,
        model: CLIP,
        *,
        architecture: str,
        weights: str,
        model_config: Mapping[str, Any],
        pretraining: dict[str, Any] | None,
        provenance: dict[str, Any],
        image_mean: Sequence[float] = open_clip.OPENAI_DATASET_MEAN,
        image_std: Sequence[float] = open_clip.OPENAI_DATASET_STD,
    ) -> "VlmCard":
        """The card of `model`, which `model_config` built; logit scale, grid and hash are read off the model."""
        return cls(
            architecture=architecture,
            weights=weights,
            model_config=copy.deepcopy(dict(model_config)),
            image_mean=tuple(image_mean),
            image_std=tuple(image_std),
            logit_scale=model.logit_scale.detach().double().exp().item(),
            grid=math.isqrt(len(model.visual.attnpool.positional_embedding) - 1),
            weights_sha256=sha256_of_tensors(model.state_dict()),
            pretraining=pretraining,
            provenance=provenance,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives an equal card back."""
        return dataclasses.asdict(self) | {"image_mean": list(self.image_mean), "image_std": list(self.image_std)}

    @classmethod
    def from_dict(cls, value: Any, where: str = "VLM card") -> "VlmCard":
        """The inverse of `to_dict`.

        Raises:
            InputError: the keys are not those of a card, or a value that decides results makes no sense.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        keys = set(value) if isinstance(value, dict) else set()
        if keys != known:
            raise InputError(
                f"{where}: expected the keys of a VLM card, missing {sorted(known - keys)}, "
                f"unknown {sorted(keys - known)}; {REMEDY}"
            )
        findings = [
            f"{where}: {name}: expected {expected}, got {value[name]!r}; {REMEDY}"
            for name, fits, expected in (
                ("model_config", _is_model_config(value["model_config"]), "that of a CLIP with a ResNet tower"),
                ("image_mean", _are_numbers(value["image_mean"], 3), "three numbers"),
                ("image_std", _are_numbers(value["image_std"], 3) and min(value["image_std"]) > 0, "three numbers > 0"),
                ("logit_scale", _are_numbers([value["logit_scale"]], 1) and value["logit_scale"] > 0, "a number > 0"),
                ("grid", type(value["grid"]) is int and value["grid"] > 0, "an integer > 0"),
            )
            if not fits
        ]
        if findings:
            raise InputError("\n".join(findings))
        return cls(**value | {"image_mean": tuple(value["image_mean"]), "image_std": tuple(value["image_std"])})


def _is_model_config(value: Any) -> bool:
    """Whether open_clip can only build a ResNet CLIP of it: other keys would have it build, or fetch, another model."""
    if not isinstance(value, dict) or set(value) != MODEL_CONFIG_KEYS or type(value["quick_gelu"]) is not bool:
        return False
    vision, text = value["vision_cfg"], value["text_cfg"]
    if not isinstance(vision, dict) or not VISION_KEYS <= set(vision) <= VISION_KEYS | MORE_VISION_KEYS:
        return False
    if not isinstance(text, dict) or set(text) != TEXT_KEYS or vision.get("patch_size") is not None:
        return False
    layers = vision["layers"]
    vision_sizes = [vision[key] for key in vision if key not in ("layers", "patch_size")]
    sizes = [value["embed_dim"], *vision_sizes, *text.values()]
    return (
        isinstance(layers, list)
        and len(layers) == 4
        and all(type(size) is int and 0 < size <= LARGEST_SIZE for size in [*sizes, *layers])
        and text["width"] % text["heads"] == 0
        and vision["width"] % 2 == 0
    )


def _are_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == count
        and all(type(v) in (int, float) and math.isfinite(v) for v in value)
    )


def build_clip(model_config: Mapping[str, Any]) -> CLIP:
    """A CLIP drawn from torch's global generator, in eval mode (open_clip's own builder returns train mode), float32.

    Args:
        model_config: `embed_dim`, `quick_gelu`, `vision_cfg` and `text_cfg` of `open_clip.CLIP`; the last two as dicts.

    Raises:
        InputError: open_clip does not know a key, or the image tower is not a ModifiedResNet (no other has C2..C5).
    """
    config = copy.deepcopy(dict(model_config))
    try:
        model = CLIP(**config)
    except TypeError as error:
        raise InputError(f"model_config: open_clip cannot build this model ({error}); {REMEDY}") from None
    if not isinstance(model.visual, ModifiedResNet):
        raise InputError(
            "model_config: vision_cfg.layers: expected four numbers of blocks (a ResNet tower), got "
            f"{config['vision_cfg'].get('layers')!r}; {REMEDY}"
        )
    return model.eval()


def real_tower_config(architecture: str) -> dict[str, Any]:
    """`build_clip`'s argument for one of `REAL_TOWERS`."""
    if architecture not in REAL_TOWERS:
        raise InputError(f"vlm.architecture: expected one of {', '.join(REAL_TOWERS)}, got {architecture!r}")
    config = open_clip.get_model_config(architecture)
    return {key: config[key] for key in sorted(MODEL_CONFIG_KEYS)}


def save_vlm(
    model: CLIP, card: VlmCard, weights_path: str | os.PathLike[str], card_path: str | os.PathLike[str]
) -> None:
    """Write both files. The card comes last: where it is, its weights are."""
    VlmCard.from_dict(card.to_dict(), str(card_path))  # whoever reads it would refuse it
    state = model.state_dict()
    assert sha256_of_tensors(state) == card.weights_sha256, "this card describes another model"
    save_tensors(weights_path, state, {"architecture": card.architecture, "weights": card.weights})
    write_json(card_path, card.to_dict())


def load_card(path: str | os.PathLike[str]) -> VlmCard:
    """Read the card, or say what is wrong with it."""
    return VlmCard.from_dict(read_json(path, "the VLM's card", REMEDY), str(path))


def load_clip(weights_path: str | os.PathLike[str], card: VlmCard) -> CLIP:
    """The model of `card` with the weights of `weights_path`: eval mode, float32, on the CPU.

    Torch's generator is left as it was.

    Raises:
        InputError: no readable weights, weights of another architecture, or other weights than the card's.
    """
    tensors, _ = load_tensors(weights_path, "the VLM's weights", REMEDY)
    with torch.random.fork_rng(devices=[]):  # the random start is overwritten at once
        model = build_clip(card.model_config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise InputError(
            f"{weights_path}: not the weights of {card.architecture}: {differences(expected, found)}; {REMEDY}"
        )
    if sha256_of_tensors(tensors) != card.weights_sha256:
        raise InputError(f"{weights_path}: not the weights that the card describes: their hashes differ; {REMEDY}")
    model.load_state_dict(tensors)
    return model.float()


def differences(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], shown: int = 2) -> str:
    """In which names or shapes two state dicts differ, the first `shown` of them in words."""
    names = [
        name for name in [*expected, *(n for n in found if n not in expected)] if expected.get(name) != found.get(name)
    ]
    first = [f"{name}: expected {expected.get(name, 'none')}, got {found.get(name, 'none')}" for name in names[:shown]]
    rest = [f"and {len(names) - shown} more"] if len(names) > shown else []
    return ", ".join(first + rest)


def tokenize(model: CLIP, texts: Sequence[str]) -> Tensor:
    """Texts -> (len(texts), L) int64 tokens of CLIP's own tokenizer, L = `model.context_length`, zero padded.

    Raises:
        InputError: a text has more than L tokens; open_clip would cut it in silence.
    """
    room = model.context_length
    tokens = open_clip.tokenize(list(texts), context_length=room + 1)
    too_long = tokens[:, room] != 0  # the cut text's end mark stands there; a shorter text has padding
    if too_long.any():
        text = texts[int(too_long.nonzero()[0])]
        raise InputError(
            f"text: expected at most {room} tokens (start and end mark included), got more in {text!r}; "
            "shorten the template or the name, or raise vlm.miniature.context_length"
        )
    return tokens[:, :room]


class ImageTower(nn.Module):
    """CLIP's image tower as a detector's backbone, frozen as `mode` says through every `train()` call, a parent's too.

    Args:
        visual: open_clip's tower, attention pool included. It is used as it is, not copied.
        mode: `all`, `norm_eval` or `none`; see `freeze`.

    Source: F-VLM section 3.1; strides and stages of the authors' `clip_models.py`.
    """

    def __init__(self, visual: ModifiedResNet, mode: FreezeMode) -> None:
        super().__init__()
        self.visual = visual
        self.mode: FreezeMode = mode
        self.train(self.training)

    def train(self, mode: bool = True) -> "ImageTower":
        super().train(mode)
        freeze(self.visual, self.mode)
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) CLIP-normalised RGB -> {"C2".."C5": (N, C_l, H / stride_l, W / stride_l)}, strides 4, 8, 16, 32.

        H and W are multiples of 32.
        """
        x = self.visual.stem(images)
        features = {}
        for level, stage in enumerate(self._stages, start=2):
            features[f"C{level}"] = x = stage(x)
        return features

    @property
    def attnpool(self) -> AttentionPool2d:
        return self.visual.attnpool

    @property
    def channels(self) -> tuple[int, ...]:
        """Of C2..C5: (256, 512, 1024, 2048) for RN50."""
        return tuple(cast(Bottleneck, stage[-1]).conv3.out_channels for stage in self._stages)

    @property
    def _stages(self) -> tuple[nn.Sequential, ...]:
        return self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Those that this mode trains: none under `all`, never the attention pool's."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def hash(self) -> str:
        """Over every tensor of the tower, running statistics and attention pool included."""
        return sha256_of_tensors(self.visual.state_dict())

"""params.yaml as frozen dataclasses, validated whole before any work.

Every entry point (the command line, and through it DVC and Snakemake) calls `load_params`. All that is wrong is
reported at once, one line a finding. The JSON schema for editors is generated from the same dataclasses
(`python -m fvlm schema`).
"""

import dataclasses
import difflib
import math
import os
import re
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from .errors import InputError
from .io import read_text

SETTINGS = ("zsd", "ovod", "zsd_strict")
Setting = Literal["zsd", "ovod", "zsd_strict"]
Dataset = Literal["emoji", "coco_folder", "coco2017"]
FREEZE_MODES = ("all", "norm_eval", "none")
FreezeMode = Literal["all", "norm_eval", "none"]
WEIGHTS_OF_ALL_TOWERS = ("openai", "random")
WEIGHT_TAGS = {"RN50-quickgelu": ("yfcc15m", "cc12m")}  # open_clip's, besides openai
WEIGHT_FILES = (".pt", ".pth", ".bin", ".safetensors")
HUB_PREFIX = "hf-hub:"
LARGEST_WHOLE = 2**63 - 1
Precision = Literal["float32", "bfloat16"]
Images = Literal["split", "all"]
Vocabulary = Literal["scored", "masked", "all"]
Section = TypeVar("Section")


def spec(
    help: str, *, min: float | None = None, max: float | None = None, above: float | None = None, **default: Any
) -> Any:
    """A dataclass field with its meaning and its allowed range (`above` is an exclusive minimum)."""
    bounds = {"min": min, "max": max, "above": above}
    return field(metadata={"help": help, **{k: v for k, v in bounds.items() if v is not None}}, **default)


NOT_IN_THE_FILE = {"in_the_file": False}  # a field's metadata: no key of params.yaml


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where, in which precision, with how many threads and processes the stages compute: sums depend on all of it."""

    device: Literal["cpu", "cuda"] = spec("where tensors live")
    threads: int = spec("CPU threads of a process; never taken from Snakemake's --cores", min=1, max=256)
    precision: Precision = spec(
        "of the image tower's and the detector's layers, in training and detection; bfloat16 is autocast: weights, "
        "losses, cosines, softmax and boxes stay float32"
    )
    channels_last: bool = spec("keep channels innermost in memory, as tensor cores want it")
    compile: bool = spec("torch.compile the detector: minutes at the start for faster steps")
    processes: int = spec("processes that train one detector together, each on a GPU of its own", min=1, max=4096)


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """The embedded world: scenes rendered from Twemoji pictures in COCO's layout and format."""

    train_images: int = spec("scenes in train2017", min=1, max=200_000)
    val_images: int = spec("scenes in val2017", min=1, max=50_000)
    image_size: int = spec("width and height of a scene, pixels", min=64, max=2048)
    max_objects: int = spec("most single objects in a scene", min=1, max=40)
    seed: int = spec("seed of every scene", min=0)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Pictures and instance annotations, in COCO's layout."""

    dataset: Dataset = spec(
        "emoji: rendered here; coco_folder: pictures that you have; coco2017: downloaded, 42 GB of disk, or in root"
    )
    root: str | None = spec(
        "folder in COCO's layout; null for data/<dataset>. One that holds coco2017 is only read; the environment's "
        "FVLM_DATA_ROOT names one, too, and goes before this",
        default=None,
    )
    mirror: str | None = spec(
        "server to download coco2017 from, with its zips/ and annotations/; null for COCO's own. Sums are checked "
        "either way",
        default=None,
    )
    train_images: str = spec("folder of training pictures, below root", default="train2017")
    train_annotations: str = spec("training annotations, below root", default="annotations/instances_train2017.json")
    val_images: str = spec("folder of validation pictures, below root", default="val2017")
    val_annotations: str = spec("validation annotations, below root", default="annotations/instances_val2017.json")
    emoji: Emoji | None = spec("sizes of the embedded world; needed when dataset is emoji", default=None)


@dataclass(frozen=True, kw_only=True)
class Miniature:
    """Shape of the miniature CLIP: open_clip's own classes, small numbers."""

    layers: tuple[int, ...] = spec("bottleneck blocks in stages 2 to 5 of the image tower", min=1, max=40)
    width: int = spec("channels of the image tower's stem; C5 has 32 times as many", min=8, max=256)
    image_size: int = spec("pixels per side in pretraining, a multiple of 32", min=32, max=512)
    embed_dim: int = spec("size of the shared embedding", min=8, max=1024)
    text_width: int = spec("width of the text transformer", min=8, max=1024)
    text_layers: int = spec("layers of the text transformer", min=1, max=24)
    text_heads: int = spec("attention heads of the text transformer", min=1, max=16)
    context_length: int = spec("tokens in a caption, at most", min=16, max=77)


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Contrastive pretraining of the miniature CLIP on captioned pictures, never on a box."""

    steps: int = spec("optimiser steps", min=1)
    batch_size: int = spec("captioned pictures in a step", min=2)
    learning_rate: float = spec("AdamW's peak learning rate: of all but the image tower's convolutions", above=0)
    kernel_learning_rate: float = spec("Muon's peak learning rate: of the image tower's convolutions", above=0)
    weight_decay: float = spec("of both", min=0)
    warmup_steps: int = spec("steps of linear warm-up", min=0)
    threads: int = spec("CPU threads; a number of its own, since pretraining runs alone", min=1, max=256)
    held_out_pictures: int = spec("captioned pictures of the final accuracy check", min=81)


@dataclass(frozen=True, kw_only=True)
class Vlm:
    """The vision-language model whose image tower is frozen."""

    architecture: Literal[
        "miniature", "RN50-quickgelu", "RN50x4-quickgelu", "RN50x16-quickgelu", "RN50x64-quickgelu"
    ] = spec("open_clip architecture; OpenAI's weights were trained with QuickGELU")
    weights: str = spec(
        "pretrain: trained here (miniature only); random: for trying the code; openai: obtained and checked; a tag of "
        "open_clip, hf-hub:<owner>/<name>, or the path of a weights file: for other weights, trained with QuickGELU"
    )
    seed: int = spec("seed of initialisation and pretraining", min=0)
    miniature: Miniature | None = spec("needed when architecture is miniature", default=None)
    pretrain: Pretrain | None = spec("needed when weights is pretrain", default=None)


def weights_path(weights: str) -> Path | None:
    """The file that `vlm.weights` names; None where it names none. How it is written decides, not what is there.

    Snakemake makes this file an input of the vlm stage.
    """
    named = not weights.startswith(HUB_PREFIX) and ("/" in weights or weights.endswith(WEIGHT_FILES))
    return Path(os.path.expanduser(weights)) if named else None  # Path.expanduser fails for a user who is not there


@dataclass(frozen=True, kw_only=True)
class Splits:
    """How training images are chosen; which classes are base and novel is a data file of the package."""

    keep_empty: bool = spec("keep training images that hold no supervised box")


@dataclass(frozen=True, kw_only=True)
class Text:
    """Prompts of the class embeddings."""

    templates: Literal["clip80"] | tuple[str, ...] = spec("CLIP's 80 templates, or a list of texts with one {} each")
    background: str = spec("the word that stands for background")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The detector."""

    freeze: FreezeMode = spec("what of the image tower training may not change")
    image_size: int = spec(
        "longest side to, and square canvas of, the network input, pixels, a multiple of 64", min=64, max=2048
    )
    fpn_channels: int = spec("channels of P2..P6 and of the RPN", min=8, max=1024)
    anchor_scale: float = spec("anchor side in strides of its level", above=0)
    rpn_pre_nms_top_n: int = spec("anchors kept per level before NMS", min=1)
    rpn_post_nms_top_n: int = spec("proposals per image", min=1)
    rpn_nms_iou: float = spec("IoU of the proposals' NMS", above=0, max=1)
    canonical_box_size: float = spec("side of a box that is pooled from P4, pixels", above=0)
    head_channels: int = spec("channels of the box head's four convolutions", min=8, max=1024)
    head_fc_dim: int = spec("width of the box head's fully connected layer", min=8, max=4096)
    norm_momentum: float = spec("BatchNorm momentum in torch's sense (Flax's 0.997 is 0.003)", above=0, max=1)
    norm_eps: float = spec("BatchNorm epsilon", above=0)
    vlm_crop: Literal["authors", "aligned"] = spec(
        "where the VLM's crops sample C5: authors: as released, half a cell (16 pixels) to the lower right; "
        "aligned: at the cells' centres, so that a box over the whole picture gives CLIP's picture embedding"
    )
    temperature: float = spec("the detector's logits are cosine / (temperature * learnable scalar)", above=0)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Optimisation of the detector."""

    steps: int = spec("optimiser steps", min=1)
    batch_size: int = spec("images in a step, of all processes and passes together", min=1)
    accumulation: int = spec("passes into which each process splits its images of a step, to save memory", min=1)
    optimizer: Literal["sgd", "adamw"] = spec("sgd has momentum, no Nesterov")
    learning_rate: float = spec("peak learning rate", above=0)
    momentum: float = spec("sgd's momentum; not read by adamw", min=0, max=0.9999)
    weight_decay: float = spec("L2 decay (decoupled under adamw), not on norms and temperature", min=0)
    warmup_steps: int = spec("steps of linear warm-up", min=0)
    warmup_start: float = spec("learning rate at step 0 as a fraction of the peak", min=0, max=1)
    schedule: Literal["step", "cosine"] = spec("decay after warm-up")
    milestones: tuple[float, ...] = spec("fractions of steps at which schedule step decays", above=0, max=1)
    gamma: float = spec("factor of each decay of schedule step", above=0, max=1)
    background_weight: float = spec("weight of background regions in the classification loss", min=0, max=10)
    rpn_anchors_per_image: int = spec("sampled anchors per image", min=2)
    rpn_positive_fraction: float = spec("most positives among sampled anchors", above=0, max=1)
    rois_per_image: int = spec("sampled regions per image", min=2)
    roi_positive_fraction: float = spec("most positives among sampled regions", above=0, max=1)
    scale_jitter: tuple[float, float] = spec("range of the random scale relative to image_size", above=0, max=4)
    flip: float = spec("probability of a horizontal flip", min=0, max=1)
    max_boxes: int = spec("most ground-truth boxes of an image", min=1)
    workers: int = spec(
        "processes that load pictures for each training process; 0: it loads them itself; results do not depend on it",
        min=0,
    )
    checkpoint_every: int = spec("steps between checkpoints", min=1)
    seed: int = field(default=0, metadata=NOT_IN_THE_FILE)  # the one of `seeds` that is trained: `of_seed` sets it


@dataclass(frozen=True, kw_only=True)
class Detect:
    """The one inference that serves every protocol."""

    batch_size: int = spec("images in a step", min=1)
    workers: int = spec(
        "processes that load pictures; 0 loads in the detecting process; results do not depend on it", min=0
    )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is tried on the raw detections: each value of each with each; the headline's own are tried in any case."""

    alpha: tuple[float, ...] = spec("VLM weights for classes with boxes in training", min=0, max=1)
    beta: tuple[float, ...] = spec("VLM weights for the other classes", min=0, max=1)
    vlm_temperature: tuple[float | None, ...] = spec("null: the headline's", above=0)
    nms_iou: tuple[float | None, ...] = spec("null: the headline's", above=0, max=1)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Somebody's protocol: what it has of its own; all else is the headline's."""

    name: str = spec("as protocol_variants.csv shows it")
    source: str = spec("where it is to be read")
    images: Images | None = spec("as evaluate.images; absent or null: the headline's, here and below", default=None)
    vocabulary: Vocabulary | None = spec("as evaluate.vocabulary", default=None)
    renormalise: bool | None = spec("as evaluate.renormalise", default=None)
    vlm_background: bool | None = spec("as evaluate.vlm_background", default=None)
    alpha: float | None = spec("as evaluate.alpha", min=0, max=1, default=None)
    beta: float | None = spec("as evaluate.beta", min=0, max=1, default=None)
    nms_iou: float | None = spec("as evaluate.nms_iou", above=0, max=1, default=None)
    score_threshold: float | None = spec("as evaluate.score_threshold", min=0, max=1, default=None)
    max_detections: int | None = spec("as evaluate.max_detections", min=1, default=None)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """From raw detections to scores."""

    images: Images = spec("split: the pictures with a box of the protocol's classes (4,836 of COCO's); all: 5,000")
    vocabulary: Vocabulary = spec(
        "classes in the softmax. scored: the protocol's (65 rows); masked: all 80, the others at -inf (the same "
        "numbers but for rounding); all: all 80, and detections of the others take places among max_detections"
    )
    vlm_background: bool = spec("whether background takes part in the VLM's softmax")
    alpha: float = spec("VLM weight for classes with boxes in training", min=0, max=1)
    beta: float = spec("VLM weight for the other classes", min=0, max=1)
    renormalise: bool = spec("whether a region's fused scores are made to sum to 1, background included")
    vlm_temperature: float | None = spec("null: 1 / logit scale of the VLM at hand (CLIP's is 0.01)", above=0)
    nms_iou: float = spec("IoU of the per-class NMS", above=0, max=1)
    score_threshold: float = spec("least score of a detection", min=0, max=1)
    max_detections: int = spec("detections kept per image", min=1)
    sweep: Sweep = spec("the grid of fusion_sweep.csv")
    variants: tuple[Variant, ...] = spec("of protocol_variants.csv, beside fvlm/evaluation/variants.json", default=())
    processes: int = spec("that share the work, never taken from --cores; results do not depend on it", min=1, max=256)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is shown."""

    setting: Setting = spec("whose metrics are copied to metrics.json: the handle of `dvc metrics diff zsd ovod`")
    pictures: int = spec("validation pictures drawn with detections", min=0, max=200)
    score_threshold: float = spec("least score of a drawn detection", min=0, max=1)


@dataclass(frozen=True, kw_only=True)
class Params:
    """All of params.yaml."""

    settings: tuple[Setting, ...] = spec("training settings that are run and compared")
    seeds: tuple[int, ...] = spec(
        "every setting is trained with each: initialisation, order, augmentation and sampling of the detector's "
        "training, not the VLM and not the pictures; the first one's run is also at the paths without a seed",
        min=0,
    )
    compute: Compute = spec("device, precision, threads and processes")
    data: Data = spec("pictures and annotations")
    vlm: Vlm = spec("the vision-language model")
    splits: Splits = spec("training images")
    text: Text = spec("class embeddings")
    model: Model = spec("the detector")
    train: Train = spec("optimisation")
    detect: Detect = spec("inference")
    evaluate: Evaluate = spec("fusion, NMS and scores")
    report: Report = spec("tables, plots, pictures")


def load_params(path: str | os.PathLike[str] = "params.yaml") -> Params:
    """Read and validate params.yaml.

    Raises:
        InputError: the file is missing, is not YAML, or holds wrong keys or values: one line for each finding.
    """
    tree = read_tree(path)
    problems: list[str] = []
    params = _build(Params, tree, "", problems)
    if not problems:
        problems.extend(_cross_checks(params))
    if problems:
        raise InputError("\n".join(f"{path}: {problem}" for problem in problems))
    return of_seed(typing.cast(Params, params), params.seeds[0])


def of_seed(params: Params, seed: int) -> Params:
    """`params` for the training with `seed`."""
    return dataclasses.replace(params, train=dataclasses.replace(params.train, seed=seed))


def read_section(kind: type[Section], tree: Any, where: str) -> Section:
    """A section that stands in another file than params.yaml, from the mapping that `dataclasses.asdict` made of it.

    Raises:
        InputError: as `load_params`; `where` begins each line.
    """
    problems: list[str] = []
    section = _build(kind, tree, "", problems)
    if problems:
        raise InputError("\n".join(f"{where}: {problem}" for problem in problems))
    return typing.cast(Section, section)


def read_tree(
    path: str | os.PathLike[str] = "params.yaml",
    what: str = "params file",
    remedy: str = "copy one of recipes/*.yaml to params.yaml",
) -> Any:
    """A YAML file as nested dicts and lists, not validated. Snakemake takes its sections of params.yaml from here.

    Args:
        what, remedy: complete the error message where the file cannot be read.

    Raises:
        InputError: the file is missing or is not YAML.
    """
    text = read_text(path, what, remedy)
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no date or number; nested without end
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; a recipe with two `alpha:` lines must not run."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: the key {key!r} is given more than once")
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-4 as a text; people write it as a number.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _build(kind: type, tree: Any, where: str, problems: list[str]) -> Any:
    """An instance of the dataclass `kind` from a mapping; None where that is impossible, the reasons in `problems`."""
    if not isinstance(tree, dict):
        problems.append(f"{where or '(top level)'}: expected a section with keys, got {_shown(tree)}")
        return None
    before = len(problems)
    hints = get_type_hints(kind)
    fields = {f.name: f for f in _keys(kind)}
    prefix = f"{where}." if where else ""
    for key in tree:
        if key not in fields:
            near = _nearest(str(key), fields)
            problems.append(f"{prefix}{key}: unknown key; {near}allowed here: {', '.join(fields)}")
    values = {}
    for name, f in fields.items():
        if name in tree:
            values[name] = _convert(hints[name], tree[name], prefix + name, f.metadata, problems)
        elif f.default is dataclasses.MISSING:
            problems.append(
                f"{prefix}{name}: missing; expected {_allowed(hints[name], f.metadata)} ({f.metadata['help']})"
            )
    return kind(**values) if len(problems) == before else None


def _keys(kind: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that are keys of params.yaml."""
    return [f for f in dataclasses.fields(kind) if f.metadata.get("in_the_file", True)]


def _convert(kind: Any, value: Any, where: str, bounds: Any, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where, problems)
    if isinstance(kind, types.UnionType) or get_origin(kind) is typing.Union:
        members = get_args(kind)
        if value is None and type(None) in members:
            return None
        for member in members:
            if dataclasses.is_dataclass(member):
                return _build(typing.cast(type, member), value, where, problems)
            attempt: list[str] = []
            converted = _convert(member, value, where, bounds, attempt)
            if not attempt:
                return converted
            if get_origin(member) is tuple and isinstance(value, list):
                problems.extend(attempt)
                return None
    elif get_origin(kind) is tuple:
        members = get_args(kind)
        open_ended = members[-1] is Ellipsis
        if isinstance(value, list) and value and (open_ended or len(value) == len(members)):
            each = [members[0]] * len(value) if open_ended else members
            return tuple(
                _convert(member, item, f"{where}[{i}]", bounds, problems)
                for i, (member, item) in enumerate(zip(each, value, strict=True))
            )
    elif get_origin(kind) is Literal:
        if isinstance(value, str) and value in get_args(kind):
            return value
    elif kind is bool or kind is str:
        if isinstance(value, kind):
            return value
    elif kind is int:
        if isinstance(value, int) and abs(value) > LARGEST_WHOLE:  # torch's and NumPy's whole numbers have 64 bits
            problems.append(f"{where}: expected a whole number of at most {LARGEST_WHOLE}, got {_shown(value)}")
            return None
        if isinstance(value, int) and not isinstance(value, bool) and _in_range(value, bounds):
            return value
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool) and _in_range(value, bounds):
        return float(value)
    problems.append(f"{where}: expected {_allowed(kind, bounds)}, got {_shown(value)}")
    return None


def _in_range(value: float, bounds: Any) -> bool:
    return (
        abs(value) <= sys.float_info.max  # NaN, infinity, and what no float holds, are beyond
        and value >= bounds.get("min", -math.inf)
        and value <= bounds.get("max", math.inf)
        and value > bounds.get("above", -math.inf)
    )


def _allowed(kind: Any, bounds: Any) -> str:
    """What may stand there, in words."""
    if isinstance(kind, types.UnionType) or get_origin(kind) is typing.Union:
        return " or ".join(_allowed(member, bounds) for member in get_args(kind))
    if kind is type(None):
        return "null"
    if get_origin(kind) is tuple:
        members = get_args(kind)
        count = "a list, not empty, of" if members[-1] is Ellipsis else f"a list of {len(members)} of"
        return f"{count} {_allowed(members[0], bounds)}"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind)) if len(get_args(kind)) > 1 else repr(get_args(kind)[0])
    if dataclasses.is_dataclass(kind):
        return "a section with the keys " + ", ".join(f.name for f in _keys(kind))
    words = {bool: "true or false", str: "a text", int: "a whole number", float: "a number"}[kind]
    if kind in (int, float):
        low = f">= {bounds['min']}" if "min" in bounds else f"> {bounds['above']}" if "above" in bounds else ""
        high = f"<= {bounds['max']}" if "max" in bounds else ""
        words = " ".join([words, " and ".join(filter(None, [low, high]))]).strip()
    return words


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(key: str, names: Any) -> str:
    close = difflib.get_close_matches(key, list(names), n=1)
    return f"did you mean {close[0]}? " if close else ""


def _cross_checks(params: Params) -> Iterator[str]:
    """What one field cannot tell alone."""
    if len(set(params.settings)) != len(params.settings):
        yield f"settings: each setting once, got {list(params.settings)}"
    if len(set(params.seeds)) != len(params.seeds):
        yield f"seeds: each seed once, got {list(params.seeds)}"
    if params.report.setting not in params.settings:
        yield f"report.setting: expected one of settings ({', '.join(params.settings)}), got {params.report.setting!r}"
    if params.data.dataset == "emoji" and params.data.emoji is None:
        yield "data.emoji: missing; dataset emoji needs the section (see recipes/emoji.yaml)"
    if params.data.dataset == "coco_folder" and params.data.root is None:
        yield "data.root: missing; dataset coco_folder needs the folder that holds the pictures and annotations"
    if params.data.mirror is not None and params.data.dataset != "coco2017":
        yield f"data.mirror: goes with dataset coco2017; dataset {params.data.dataset} downloads nothing"
    elif params.data.mirror is not None and not re.fullmatch(r"https?://[^\s@?#]*[^\s@?#/]", params.data.mirror):
        # a password in params would go into logs and records; requests takes it from ~/.netrc
        where = "without a user (whose place is ~/.netrc), ?, # and a / at the end"
        yield f"data.mirror: expected http://... or https://..., {where}, got {params.data.mirror.split('@')[-1]!r}"
    if params.data.dataset == "emoji" and params.data.emoji and params.data.emoji.image_size % 32:
        yield f"data.emoji.image_size: expected a multiple of 32, got {params.data.emoji.image_size}"
    vlm = params.vlm
    if vlm.architecture == "miniature":
        if vlm.miniature is None:
            yield "vlm.miniature: missing; architecture miniature needs the section (see recipes/emoji.yaml)"
        else:
            if len(vlm.miniature.layers) != 4:
                count = len(vlm.miniature.layers)
                yield f"vlm.miniature.layers: expected 4 numbers, one for each of stages 2 to 5, got {count}"
            if vlm.miniature.image_size % 32:
                yield f"vlm.miniature.image_size: expected a multiple of 32, got {vlm.miniature.image_size}"
            if vlm.miniature.text_width % vlm.miniature.text_heads:
                yield (
                    f"vlm.miniature.text_heads: expected a divisor of text_width {vlm.miniature.text_width}, "
                    f"got {vlm.miniature.text_heads}"
                )
        if vlm.weights not in ("pretrain", "random"):
            yield (
                "vlm.weights: expected pretrain or random, which go with architecture miniature, "
                f"got {_shown(vlm.weights)}; other weights go with an RN50... architecture"
            )
    elif weights_path(vlm.weights) is None and not re.fullmatch(f"{HUB_PREFIX}[^/]+/[^/]+", vlm.weights):
        words = (*WEIGHTS_OF_ALL_TOWERS, *WEIGHT_TAGS.get(vlm.architecture, ()))
        if vlm.weights not in words:
            yield (
                f"vlm.weights: expected {', '.join(words)}, {HUB_PREFIX}<owner>/<name> or the path of a weights file "
                f"({', '.join(WEIGHT_FILES)}) with architecture {vlm.architecture}, got {_shown(vlm.weights)}; "
                f"{_nearest(vlm.weights, words)}pretrain goes with architecture miniature"
            )
    if vlm.weights == "pretrain" and vlm.pretrain is None:
        yield "vlm.pretrain: missing; weights pretrain needs the section (see recipes/emoji.yaml)"
    elif vlm.weights == "pretrain" and vlm.pretrain and vlm.pretrain.batch_size % 4:
        yield f"vlm.pretrain.batch_size: expected a multiple of 4 (pictures of a mosaic), got {vlm.pretrain.batch_size}"
    if params.model.image_size % 64:
        yield f"model.image_size: expected a multiple of 64 (P6's stride), got {params.model.image_size}"
    if params.train.scale_jitter[0] > params.train.scale_jitter[1]:
        yield f"train.scale_jitter: expected [low, high], got {list(params.train.scale_jitter)}"
    parts = params.compute.processes * params.train.accumulation
    if params.train.batch_size % parts:
        yield (
            f"train.batch_size: expected a multiple of compute.processes * train.accumulation = {parts}, "
            f"got {params.train.batch_size}"
        )
    if params.model.image_size == 64 and params.train.batch_size == params.train.accumulation:
        yield (
            "model.image_size: at 64 P6 has one cell, and batch norm needs more than one value: more pictures a pass "
            "(train.batch_size / train.accumulation), got 1"
        )
    if list(params.train.milestones) != sorted(params.train.milestones):
        yield f"train.milestones: expected rising fractions, got {list(params.train.milestones)}"
    if params.text.templates != "clip80":
        for i, template in enumerate(params.text.templates):
            if template.count("{}") != 1 or re.search("[{}]", template.replace("{}", "")):
                yield f"text.templates[{i}]: expected a text with one {{}} for the class name, got {template!r}"
    if not params.text.background.strip():
        yield "text.background: expected a word, got an empty text"
    for name in ("alpha", "beta", "vlm_temperature", "nms_iou"):
        values = getattr(params.evaluate.sweep, name)
        own = getattr(params.evaluate, name)
        resolved = [own if value is None else value for value in values]
        if len(set(resolved)) != len(resolved):
            yield f"evaluate.sweep.{name}: each value once, got {list(values)}"
    names = [variant.name for variant in params.evaluate.variants]
    if len(set(names)) != len(names):
        yield f"evaluate.variants: each name once, got {names}"


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of params.yaml, for editors and for Snakemake's `validate`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fvlm params.yaml",
        **_schema_of(Params, {}),
    }


def _schema_of(kind: Any, bounds: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        fields = _keys(kind)
        return {
            "type": "object",
            "additionalProperties": False,
            "required": [f.name for f in fields if f.default is dataclasses.MISSING],
            "properties": {
                f.name: {**_schema_of(hints[f.name], f.metadata), "description": f.metadata["help"]} for f in fields
            },
        }
    if isinstance(kind, types.UnionType) or get_origin(kind) is typing.Union:
        return {"anyOf": [_schema_of(member, bounds) for member in get_args(kind)]}
    if kind is type(None):
        return {"type": "null"}
    if get_origin(kind) is tuple:
        members = get_args(kind)
        size = {"minItems": 1} if members[-1] is Ellipsis else {"minItems": len(members), "maxItems": len(members)}
        return {"type": "array", "items": _schema_of(members[0], bounds), **size}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if kind in (bool, str):
        return {"type": {bool: "boolean", str: "string"}[kind]}
    names = {"min": "minimum", "max": "maximum", "above": "exclusiveMinimum"}
    return {"type": "integer" if kind is int else "number", **{names[k]: bounds[k] for k in names if k in bounds}}

"""Boxes for words: a trained F-VLM from a model folder, for any pictures and any names.

    pictures, names -> network -> RawDetections (both branches' similarities) -> `decide` -> Detections

The network runs once for a picture and a vocabulary. Weights, thresholds and a choice among the names come after it.
Every step is the pipeline's own: a validation picture gets the boxes that `detect` and `evaluate` gave it.

Where the names of one picture change again and again, the network runs once for the picture:

    picture -> `see` -> Seen (both branches' embeddings of its regions); Seen, names -> `compare` -> RawDetections
"""

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from open_clip import CLIP
from torch import Tensor
from tqdm import tqdm

from ..compute import autocast
from ..data.transforms import fit, render, scale_xyxy
from ..detector.detector import FVLM, Regions
from ..detector.trained import detect_batch, joined, load_trained
from ..errors import InputError
from ..evaluation.raw import RawDetections
from ..params import Evaluate, Precision
from ..vlm.clip import VlmCard
from ..vlm.prompts import fill
from ..vlm.text import embed_names
from ..vlm.text_tower import load_text_tower, token_count, tokenizer_facts
from .detections import Detections, decide
from .folder import MODEL, TEXT, ModelRecord, locate, read_record, read_text
from .pictures import Picture, as_pictures, as_pixels

SHOWN_NAME = 60  # letters of a name in an error message
MOST_REMEMBERED = 20_000  # embeddings of names: 80 MB at D = 1024
FEW_NAMES = 20  # that are embedded without a progress bar
BATCH_SIZE = 8
Item = TypeVar("Item")


class _Canvas(NamedTuple):
    """A picture as the network takes it."""

    image: Tensor  # (1, 3, S, S) float32, CLIP-normalised
    size_hw: tuple[int, int]  # on the canvas
    stored_hw: tuple[int, int]  # of the picture itself


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What the network sees in one picture, R regions, before any name is known.

    Args:
        proposals: (R, 4) float32 xyxy, pixels of the picture.
        proposal_scores: (R,) float32.
        boxes: (R, 4) float32, the refined proposals.
        detector: (R, D) float32, the box head's embeddings of the regions, of length 1.
        vlm: (R, D) float32, the VLM's, likewise.
        size_hw: height and width of the picture, pixels.
    """

    proposals: Tensor
    proposal_scores: Tensor
    boxes: Tensor
    detector: Tensor
    vlm: Tensor
    size_hw: tuple[int, int]

    @property
    def bytes(self) -> int:
        """In memory."""
        return sum(t.nbytes for t in (self.proposals, self.proposal_scores, self.boxes, self.detector, self.vlm))


def load_detector(
    model: str | os.PathLike[str] = "runs/zsd", *, device: str | torch.device = "cpu", precision: Precision = "float32"
) -> "Detector":
    """The detector of a model folder.

    Args:
        model: the folder, or `hf-hub:<owner>/<name>[@<revision>]`.
        device: where it computes.
        precision: of its layers; bfloat16 pays on a GPU. Similarities and scores are float32 either way.

    Raises:
        InputError: there is no such folder, or its files are damaged or do not belong together.
    """
    folder = locate(model)
    record = read_record(folder)
    remedy = "get the model folder again"
    network, card, _, model_sha256 = load_trained(folder / MODEL, remedy)
    if model_sha256 != record.model_sha256:
        raise InputError(
            f"{folder / MODEL}: not the detector that model.json beside it describes: their hashes differ; "
            f"run `python -m fvlm package --setting {record.setting}`, or {remedy}"
        )
    if tokenizer_facts(card.model_config) != record.tokenizer:
        raise InputError(
            f"{folder}: this open_clip cuts words into other tokens than the one that this model was made with; "
            "install the version that train.json names"
        )
    tower, embeddings = read_text(folder / TEXT, record)
    text_tower = load_text_tower(tower, card.model_config, str(folder / TEXT))
    return Detector(network, text_tower, embeddings, card, record, device=torch.device(device), precision=precision)


class Detector:
    """Finds what words name. Calls keep nothing but embeddings of words, so that several threads may share it.

    Args:
        network: the trained detector.
        text_tower: of the VLM.
        embeddings: (1 + K, D) of `record.names`.
        card: of the VLM.
        record: of the model folder.
    """

    def __init__(
        self,
        network: FVLM,
        text_tower: CLIP,
        embeddings: Tensor,
        card: VlmCard,
        record: ModelRecord,
        *,
        device: torch.device,
        precision: Precision = "float32",
    ) -> None:
        self.network = network.to(device).requires_grad_(False).eval()
        self.text_tower = text_tower.to(device)
        self.card = card
        self.record = record
        self.device = device
        self.precision = precision
        self._background = embeddings[0].to(device)
        self._embedding_of = dict(zip(map(_normal, record.names[1:]), embeddings[1:].to(device), strict=True))

    @property
    def evaluate(self) -> Evaluate:
        """The pipeline's fusion weights, NMS and limits: what holds where a call says nothing else."""
        return self.record.evaluate

    @property
    def supervised(self) -> tuple[str, ...]:
        """Names of the classes that had boxes in training, which are fused with alpha; all others with beta."""
        return self.record.supervised

    def supervised_among(self, names: Sequence[str], supervised: Collection[str] | None = None) -> tuple[str, ...]:
        """Those of `names` that are fused with alpha: those in `supervised`, or None for `self.supervised`."""
        seen = {_normal(name) for name in (self.supervised if supervised is None else supervised)}
        return tuple(name for name in names if _normal(name) in seen)

    def predict(
        self,
        images: Picture | Iterable[Picture],
        names: Sequence[str],
        *,
        alpha: float | None = None,
        beta: float | None = None,
        threshold: float | None = None,
        nms_iou: float | None = None,
        max_detections: int | None = None,
        supervised: Collection[str] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Detections | list[Detections]:
        """Boxes of the things that `names` name.

        Args:
            images: one picture, or any number of any sizes: paths, PIL images, arrays, tensors (see `as_pixels`).
            names: what to look for, each once; words or short phrases. They compete with each other and background.
            alpha, beta: weights of the VLM for supervised names and for others, 0 (detector only) to 1 (VLM only).
            threshold: least score. The pipeline's own is usually 0, which gives `max_detections` boxes; 0.3 is a
                beginning for pictures to look at.
            nms_iou: a box that overlaps a better one of its name by more is left out.
            max_detections: most boxes of a picture.
            supervised: which names are fused with alpha; None for those that had boxes in training.
            batch_size: pictures that the network sees at once; a matter of speed and memory.

        None stands for the model folder's own value (`self.evaluate`).

        Returns:
            One `Detections` for a single picture, a list for several.

        Raises:
            InputError: a picture cannot be read, or names or numbers are out of range. `stream` goes on instead.
        """
        pictures, single = as_pictures(images)
        evaluate = self.settings(
            alpha=alpha, beta=beta, threshold=threshold, nms_iou=nms_iou, max_detections=max_detections
        )
        found = []
        for outcome in self.stream(pictures, names, evaluate=evaluate, supervised=supervised, batch_size=batch_size):
            if isinstance(outcome, InputError):
                raise outcome
            found.append(outcome)
        return found[0] if single else found

    def stream(
        self,
        images: Iterable[Picture],
        names: Sequence[str],
        *,
        evaluate: Evaluate | None = None,
        supervised: Collection[str] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Iterator[Detections | InputError]:
        """`predict` for any number of pictures in constant memory; one that cannot be read becomes its InputError.

        Pictures are read ahead by a thread, two batches at most.

        Args:
            evaluate: of `settings`; None for the model folder's.

        Yields:
            One for each picture, in their order.
        """
        text = self.embed(names)  # so that what is wrong with the names is said before any picture is read
        vocabulary = _checked(names)
        for batch in _in_batches(_ahead(images, self._canvas, 2 * batch_size), batch_size):
            canvases = [item for item in batch if isinstance(item, _Canvas)]
            found: Iterator[Detections] = iter(())
            if canvases:
                found = iter(decide(self._raw(canvases, vocabulary, text, supervised), evaluate or self.evaluate))
            for item in batch:
                yield item if isinstance(item, InputError) else next(found)

    def raw(
        self,
        images: Picture | Iterable[Picture],
        names: Sequence[str],
        *,
        supervised: Collection[str] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> RawDetections:
        """What the network sees, before softmax, fusion and NMS: for `decide`, as often as wanted.

        Arguments as in `predict`.

        Returns:
            Of all pictures together, whose image_ids count from 0; category_ids are places in `names`, from 1. With
            P proposals a picture has 4 * P * (1 + K) bytes of similarities.
        """
        pictures, _ = as_pictures(images)
        if not pictures:
            raise InputError("images: expected at least one picture, got none")
        text, vocabulary = self.embed(names), _checked(names)
        regions: list[Regions] = []
        stored_hw: list[tuple[int, int]] = []
        for batch in _in_batches(map(self._canvas, pictures), batch_size):
            canvases = []
            for item in batch:
                if isinstance(item, InputError):
                    raise item
                canvases.append(item)
            regions += self._regions(canvases, text)
            stored_hw += [canvas.stored_hw for canvas in canvases]
        return self._as_raw(regions, stored_hw, vocabulary, supervised)

    @torch.no_grad()
    def see(self, picture: Picture) -> Seen:
        """Run the network on one picture, for `compare` with any names, as often as wanted.

        Raises:
            InputError: the picture cannot be read.
        """
        canvas = self._canvas(picture)
        if isinstance(canvas, InputError):
            raise canvas
        # cosines to the axes of the space are the coordinates of the normalised embedding, to the last bit
        axes = torch.eye(self.card.model_config["embed_dim"], device=self.device)
        with self._layers():
            (found,) = self.network.detect(canvas.image.to(self.device), [canvas.size_hw], axes)
        scale = scale_xyxy(canvas.stored_hw, canvas.size_hw)
        return Seen(
            proposals=found.proposals.cpu() / scale,
            proposal_scores=found.proposal_scores.cpu(),
            boxes=found.boxes.cpu() / scale,
            detector=found.detector_similarity.cpu(),
            vlm=found.vlm_similarity.cpu(),
            size_hw=canvas.stored_hw,
        )

    @torch.no_grad()
    def compare(self, seen: Seen, names: Sequence[str], *, supervised: Collection[str] | None = None) -> RawDetections:
        """Similarities of `seen` to `names`: two matrix products, and no inference. What `raw` gives for the picture.

        Raises:
            InputError: as `embed`.
        """
        text, vocabulary = F.normalize(self.embed(names).cpu().float(), dim=-1), _checked(names)
        regions = Regions(
            proposals=seen.proposals,
            proposal_scores=seen.proposal_scores,
            boxes=seen.boxes,
            detector_similarity=(seen.detector @ text.T).half(),
            vlm_similarity=(seen.vlm @ text.T).half(),
        )
        return self._as_raw([regions], [seen.size_hw], vocabulary, supervised)

    def settings(
        self,
        *,
        alpha: float | None = None,
        beta: float | None = None,
        threshold: float | None = None,
        nms_iou: float | None = None,
        max_detections: int | None = None,
    ) -> Evaluate:
        """`self.evaluate` with what is not None put in its place.

        Raises:
            InputError: a number is out of range.
        """
        given: dict[str, Any] = {
            "alpha": alpha,
            "beta": beta,
            "score_threshold": threshold,
            "nms_iou": nms_iou,
            "max_detections": max_detections,
        }
        changed = dataclasses.replace(self.evaluate, **{k: v for k, v in given.items() if v is not None})
        for name, value in (("alpha", alpha), ("beta", beta), ("threshold", threshold), ("nms_iou", nms_iou)):
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name}: expected a number from 0 to 1, got {value}")
        if max_detections is not None and max_detections < 1:
            raise InputError(f"max_detections: expected a number from 1 on, got {max_detections}")
        return changed

    def embed(self, names: Sequence[str], *, progress: bool = False) -> Tensor:
        """(1 + len(names), D) text embeddings, row 0 background. A name is embedded once, and then remembered.

        Past `MOST_REMEMBERED` names all but the model's own are forgotten.

        Args:
            progress: show a bar on stderr where many are new and stderr is a terminal.

        Raises:
            InputError: no name, an empty one, one twice, or one that is too long for the text tower.
        """
        vocabulary = _checked(names)
        remembered = self._embedding_of
        if len(remembered) > MOST_REMEMBERED:  # another dict, since another thread may be reading this one
            own = set(map(_normal, self.record.names[1:]))
            remembered = self._embedding_of = {name: row for name, row in remembered.items() if name in own}
        new = [name for name in vocabulary if _normal(name) not in remembered]
        for name in tqdm(new, desc="embed", unit="name", disable=None if progress and len(new) > FEW_NAMES else True):
            remembered[_normal(name)] = self._embedded(name)
        return torch.stack([self._background, *(remembered[_normal(name)] for name in vocabulary)])

    def _embedded(self, name: str) -> Tensor:
        try:
            return embed_names(self.text_tower, [name], self.record.templates)[0]
        except InputError:
            tokens = max(token_count(fill(template, name)) for template in self.record.templates)
            raise InputError(
                f"names: expected a name of at most {self.text_tower.context_length} tokens in its longest prompt, "
                f"got {tokens} for {_shown(name)}; shorten it"
            ) from None

    def _canvas(self, picture: Picture) -> _Canvas | InputError:
        try:
            pixels = as_pixels(picture)
        except InputError as error:
            return error
        size = self.network.model.image_size
        crop = fit(pixels, size)
        image = render([crop], size, self.card.image_mean, self.card.image_std)
        return _Canvas(image, crop.size_hw, (pixels.shape[1], pixels.shape[2]))

    def _raw(
        self, canvases: Sequence[_Canvas], vocabulary: tuple[str, ...], text: Tensor, supervised: Collection[str] | None
    ) -> RawDetections:
        regions = self._regions(canvases, text)
        return self._as_raw(regions, [canvas.stored_hw for canvas in canvases], vocabulary, supervised)

    @torch.no_grad()
    def _regions(self, canvases: Sequence[_Canvas], text: Tensor) -> list[Regions]:
        images = torch.cat([canvas.image for canvas in canvases]).to(self.device)
        with self._layers():
            return detect_batch(
                self.network, images, [c.size_hw for c in canvases], [c.stored_hw for c in canvases], text
            )

    @contextlib.contextmanager
    def _layers(self) -> Iterator[None]:
        """The precision in which the network's layers compute."""
        # TF32, torch's default for convolutions on a GPU, has three digits; the pipeline computes without it
        exact = (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
            if self.device.type == "cuda"
            else contextlib.nullcontext()
        )
        with exact, autocast(self.device, self.precision):
            yield

    def _as_raw(
        self,
        regions: Sequence[Regions],
        stored_hw: Sequence[tuple[int, int]],
        vocabulary: tuple[str, ...],
        supervised: Collection[str] | None,
    ) -> RawDetections:
        return RawDetections(
            image_ids=torch.arange(len(regions)),
            image_sizes_hw=torch.tensor(stored_hw),
            **joined(regions),
            names=(self.record.background, *vocabulary),
            category_ids=tuple(range(1, 1 + len(vocabulary))),
            detector_temperature=self.network.temperature.item(),
            vlm_temperature=self.card.temperature,
            supervised=self.supervised_among(vocabulary, supervised),
            setting=self.record.setting,
            model_sha256=self.record.model_sha256,
        )


def _normal(name: str) -> str:
    """Names that CLIP's tokenizer, which lowers letters and joins spaces, cannot tell apart are one."""
    return " ".join(name.split()).lower()


def _checked(names: Sequence[str]) -> tuple[str, ...]:
    """`names` without the spaces around them."""
    if isinstance(names, str):
        raise InputError(f"names: expected a list of names, got one text {_shown(names)}; write [{_shown(names)}]")
    kept: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"names: expected texts, got {type(name).__name__} {_shown(str(name))}")
        key = _normal(name)
        if not key:
            raise InputError("names: expected words, got an empty name; leave it out")
        if key in kept:
            raise InputError(f"names: {_shown(name)} is given twice; name it once, since it would compete with itself")
        kept[key] = name.strip()
    if not kept:
        raise InputError("names: expected at least one name to look for, got none")
    return tuple(kept.values())


def _shown(name: str) -> str:
    return repr(name if len(name) <= SHOWN_NAME else name[: SHOWN_NAME - 3] + "...")


def _ahead(images: Iterable[Picture], load: Callable[[Picture], Item], most: int) -> Iterator[Item]:
    """`load` of each picture, in their order, computed by a thread up to `most` pictures before it is asked for."""
    with ThreadPoolExecutor(1, thread_name_prefix="pictures") as reader:
        waiting: deque[Future[Item]] = deque()
        try:
            for picture in images:
                waiting.append(reader.submit(load, picture))
                if len(waiting) == most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    if size < 1:
        raise InputError(f"batch_size: expected a number from 1 on, got {size}")
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch

"""A detector of fixed names as one ONNX file, for machines without Python or PyTorch.

    image (1, 3, S, S), size_hw (2,) -> boxes (D, 4), scores (D,), classes (D,)

The names' embeddings, their fusion weights, both non-maximum suppressions and all limits are in the file. Outside it
are reading a picture, scaling it onto the canvas, and scaling the boxes back; the file's metadata says how.
"""

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from ..compute import set_up_cpu
from ..detector.box_head import REGION_CODER, as_regions, taps_of_pyramid
from ..detector.detector import FVLM, cosine
from ..detector.fpn import STRIDES
from ..detector.rpn import best_of_levels, has_area, make_anchors
from ..detector.scores import class_log_probs, fuse_scores
from ..errors import InputError
from ..io import write_aside
from ..params import Evaluate
from .command import names_from, writable
from .detector import Detector, load_detector
from .folder import DECIDING

OPSET = 20
IR_VERSION = 10  # which every runtime that has this opset reads
LEFT_OUT = -1.0  # score of what is no proposal
METADATA_KEY = "fvlm"
EXTRA = 'the extra "onnx" is not installed: pip install "fvlm[onnx]"'


def run(
    *,
    model: str,
    classes: str | None,
    classes_file: str | None,
    threshold: float | None,
    alpha: float | None,
    beta: float | None,
    output: str,
) -> int:
    """`python -m fvlm export`: write the detector of a model folder for `classes`; arguments as of `predict`.

    Raises:
        InputError: as `export`; nothing has been written then.
    """
    names = names_from(classes, classes_file)
    set_up_cpu(1)
    detector = load_detector(model)
    with writable():
        export(detector, names, output, evaluate=detector.settings(alpha=alpha, beta=beta, threshold=threshold))
    print(f"export: {output}, {os.path.getsize(output) / 1e6:.1f} MB, {len(names)} names")
    return 0


class FixedVocabulary(nn.Module):
    """Class scores of the regions of one picture, every shape known beforehand.

    What `FVLM.detect`, `class_log_probs` and `fuse_scores` compute, for one picture. Suppressed proposals are not
    dropped, which would make shapes depend on the picture, but their scores are `LEFT_OUT`.

    Args:
        network: in eval mode, on the CPU.
        text: (1 + K, D) embeddings, row 0 background.
        supervised: (K,) bool, which classes are fused with alpha.
        evaluate: fusion.
        vlm_temperature: > 0.
    """

    anchors: Tensor
    text: Tensor
    supervised: Tensor

    def __init__(
        self, network: FVLM, text: Tensor, supervised: Tensor, evaluate: Evaluate, vlm_temperature: float
    ) -> None:
        super().__init__()
        self.network = network
        self.evaluate = evaluate
        self.detector_temperature = network.temperature.item()
        self.vlm_temperature = vlm_temperature
        size = network.model.image_size
        anchors = make_anchors([(size // stride, size // stride) for stride in STRIDES], network.model.anchor_scale)
        self.anchor_counts = [len(of_level) for of_level in anchors]
        self.register_buffer("anchors", torch.cat(anchors))
        self.register_buffer("text", text)
        self.register_buffer("supervised", supervised)

    def forward(self, image: Tensor, size_hw: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, S, S) and (2,) float32 -> boxes (1, R, 4) xyxy on the canvas, scores (1, K, R).

        R is `rpn_post_nms_top_n`, or fewer where the pyramid has not as many anchors.
        """
        limit = size_hw.flip(0).repeat(2)
        features = self.network.tower(image)
        pyramid = self.network.fpn(features)
        proposals, is_proposal = self._proposals(pyramid, limit)
        # `pool_pyramid`, whose embedding_bag the exporter would write as a loop over the bins
        table, cells, weights = taps_of_pyramid(pyramid, [proposals], self.network.model.canonical_box_size)
        bins = sum(table[of_tap] * weight[:, None] for of_tap, weight in zip(cells.T, weights.T, strict=True))
        embeddings, deltas = self.network.box_head(as_regions(bins))
        of_detector = cosine(embeddings, self.text)
        of_vlm = cosine(self.network.embed_by_vlm(features["C5"], [proposals]), self.text)
        background = self.evaluate.vlm_background
        fused = fuse_scores(
            class_log_probs(of_detector, self.detector_temperature),
            class_log_probs(of_vlm, self.vlm_temperature, background=background),
            self.supervised,
            alpha=self.evaluate.alpha,
            beta=self.evaluate.beta,
            renormalise=self.evaluate.renormalise,
        )
        scores = torch.where(is_proposal[:, None], fused[:, 1:], LEFT_OUT)
        boxes = _clipped(REGION_CODER.decode_single(deltas, proposals), limit)
        return boxes[None], scores.T[None]

    def _proposals(self, pyramid: dict[str, Tensor], limit: Tensor) -> tuple[Tensor, Tensor]:
        """Those of `propose`, in its order, then others as padding: boxes (R, 4), which are proposals (R,)."""
        model = self.network.model
        logits, deltas = self.network.rpn(pyramid)
        anchors = list(self.anchors.split(self.anchor_counts))
        levels, scores, boxes = best_of_levels(logits, deltas, anchors, model.rpn_pre_nms_top_n)
        candidates = _clipped(boxes[0], limit)
        objectness = torch.where(has_area(candidates), scores[0], LEFT_OUT)
        apart = levels[:, None] * (candidates.max() + 1)  # no box of a level overlaps one of another; as `batched_nms`
        kept = nms(candidates + apart, objectness, model.rpn_nms_iou)
        of_kept = torch.zeros_like(objectness).index_fill(0, kept, 1)
        best = torch.where(of_kept > 0, objectness, LEFT_OUT).topk(min(model.rpn_post_nms_top_n, len(candidates)))
        return candidates[best.indices], best.values >= 0


def _clipped(boxes: Tensor, limit: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), limit)


def export(
    detector: Detector,
    names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    evaluate: Evaluate | None = None,
    supervised: Collection[str] | None = None,
) -> None:
    """Write `detector` for these names to one ONNX file.

    Inputs are `image`, (1, 3, S, S) float32, as `render` makes it, and `size_hw`, (2,) float32, height and width of the
    picture on that canvas. Outputs are `boxes`, (D, 4) float32 xyxy in pixels of the canvas, `scores` (D,) float32,
    the best first, and `classes` (D,) int64, places in `names`. The file's metadata has, under "fvlm", as JSON: names,
    which of them are supervised, size of the canvas, mean and deviation, in words what is to be done before and after,
    and where the model comes from.

    Boxes and scores are those of `Detector.predict`, with two exceptions. There similarities are rounded to float16.
    And anchors of exactly equal objectness, which even surfaces have, are taken in the order of each library's top-k:
    a few proposals are then others.

    Args:
        detector: on the CPU, of precision float32.
        names: what it shall find, each once.
        evaluate: of `Detector.settings`; None for the model folder's.
        supervised: which names are fused with alpha; None for those that had boxes in training.

    Raises:
        InputError: the exporter is not installed, or a name is refused.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (what torch writes the file with)
    except ImportError:
        raise InputError(f"export: {EXTRA}") from None
    evaluate = evaluate or detector.evaluate
    text = detector.embed(names, progress=True)
    chosen = detector.supervised_among(names, supervised)
    temperature = detector.card.temperature if evaluate.vlm_temperature is None else evaluate.vlm_temperature
    fixed = FixedVocabulary(
        detector.network, text, torch.tensor([name in chosen for name in names]), evaluate, temperature
    ).eval()
    with write_aside(path) as aside:  # opened first: what cannot be written is said before the work
        whole = _joined(fixed, len(names), evaluate)
        onnx.helper.set_model_props(whole, {METADATA_KEY: json.dumps(_facts(detector, names, chosen, evaluate))})
        onnx.checker.check_model(whole)
        onnx.save(whole, str(aside))


def _joined(fixed: FixedVocabulary, classes: int, evaluate: Evaluate) -> Any:
    """The network as torch exports it, followed by the suppression; an onnx.ModelProto."""
    import onnx

    size = fixed.network.model.image_size
    example = (torch.zeros(1, 3, size, size), torch.tensor([float(size), float(size)]))
    with tempfile.TemporaryDirectory() as folder, _quiet(), torch.no_grad():
        network_file = Path(folder) / "network.onnx"
        torch.onnx.export(
            fixed,
            example,
            network_file,
            input_names=["image", "size_hw"],
            output_names=["region_boxes", "region_scores"],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        network = onnx.load(network_file)
    network.ir_version = IR_VERSION
    regions = network.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    last = onnx.parser.parse_model(_suppression(regions, classes, evaluate))
    return onnx.compose.merge_models(
        network, last, io_map=[("region_boxes", "region_boxes"), ("region_scores", "region_scores")]
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and warns of its own optimisations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _suppression(regions: int, classes: int, evaluate: Evaluate) -> str:
    """What `best_detections` computes, in ONNX's own language. Where two scores are equal the order may differ."""
    least = float(np.nextafter(np.float32(evaluate.score_threshold), np.float32(0)))  # "greater than", there
    least = least if least > 0 else LEFT_OUT / 2
    return f"""
        <ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
        suppression (float[1,{regions},4] region_boxes, float[1,{classes},{regions}] region_scores)
            => (float[D,4] boxes, float[D] scores, int64[D] classes)
            <int64[1] most = {{{evaluate.max_detections}}}, float[1] iou = {{{evaluate.nms_iou!r}}},
             float[1] least = {{{least!r}}}, int64[1] first = {{0}}, int64[1] second = {{1}}>
        {{
            selected = NonMaxSuppression (region_boxes, region_scores, most, iou, least)
            selected_scores = GatherND (region_scores, selected)
            found = Shape (selected_scores)
            count = Min (most, found)
            scores, order = TopK (selected_scores, count)
            best = Gather (selected, order)
            of_batch, class, region = Split <axis = 1, num_outputs = 3> (best)
            classes = Squeeze (class, second)
            rows = Squeeze (region, second)
            of_image = Squeeze (region_boxes, first)
            boxes = Gather (of_image, rows)
        }}
    """


def _facts(detector: Detector, names: Sequence[str], supervised: Sequence[str], evaluate: Evaluate) -> dict[str, Any]:
    """What is to be known beside the graph."""
    size = detector.network.model.image_size
    return {
        "names": list(names),
        "supervised": list(supervised),
        "canvas": size,
        "image_mean": list(detector.card.image_mean),
        "image_std": list(detector.card.image_std),
        "before": f"RGB in 0..1, resized so that the longer side is {size} (bilinear, half-pixel centres, no "
        "antialias), minus image_mean, divided by image_std, at the top left of a canvas of zeros; size_hw is its size",
        "after": "boxes are xyxy in pixels of the canvas: multiply x by the picture's width / size_hw[1], y by its "
        "height / size_hw[0]",
        "evaluate": {key: getattr(evaluate, key) for key in DECIDING},
        "setting": detector.record.setting,
        "model_sha256": detector.record.model_sha256,
    }

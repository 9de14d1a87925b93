"""What a training will need, said before its first step."""

import datetime
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from ..compute import autocast
from ..detector.box_head import pool_pyramid
from ..detector.detector import FVLM
from ..detector.fpn import STRIDES
from ..detector.rpn import ASPECT_RATIOS
from ..params import Params

GIB = 2**30
FLOAT32_BYTES = 4
ALIVE_MAPS = 4  # of the tower's largest: a block's input, its branch's input and output, and the sum
ANCHOR_LOSS_FLOATS = 20  # an anchor's logit and deltas in float32, their errors, losses and gradients
ANCHOR_TARGET_BYTES = 19  # four deltas and three flags

TRIED_IMAGES = {"cpu": 2, "cuda": 8}  # of the forward pass that is timed


@dataclass(frozen=True)
class Memory:
    """Estimated bytes of a training process at the height of a step, without what torch and CUDA take for themselves.

    weights: parameters, buffers, gradients and the optimiser's state. activations: what a pass keeps for its way back.
    rest: pictures, targets, and what is alive for a moment only.
    """

    weights: int
    activations: int
    rest: int

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.rest


def preflight(detector: FVLM, params: Params, device: torch.device) -> str:
    """The lines that say what will be trained and how much memory that takes, on a GPU beside what is free."""
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in detector.parameters()) - trained
    memory = estimate_memory(detector, params)
    compute, train = params.compute, params.train
    pictures = train.batch_size // compute.processes // train.accumulation
    lines = [
        f"train: {trained:,} parameters train, {frozen:,} are frozen (freeze: {params.model.freeze})",
        f"train: a step is {train.batch_size} pictures = {compute.processes} processes x {train.accumulation} passes x "
        f"{pictures}, in {compute.precision}; about {memory.total / GIB:.2g} GiB a process, "
        f"{memory.activations / GIB:.2g} of it activations (estimated)",
    ]
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        lines.append(f"train: {free / GIB:.1f} GiB are free on {torch.cuda.get_device_name(device)}")
        if memory.total > free:
            lines.append(f"warning: this may not be enough; {_advice(params)}")
    return "\n".join(lines)


def out_of_memory(params: Params) -> str:
    """The error of a step that did not fit."""
    return f"train: the GPU's memory is not enough for a step; {_advice(params)}"


def _advice(params: Params) -> str:
    parts = params.compute.processes * params.train.accumulation
    return f"raise train.accumulation above {params.train.accumulation} (batch_size is a multiple of it, now {parts})"


def estimate_memory(detector: FVLM, params: Params) -> Memory:
    """Of one process. The activations are those of the network itself, run on torch's fake tensors: shapes, no numbers.

    It is no bound: a convolution's workspace and the allocator's gaps are not in it.
    """
    train, size = params.train, params.model.image_size
    share = train.batch_size // params.compute.processes
    images = share // train.accumulation
    number_bytes = FLOAT32_BYTES if params.compute.precision == "float32" else 2

    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    tensors = [*detector.parameters(), *detector.buffers()]
    # with passes: the box loss's of the passes so far, and of this one; with processes: what is sent, and its sum
    gradients = trained * (1 + 2 * (train.accumulation > 1) + 2 * (params.compute.processes > 1))
    moments = trained * (2 if train.optimizer == "adamw" else 1)
    weights = FLOAT32_BYTES * (sum(t.numel() for t in tensors) + gradients + moments)

    anchors = sum((size // stride) ** 2 * len(ASPECT_RATIOS) for stride in STRIDES)
    largest = images * detector.tower.channels[0] * (size // STRIDES[0]) ** 2 * number_bytes
    rest = (
        images * 3 * size**2 * FLOAT32_BYTES
        + share * anchors * ANCHOR_TARGET_BYTES
        + images * anchors * ANCHOR_LOSS_FLOATS * FLOAT32_BYTES
        + ALIVE_MAPS * largest
    )
    return Memory(weights, _activation_bytes(detector, images, params), rest)


def _activation_bytes(detector: FVLM, images: int, params: Params) -> int:
    """Bytes of all that the network's layers keep for the way back, each storage once."""
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no later one gets the same key
    own: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    def run(module: nn.Module, argument: Any) -> Any:
        tensors = {}
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            own.add(keep(tensors[name]).untyped_storage()._cdata)
        return functional_call(module, tensors, (argument,))

    size, model = params.model.image_size, params.model
    hooks = []
    if params.compute.processes > 1:  # norms over several processes keep what is otherwise made again
        norms = [m for part in (detector.fpn, detector.rpn, detector.box_head) for m in part.modules()]
        hooks = [m.register_forward_hook(lambda *of: keep(of[-1])) for m in norms if isinstance(m, nn.BatchNorm2d)]
    was_training = detector.training
    detector.eval()  # what a batch norm keeps is the same, but in train mode it refuses to see a single value
    with (
        FakeTensorMode(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        autocast(torch.device("cpu"), params.compute.precision),
    ):
        with torch.set_grad_enabled(detector.tower.mode != "all"):
            features = run(detector.tower, torch.empty(images, 3, size, size))
        pyramid = run(detector.fpn, features)
        run(detector.rpn, pyramid)
        regions = [torch.empty(params.train.rois_per_image, 4) for _ in range(images)]
        run(detector.box_head, pool_pyramid(pyramid, regions, model.canonical_box_size))
    detector.train(was_training)
    for hook in hooks:
        hook.remove()
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


def say_duration(detector: FVLM, params: Params, device: torch.device) -> str:
    """The line that says how long the training will take; see `estimate_step_s`."""
    per_step_s, steps = estimate_step_s(detector, params, device), params.train.steps
    whole = datetime.timedelta(seconds=round(per_step_s * steps))
    compiled = ", not compiled" if params.compute.compile else ""
    return f"train: about {per_step_s:.2g} s a step, {whole} h for {steps} (estimated from a forward pass{compiled})"


def estimate_step_s(detector: FVLM, params: Params, device: torch.device) -> float:
    """Seconds of a step of one process, from the second forward pass of a few blank pictures.

    A way back takes twice as long as the way there; a frozen tower has none, and with accumulation box head and pyramid
    have a second one (`fvlm.training.step`). Loading goes on beside a step and counts only where it is slower; that,
    matching and what the processes say to each other are not in it. The detector, on `device`, stays as it is, and so
    do torch's random states.
    """
    model, train = params.model, params.train
    images = train.batch_size // params.compute.processes // train.accumulation
    tried = min(images, TRIED_IMAGES[device.type])
    pictures = torch.zeros(tried, 3, model.image_size, model.image_size, device=device)
    whole = torch.tensor([0.0, 0, model.image_size, model.image_size], device=device)
    regions = [whole.expand(train.rois_per_image, 4)] * tried

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def times_of_parts() -> tuple[float, ...]:
        began = now()
        features = detector.tower(pictures)
        after_tower = now()
        pyramid = detector.fpn(features)
        after_fpn = now()
        detector.rpn(pyramid)
        after_rpn = now()
        detector.box_head(pool_pyramid(pyramid, regions, model.canonical_box_size))
        return after_tower - began, after_fpn - after_tower, after_rpn - after_fpn, now() - after_rpn

    was_training = detector.training
    detector.eval()  # no batch norm takes statistics
    with torch.compiler.set_stance("force_eager"), torch.no_grad(), autocast(device, params.compute.precision):
        times_of_parts()  # fills caches
        tower_s, fpn_s, rpn_s, box_s = times_of_parts()
    detector.train(was_training)
    of_pass = tower_s * (1 if model.freeze == "all" else 3) + 3 * (fpn_s + rpn_s + box_s)
    if train.accumulation > 1:
        of_pass += 2 * (fpn_s + box_s)
    return of_pass * images / tried * train.accumulation

"""The training loop: each step is a function of the weights, the step's number and the seed alone."""

import datetime
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoint import load_checkpoint, save_checkpoint
from ..data.dataset import TrainingPictures
from ..data.loading import training_batches
from ..detector.detector import FVLM
from ..errors import InputError
from ..params import Precision, Train
from ..schedule import learning_rate
from ..vlm.clip import ImageTower
from .parallel import ALONE, World, synchronize_norms
from .step import compute_gradients

COLUMNS = (
    "step",
    "loss",
    "loss_rpn_score",
    "loss_rpn_box",
    "loss_class",
    "loss_box",
    "learning_rate",
    "temperature",
    "images_per_s",
)
TIMED_AFTER = 10  # steps before the clock that estimates the run's time starts, and steps that it measures
PLAIN_LINES = 10  # progress lines of a run that is not on a terminal
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class TrainingDiverged(InputError):
    """Loss or weights are no longer finite: the params, above all the learning rate, do not suit the data."""


def train(
    detector: FVLM,
    pictures: TrainingPictures,
    text: Tensor,
    params: Train,
    *,
    device: torch.device,
    checkpoint: Path,
    precision: Precision = "float32",
    world: World = ALONE,
) -> list[dict[str, Any]]:
    """Train `detector` in place, going on from `checkpoint` where there is one.

    A checkpoint is written every `params.checkpoint_every` steps and after the last; the caller removes it once the
    results are safe. A run that was killed at any point and is called again with the same arguments ends with the same
    weights, bit for bit.

    A GPU is not waited for at every step: a step's losses are read when the next one has been sent to it.

    Args:
        detector: built from the same seed at every call and in every process; it is left in train mode.
        pictures: items by (epoch, index), see `fvlm.data.dataset`.
        text: (1 + K, D) embeddings of background and the K supervised classes.
        precision: of the network's layers.
        world: the processes that call this together; all reach the same weights, and rank 0 writes the checkpoint.

    Returns:
        The rows of losses.csv, one per step from 1, with `COLUMNS`; numbers have six significant digits.

    Raises:
        TrainingDiverged: the loss or a weight is not finite. The checkpoint of the last finite state stays.
        InputError: a picture cannot be read, or the processes do not see the same checkpoint.
    """
    detector.to(device).train()
    if world.size > 1:
        synchronize_norms(detector)
    text = text.to(device)
    optimizer = build_optimizer(detector, params)
    done, rows = load_checkpoint(checkpoint, detector, [optimizer])
    if world.total(torch.tensor(done, device=device)) != done * world.size:
        raise InputError(
            f"{checkpoint}: rank {world.rank} of the training processes sees another checkpoint than the rest; "
            "run them all in one folder that every machine shares"
        )
    if done and world.is_main:
        print(f"train: going on after step {done} of {params.steps} ({checkpoint})", flush=True)
    progress = _Progress(params.steps, done, device) if world.is_main else None
    batches = training_batches(pictures, params, after_step=done, device=device, rank=world.rank, world_size=world.size)
    waiting: list[_Reading] = []
    began = time.perf_counter()
    for step, batch in enumerate(batches, start=done + 1):
        rate = _learning_rate(step, params)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        temperature = detector.temperature.detach().clone()
        terms = compute_gradients(detector, batch, text, params, step=step, precision=precision, world=world)

        now = time.perf_counter()
        waiting.append(_Reading(step, rate, params.batch_size / (now - began), terms, temperature))
        began = now
        is_checkpoint = step % params.checkpoint_every == 0 or step == params.steps
        while len(waiting) > (1 if device.type == "cuda" and not is_checkpoint else 0):
            rows.append(waiting.pop(0).row())
            if progress:
                progress.show(rows[-1])
        optimizer.step()
        if is_checkpoint:
            _check_weights(detector, step, rate)
            if world.is_main:
                save_checkpoint(checkpoint, detector, [optimizer], step, rows)
    if progress:
        progress.close()
    return rows


class _Reading:
    """A step's numbers on their way from the device."""

    def __init__(
        self, step: int, rate: float, images_per_s: float, terms: dict[str, Tensor], temperature: Tensor
    ) -> None:
        self.step, self.rate, self.images_per_s = step, rate, images_per_s
        self.names = ("loss", *(f"loss_{name}" for name in terms), "temperature")
        losses = list(terms.values())
        on_device = torch.stack([torch.stack(losses).sum(), *losses, temperature])
        self.numbers = on_device.to("cpu", non_blocking=True)
        self.arrived = None
        if on_device.is_cuda:
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def row(self) -> dict[str, Any]:
        """The step's row of losses.csv.

        Raises:
            TrainingDiverged: a loss is not finite.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        values = dict(zip(self.names, self.numbers.tolist(), strict=True))
        temperature = values.pop("temperature")
        _check_finite(values, self.step, self.rate)
        row = {
            "step": self.step,
            **values,
            "learning_rate": self.rate,
            "temperature": temperature,
            "images_per_s": self.images_per_s,
        }
        return {name: value if name == "step" else float(f"{value:.6g}") for name, value in row.items()}


def build_optimizer(detector: nn.Module, params: Train) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum and no Nesterov, over the parameters that have a gradient.

    Biases are decayed. Norms, the temperature and the VLM's tower (where `freeze` lets it train) are not.

    Source: F-VLM's released config: paths with `bn`, `vision_model`, `temperature` or `attnpool` have no weight decay.
    """
    undecayed = set(_undecayed(detector))
    trained = [(name, p) for name, p in detector.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if name not in undecayed], "weight_decay": params.weight_decay},
        {"params": [p for name, p in trained if name in undecayed], "weight_decay": 0.0},
    ]
    if params.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=params.learning_rate, momentum=params.momentum)
    return torch.optim.AdamW(groups, lr=params.learning_rate)


def _undecayed(detector: nn.Module) -> Iterator[str]:
    """Names of the parameters that weight decay leaves alone."""
    for prefix, module in detector.named_modules():
        if isinstance(module, (*NORMS, ImageTower)):
            yield from (name for name, _ in module.named_parameters(prefix))
    yield "temperature_scale"


def _learning_rate(step: int, params: Train) -> float:
    return learning_rate(
        step - 1,
        steps=params.steps,
        peak=params.learning_rate,
        warmup_steps=params.warmup_steps,
        warmup_start=params.warmup_start,
        schedule=params.schedule,
        milestones=params.milestones,
        gamma=params.gamma,
    )


def _check_finite(values: dict[str, float], step: int, rate: float) -> None:
    if all(math.isfinite(value) for value in values.values()):
        return
    shown = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
    raise TrainingDiverged(f"train: step {step}: the loss is not finite: {shown}; {_advice(rate)}")


def _check_weights(detector: nn.Module, step: int, rate: float) -> None:
    """A finite loss can have an infinite gradient: such weights must reach no checkpoint and no model file."""
    for name, tensor in detector.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise TrainingDiverged(f"train: step {step}: {name} is not finite any more; {_advice(rate)}")


def _advice(rate: float) -> str:
    return f"the learning rate was {rate:.3g}: lower train.learning_rate or lengthen train.warmup_steps"


class _Progress:
    """A bar on a terminal, about ten plain lines elsewhere (logs of the pipeline engines, CI).

    Some steps into a long run it says how long the whole takes, and on a GPU how much memory.
    """

    def __init__(self, steps: int, done: int, device: torch.device) -> None:
        self.steps, self.device = steps, device
        self.bar = tqdm(total=steps, initial=done, desc="train", unit="step") if sys.stderr.isatty() else None
        self.done_before, self.began = done, time.perf_counter()
        self.timed_from: float | None = None  # when the first steps, slowed by caches that fill, were over

    def show(self, row: dict[str, Any]) -> None:
        step, loss, speed = row["step"], row["loss"], row["images_per_s"]
        now, since = time.perf_counter(), step - self.done_before
        if since == TIMED_AFTER:
            self.timed_from = now
        elif since == 2 * TIMED_AFTER and self.timed_from is not None and self.steps - step > 10 * TIMED_AFTER:
            self._say_cost((now - self.timed_from) / TIMED_AFTER, step)
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f}, {speed:.1f} images/s")
            self.bar.update()
        elif step % max(self.steps // PLAIN_LINES, 1) == 0 or step == self.steps:
            left_s = round((now - self.began) / since * (self.steps - step))
            print(
                f"train: step {step}/{self.steps}, loss {loss:.4f}, {speed:.1f} images/s, {left_s} s left", flush=True
            )

    def _say_cost(self, per_step_s: float, step: int) -> None:
        left_s = round(per_step_s * (self.steps - step))
        said = f"train: {per_step_s:.3g} s a step, so about {datetime.timedelta(seconds=left_s)} h from here to the end"
        if self.device.type == "cuda":
            said += f"; at most {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB of GPU memory so far"
        tqdm.write(said) if self.bar is not None else print(said, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

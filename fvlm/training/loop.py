"""The training loop: each step is a function of the weights, the step's number and the seed alone."""

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
from ..data.order import seed_of
from ..detector.detector import FVLM
from ..errors import InputError
from ..params import Train
from ..schedule import learning_rate
from ..vlm.clip import ImageTower

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
PLAIN_LINES = 10  # progress lines of a run that is not on a terminal
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class TrainingDiverged(InputError):
    """Loss or weights are no longer finite: the params, above all the learning rate, do not suit the data."""


def train(
    detector: FVLM, pictures: TrainingPictures, text: Tensor, params: Train, *, device: torch.device, checkpoint: Path
) -> list[dict[str, Any]]:
    """Train `detector` in place, going on from `checkpoint` where there is one.

    A checkpoint is written every `params.checkpoint_every` steps and after the last; the caller removes it once the
    results are safe. A run that was killed at any point and is called again with the same arguments ends with the same
    weights, bit for bit.

    Args:
        detector: built from the same seed at every call; it is left in train mode.
        pictures: items by (epoch, index), see `fvlm.data.dataset`.
        text: (1 + K, D) embeddings of background and the K supervised classes.

    Returns:
        The rows of losses.csv, one per step from 1, with `COLUMNS`; numbers have six significant digits.

    Raises:
        TrainingDiverged: the loss or a weight is not finite. The checkpoint of the last finite state stays.
        InputError: a picture cannot be read.
    """
    detector.to(device).train()
    text = text.to(device)
    optimizer = build_optimizer(detector, params)
    done, rows = load_checkpoint(checkpoint, detector, optimizer)
    if done:
        print(f"train: going on after step {done} of {params.steps} ({checkpoint})", flush=True)
    progress = _Progress(params.steps, done)
    began = time.perf_counter()
    batches = training_batches(pictures, params, after_step=done, device=device)
    for step, (images, targets) in enumerate(batches, start=done + 1):
        rate = _learning_rate(step, params)
        for group in optimizer.param_groups:
            group["lr"] = rate
        temperature = detector.temperature.item()
        torch.manual_seed(seed_of(params.seed, "step", step))  # anchors and regions are sampled from it
        terms = detector.losses(images, targets, text, params)
        loss = torch.stack(list(terms.values())).sum()
        numbers = torch.stack([loss, *terms.values()]).tolist()  # one transfer from the device
        values = dict(zip(["loss", *(f"loss_{name}" for name in terms)], numbers, strict=True))
        _check_finite(values, step, rate)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        now = time.perf_counter()
        row = {
            "step": step,
            **values,
            "learning_rate": rate,
            "temperature": temperature,
            "images_per_s": params.batch_size / (now - began),
        }
        began = now
        rows.append({name: value if name == "step" else float(f"{value:.6g}") for name, value in row.items()})
        if step % params.checkpoint_every == 0 or step == params.steps:
            _check_weights(detector, step, rate)
            save_checkpoint(checkpoint, detector, optimizer, step, rows)
        progress.show(rows[-1])
    progress.close()
    return rows


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
    """A bar on a terminal, about ten plain lines elsewhere (logs of the pipeline engines, CI)."""

    def __init__(self, steps: int, done: int) -> None:
        self.steps = steps
        self.bar = tqdm(total=steps, initial=done, desc="train", unit="step") if sys.stderr.isatty() else None
        self.done_before, self.began = done, time.perf_counter()

    def show(self, row: dict[str, Any]) -> None:
        step, loss, speed = row["step"], row["loss"], row["images_per_s"]
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f}, {speed:.1f} images/s")
            self.bar.update()
        elif step % max(self.steps // PLAIN_LINES, 1) == 0 or step == self.steps:
            per_step_s = (time.perf_counter() - self.began) / (step - self.done_before)
            left_s = round(per_step_s * (self.steps - step))
            print(
                f"train: step {step}/{self.steps}, loss {loss:.4f}, {speed:.1f} images/s, {left_s} s left", flush=True
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

"""Checkpoints: a killed run that is started again ends with the same bytes as one that was left alone.

A checkpoint is no declared output of either pipeline engine. Its name carries a hash of all that the run depends on, so
a changed param or input can never be mixed with an older run's state: that state has another name.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .io import sha256_of_json
from .params import Params, Train
from .tensors import load_tensors, save_tensors

KEY_DIGITS = 16
METADATA_KEYS = {"name", "step", "rows"}
NOT_IN_RESULTS = ("checkpoint_every", "workers")  # of params.train: how it is trained, not what comes out


def deciding_params(train: Train) -> dict[str, Any]:
    """The params of `train` that can change the trained weights."""
    return {k: v for k, v in dataclasses.asdict(train).items() if k not in NOT_IN_RESULTS}


def checkpoint_key(params: Params, setting: str, inputs: Mapping[str, str]) -> str:
    """The first digits of a hash of everything that decides the trained weights.

    Args:
        params: the sections compute, model and train count, less what cannot change the result.
        setting: which boxes supervise.
        inputs: hashes of the files that training reads, by what they are.
    """
    depends_on = {
        "compute": dataclasses.asdict(params.compute),
        "model": dataclasses.asdict(params.model),
        "train": deciding_params(params.train),
        "setting": setting,
        "inputs": dict(inputs),
    }
    return sha256_of_json(depends_on)[:KEY_DIGITS]


def save_checkpoint(
    path: Path,
    detector: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    rows: list[dict[str, Any]],
    generator: torch.Generator | None = None,
) -> None:
    """Write the state after `step`: what training changes of the model, the optimisers, and the rows of losses.csv.

    The file's name, which has the key, is written inside too, so that a renamed file is recognised.

    Args:
        generator: of all chance in the steps, where a run draws from one generator from its first step to its last.
    """
    tensors = {f"model/{name}": tensor for name, tensor in _changing(detector)}
    for optimizer in optimizers:  # no parameter belongs to two
        tensors |= {f"optimizer/{name}/{entry}": t for name, entry, t in _optimizer_entries(detector, optimizer)}
    if generator is not None:
        tensors["generator"] = generator.get_state()
    save_tensors(path, tensors, {"name": path.name, "step": step, "rows": rows})


def load_checkpoint(
    path: Path,
    detector: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    generator: torch.Generator | None = None,
) -> tuple[int, list[dict[str, Any]]]:
    """Restore what `save_checkpoint` wrote into `detector`, `optimizers` and `generator`.

    Returns:
        The step that was done last and the rows up to it; (0, []) where there is no usable checkpoint. A file that
        cannot be used is named in a printed line and costs no more than the steps it held.
    """
    if not path.exists():
        return 0, []
    try:
        tensors, metadata = load_tensors(path, "checkpoint", "training starts afresh")
        changing = dict(_changing(detector))
        shapes = {name.removeprefix("model/"): t.shape for name, t in tensors.items() if name.startswith("model/")}
        if (
            metadata.keys() != METADATA_KEYS
            or metadata["name"] != path.name
            or shapes != {name: tensor.shape for name, tensor in changing.items()}
            or ("generator" in tensors) != (generator is not None)
        ):
            raise InputError(f"{path}: this is not the checkpoint of this run; training starts afresh")
    except InputError as error:
        print(f"warning: {error}", flush=True)
        return 0, []

    with torch.no_grad():
        for name, tensor in changing.items():
            tensor.copy_(tensors[f"model/{name}"])
    for optimizer in optimizers:
        _restore(optimizer, detector, tensors)
    if generator is not None:
        generator.set_state(tensors["generator"])
    return metadata["step"], metadata["rows"]


def _restore(optimizer: torch.optim.Optimizer, detector: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    optimized = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter_name in enumerate(_optimized_names(detector, optimizer)):
        prefix = f"optimizer/{parameter_name}/"
        entries = {
            name.removeprefix(prefix): _laid_out_as(optimized[index], t)
            for name, t in tensors.items()
            if name.startswith(prefix)
        }
        if entries:
            state[index] = entries
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _laid_out_as(parameter: Tensor, moment: Tensor) -> Tensor:
    """`moment` with the strides that the optimiser gave it: files have none, and another order of memory takes another
    path through the same arithmetic, whose last bits may differ."""
    if moment.shape != parameter.shape:  # a count of steps
        return moment
    return torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


def _changing(detector: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The named tensors of the state dict that a training step may change.

    These are the parameters with a gradient and the buffers of modules in train mode. A frozen tower is in eval mode
    even while its parent trains, so it stays out; rebuilt from the VLM's file it is the same.
    """
    yield from ((name, p) for name, p in detector.named_parameters() if p.requires_grad)
    stored = detector.state_dict().keys()
    for prefix, module in detector.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if module.training and name in stored:
                yield name, buffer


def _optimized_names(detector: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Parameter names in the order of the optimiser's state dict."""
    name_of = {id(parameter): name for name, parameter in detector.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_entries(detector: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, str, Tensor]]:
    names = _optimized_names(detector, optimizer)
    for index, entries in optimizer.state_dict()["state"].items():
        for entry, value in entries.items():
            assert isinstance(value, Tensor), f"{entry} of {names[index]} is no tensor: {value!r}"
            yield names[index], entry, value

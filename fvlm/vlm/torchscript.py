"""The tensors of a TorchScript archive, which OpenAI published its CLIP as, without running anything that is in it.

An archive is a zip file: programs, a pickle (`data.pkl`) that builds the module around its tensors, and their bytes.
`torch.jit.load` compiles the programs, and `torch.load` refuses an archive where `weights_only` is set. Here the pickle
is read as a list of instructions by a machine that knows those of `torch.jit.save` and can only stack values: a class
or function is a name to it, and a call a note that it was asked for. Nothing is imported, constructed or called.
"""

import math
import os
import pickletools
import zipfile
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}
VALUES = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), lambda argument: argument),
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "GLOBAL": lambda argument: _Name(argument.replace(" ", ".")),
}
MARK = object()


@dataclass(frozen=True)
class _Name:
    """Of a class or function; never looked up."""

    dotted: str


@dataclass
class _Object:
    """What `name` would have made of `arguments`, and the attributes that it was given then."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = field(default=None)


@dataclass(frozen=True)
class _Storage:
    key: str  # the file data/<key> of the archive
    dtype: torch.dtype


def is_torchscript(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a zip file with a TorchScript module's constants; an ordinary torch checkpoint has none.

    A damaged zip file is taken for none: what reads it next says what is wrong with it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return False


def read_torchscript(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of the archived module by their dotted names, as they are stored, on the CPU.

    The names are those of the module's `state_dict()`, and of tensors that it has besides: an attention mask.

    Raises:
        InputError: the archive is damaged, or has instructions that `torch.jit.save` does not write.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (program,) = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            prefix = program.removesuffix("data.pkl")
            tensors: dict[str, Tensor] = {}
            _collect(_run(archive.read(program)), "", tensors, archive, prefix, {})
            return tensors
    except Exception as error:  # of a damaged file its parts raise nearly everything
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be read as a TorchScript archive ({type(error).__name__}: {reason}); get the file again"
        ) from None


def _run(program: bytes) -> Any:
    """The value that a pickle leaves on the stack."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = len(stack) - 1 - stack[::-1].index(MARK)
        taken = stack[start + 1 :]
        del stack[start:]
        return taken

    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name in VALUES:
            stack.append(VALUES[name](argument))
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name in ("NEWOBJ", "REDUCE"):
            arguments, called = stack.pop(), stack.pop()
            stack.append(_Object(called.dotted, arguments))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = since_mark() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise ValueError(f"the instruction {name} in data.pkl")
    raise ValueError("data.pkl has no end")


def _storage(value: Any) -> _Storage:
    _, kind, key, _, _ = value  # "storage", a class, the file, the device it was on, its number of elements
    return _Storage(key, DTYPES[kind.dotted.removeprefix("torch.")])


def _collect(
    value: Any,
    name: str,
    tensors: dict[str, Tensor],
    archive: zipfile.ZipFile,
    prefix: str,
    storages: dict[str, Tensor],
) -> None:
    """Add to `tensors` those of the module `value`, and of its submodules, whose attributes they are."""
    if not isinstance(value, _Object):
        return
    if value.name == "torch._utils._rebuild_tensor_v2":
        storage, offset, size, stride = value.arguments[:4]
        if storage.key not in storages:
            data = bytearray(archive.read(f"{prefix}data/{storage.key}"))  # writable, as torch wants memory to be
            storages[storage.key] = torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0)
        if not math.prod(size):
            tensors[name] = torch.empty(size, dtype=storage.dtype)
        else:
            tensors[name] = storages[storage.key].as_strided(size, stride, offset)
    elif isinstance(value.state, dict):
        for attribute, inner in value.state.items():
            _collect(inner, f"{name}.{attribute}" if name else attribute, tensors, archive, prefix, storages)

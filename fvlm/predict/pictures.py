"""Pictures of any kind, from files and from memory, as the network takes them: (3, H, W) uint8 RGB.

Files are shown to the network as a person sees them: upright (EXIF), on white where they are transparent, 16 bits
scaled to 8, of an animation the first picture. This is more than the stages do, which trust COCO's pixels; for a plain
RGB file both are the same.
"""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
MAX_PIXELS = (
    89_478_485  # where Pillow begins to warn of decompression bombs: 256 MiB decoded, five times that on the way
)
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm", ".jp2")
DEEPEST_16_BIT = 65535


def as_pixels(picture: Picture) -> Tensor:
    """(3, H, W) uint8 RGB, contiguous or not.

    Args:
        picture: a file's path; a PIL image of any mode, taken as it lies (its EXIF orientation is not applied, so that
            boxes fit its own pixels); an array (H, W, 3) uint8 RGB, or (H, W) grey; a tensor (3, H, W) uint8 RGB, or
            floating in [0, 1].

    Raises:
        InputError: it is none of these, has no pixels or more than `MAX_PIXELS`, or the file cannot be decoded.
    """
    if isinstance(picture, (str, os.PathLike)):
        return _read(os.fspath(picture))
    if isinstance(picture, Image.Image):
        _check_size(picture.size, "the PIL image")
        return _from_pil(picture, "the PIL image")
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if isinstance(picture, Tensor):
        return _from_tensor(picture)
    raise InputError(
        "expected a picture: a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W), "
        f"got {type(picture).__name__}"
    )


def as_pictures(images: Picture | Iterable[Picture]) -> tuple[list[Picture], bool]:
    """The pictures of a call, and whether it was a single one, not a batch.

    An array of four dimensions, or a tensor of four, is a batch of its pictures.
    """
    if isinstance(images, (np.ndarray, Tensor)):
        return (list(images), False) if images.ndim == 4 else ([images], True)
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images], True
    if not isinstance(images, Iterable):
        raise InputError(f"expected a picture or a list of pictures, got {type(images).__name__}")
    return list(images), False


def _read(path: str) -> Tensor:
    if not os.path.isfile(path):
        raise InputError(f"{path}: {'a folder, expected a picture' if os.path.isdir(path) else 'picture not found'}")
    return decode(path, path)


def decode(
    file: str | BinaryIO, what: str, *, most_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Tensor:
    """(3, H, W) uint8 RGB of a picture file, upright.

    Args:
        file: a path, or an open file, which may be in memory.
        what: how messages call it.
        most_pixels: a larger picture is refused before it is decoded.
        formats: Pillow's names of those that are tried; None for all.

    Raises:
        InputError: it is too large, empty, of another format, or broken.
    """
    try:
        with Image.open(file, formats=formats) as picture:
            _check_size(picture.size, what, most_pixels)
            # a file that only now turns out to be broken, or that claims another size than it has, raises here
            return _from_pil(ImageOps.exif_transpose(picture), what)
    except InputError:
        raise
    except Exception as error:  # decoders raise anything at all on bytes that are not what they pass for
        unknown = isinstance(error, UnidentifiedImageError)  # whose message names the object, if it is no path
        reason = "it has none of the known formats" if unknown else " ".join(str(error).split())[:200]
        reason = reason or type(error).__name__
        raise InputError(f"{what}: expected a whole picture, but it cannot be decoded ({reason})") from None


def _check_size(size: tuple[int, int], what: str, most_pixels: int = MAX_PIXELS) -> None:
    width, height = size
    if width * height > most_pixels:
        raise InputError(f"{what}: expected at most {most_pixels:,} pixels, got {width:,} x {height:,}; scale it down")
    if width * height == 0:
        raise InputError(f"{what}: expected a picture, got {width} x {height} pixels")


def _from_pil(picture: Image.Image, what: str) -> Tensor:
    return _from_array(np.array(_as_rgb(picture, what)))  # np.array copies: the result may be written to


def _as_rgb(picture: Image.Image, what: str) -> Image.Image:
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    if picture.mode.startswith("I"):  # 16 bits; `convert` would cut them off at 255, which is white
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > DEEPEST_16_BIT:
            raise InputError(f"{what}: expected values of 16 bits at most, got {values.min()} to {values.max()}")
        return Image.fromarray((values.astype(np.float32) * (255 / DEEPEST_16_BIT)).round().astype(np.uint8)).convert(
            "RGB"
        )
    if picture.mode == "F":
        raise InputError(f"{what}: floating-point pixels, whose range nobody knows; convert it to 8 bits")
    if picture.has_transparency_data:
        opaque = Image.new("RGBA", picture.size, "white")
        opaque.alpha_composite(picture.convert("RGBA"))
        return opaque.convert("RGB")
    return picture.convert("RGB")


def _from_array(array: np.ndarray) -> Tensor:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise InputError(
            f"expected an array (H, W, 3) of uint8 RGB, or (H, W) of uint8 grey, got {array.shape} of {array.dtype}"
        )
    _check_size((array.shape[1], array.shape[0]), "the array")
    if not (
        array.flags.writeable and min(array.strides) > 0
    ):  # torch takes no array that it may not write or that runs backwards
        array = array.copy()
    pixels = torch.from_numpy(array)
    return pixels.expand(3, -1, -1) if array.ndim == 2 else pixels.permute(2, 0, 1)


def _from_tensor(tensor: Tensor) -> Tensor:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or not (tensor.dtype == torch.uint8 or tensor.is_floating_point()):
        raise InputError(
            "expected a tensor (3, H, W) of uint8 RGB, or floating in [0, 1], "
            f"got {tuple(tensor.shape)} of {tensor.dtype}"
        )
    _check_size((tensor.shape[2], tensor.shape[1]), "the tensor")
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.uint8:
        return tensor
    if not (tensor.min() >= 0 and tensor.max() <= 1):  # also where there is a NaN
        raise InputError(
            f"expected a floating tensor in [0, 1], not normalised, got {tensor.min():.3g} to {tensor.max():.3g}"
        )
    return (tensor.float() * 255).round().to(torch.uint8)


def find_pictures(arguments: Sequence[str]) -> list[str]:
    """The picture files that arguments of a command line mean, each once, in their order, folders sorted by name.

    An argument is a file, a folder (with all below it, but what begins with a dot), or a pattern with `*` or `**`.

    Raises:
        InputError: an argument means no file at all; all such are named.
    """
    found: dict[str, None] = {}
    problems = []
    for argument in arguments:
        files = _files_of(argument)
        if not files:
            kind = f"a folder without pictures ({', '.join(SUFFIXES)})" if os.path.isdir(argument) else "no such file"
            problems.append(f"{argument}: expected a picture, a folder or a pattern, found {kind}")
        found |= dict.fromkeys(files)
    if problems:
        raise InputError("\n".join(problems))
    return list(found)


def _files_of(argument: str) -> list[str]:
    if os.path.isfile(argument):
        return [argument]
    if os.path.isdir(argument):
        return [file for file in _below(argument) if Path(file).suffix.lower() in SUFFIXES]
    return sorted(file for file in glob.glob(os.path.expanduser(argument), recursive=True) if os.path.isfile(file))


def _below(folder: str) -> Iterable[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(files) if not name.startswith("."))

"""The manifest: which pictures and annotations a dataset consists of, so that a later stage notices any change."""

import dataclasses
import os
import stat
from pathlib import Path
from typing import Any, Literal

from .. import layout
from ..errors import InputError
from ..io import read_json, sha256_of_file, sha256_of_json
from ..params import Data, Params
from .coco import CocoDict, Findings, load_instances

Part = Literal["train", "val"]
REMEDY = "run `python -m fvlm download`"
MEND_ROOT = f"correct data.root (or {layout.DATA_ROOT_VARIABLE}, for COCO 2017)"


def build_manifest(data: Data, root: Path, *, hash_pictures: bool) -> dict[str, Any]:
    """Check a dataset in COCO's layout and describe it; no path in the result is absolute.

    Args:
        data: names of the folders and annotation files below `root`.
        root: the dataset's folder.
        hash_pictures: hash the pictures' content, not only names and sizes; for COCO that would read 19 GB.

    Raises:
        InputError: the folder or an annotation file is missing or unsound, or a listed picture is missing or empty:
            the findings of both parts, one a line.
    """
    if not root.is_dir():
        raise InputError(f"{root}: expected the folder of the pictures and annotations, found none; {MEND_ROOT}")
    places = {
        "train": (data.train_images, data.train_annotations),
        "val": (data.val_images, data.val_annotations),
    }
    described: dict[tuple[str, str], dict[str, Any]] = {}
    problems: list[str] = []
    for place in dict.fromkeys(places.values()):  # once where both parts are the same files
        try:
            described[place] = _describe(root, *place, hash_pictures=hash_pictures)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    parts = {part: described[place] for part, place in places.items()}
    return {"dataset": data.dataset, "emoji": _emoji(data), **parts}


def load_part(params: Params, part: Part) -> CocoDict:
    """The instances of "train" or "val", if params and file are still those that the manifest describes.

    Raises:
        InputError: there is no manifest, params or the annotation file changed since, or the file is unsound.
    """
    path = layout.manifest(params)
    manifest = read_json(path, "manifest", REMEDY)
    images, annotations = (
        (params.data.train_images, params.data.train_annotations)
        if part == "train"
        else (params.data.val_images, params.data.val_annotations)
    )
    try:
        recorded = (manifest["emoji"], manifest[part]["images"], manifest[part]["annotations"])
        expected_sha256 = manifest[part]["annotations_sha256"]
    except (KeyError, TypeError):
        raise InputError(f"{path}: expected a manifest as `download` writes it, got something else; {REMEDY}") from None
    if recorded != (_emoji(params.data), images, annotations):
        raise InputError(f"{path}: expected the dataset of params.yaml's section data, which changed since; {REMEDY}")

    file = layout.data_root(params) / annotations
    if not file.is_file():
        raise InputError(f"{file}: annotation file not found, but {path} lists it; {REMEDY}")
    found_sha256 = sha256_of_file(file)
    if found_sha256 != expected_sha256:
        raise InputError(
            f"{file}: expected sha256 {expected_sha256[:12]}... as in {path}, got {found_sha256[:12]}...; "
            f"it changed since download; {REMEDY}"
        )
    return load_instances(file)


def _describe(root: Path, images: str, annotations: str, *, hash_pictures: bool) -> dict[str, Any]:
    file = root / annotations
    coco = load_instances(file)
    pictures = _pictures(file, coco, root / images, hash_pictures=hash_pictures)
    return {
        "images": images,
        "annotations": annotations,
        "annotations_sha256": sha256_of_file(file),
        "image_count": len(coco["images"]),
        "annotation_count": len(coco["annotations"]),
        "images_bytes": sum(size for _, size, *_ in pictures),
        "images_sha256": sha256_of_json(sorted(pictures)),
    }


def _pictures(file: Path, coco: CocoDict, image_dir: Path, *, hash_pictures: bool) -> list[tuple[Any, ...]]:
    """(file_name, bytes[, sha256]) of every listed picture; InputError names those that are missing or empty."""
    if coco["images"] and not image_dir.is_dir():
        raise InputError(f"{image_dir}: expected the folder of {file.name}'s pictures, found none; {MEND_ROOT}")
    findings = Findings(image_dir)
    pictures: list[tuple[Any, ...]] = []
    for image in coco["images"]:
        name = image["file_name"]
        path = image_dir / name
        try:
            status = os.stat(path)
        except OSError as error:
            findings.add(f"{name}: picture not found ({error.strerror}), but {file} lists it; obtain it again")
            continue
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            came = "an empty file" if stat.S_ISREG(status.st_mode) else "no file"
            findings.add(f"{name}: expected a picture, got {came}; obtain it again")
        elif not findings.count:  # hashing is for a whole dataset only
            pictures.append((name, status.st_size, *([sha256_of_file(path)] if hash_pictures else [])))
    findings.raise_if_any()
    return pictures


def _emoji(data: Data) -> dict[str, Any] | None:
    """The params of the embedded world as JSON; None for pictures that were not rendered here."""
    return dataclasses.asdict(data.emoji) if data.dataset == "emoji" and data.emoji else None

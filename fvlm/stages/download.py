"""Stage `download`: pictures and annotations in COCO's layout, and the manifest that describes them.

The embedded world is rendered here, COCO 2017 is fetched, and a folder of the user's is only checked, never changed.
The manifest says what is there; where it is, is no part of it (see `layout.data_root`).
"""

import json
import os
from pathlib import Path
from typing import Any

from .. import layout
from ..data.counts import check_counts
from ..data.manifest import build_manifest
from ..errors import InputError
from ..io import write_json
from ..params import Data, Params


def run(params: Params) -> None:
    """Write data/<dataset>/manifest.json, after every check has passed; do nothing where all is there and intact.

    Raises:
        InputError: see `build_manifest`; for COCO 2017 also `obtain` and `check_counts`.
    """
    data, named, path = params.data, layout.named_root(params), layout.manifest(params)
    root = named or layout.own_root(params)
    rendered = data.dataset == "emoji"
    recorded = _recorded(path)
    if rendered and not _is_intact(params, root, recorded):
        from ..data.emoji import render_dataset  # numpy and Pillow, which no other dataset needs here

        assert data.emoji is not None  # params' cross-check
        render_dataset(data.emoji, root)
    if data.dataset == "coco2017":
        if named is None:
            _fetch(data, root)
        else:
            print(f"download: {named} is yours: it is checked, nothing is fetched or changed", flush=True)
    manifest = build_manifest(data, root, hash_pictures=rendered)
    wholes = [
        {"subset": f"{part}_full", **{what: manifest[part][f"{what[:-1]}_count"] for what in ("images", "annotations")}}
        for part in ("train", "val")
    ]
    check_counts(data, root, wholes)
    if data.dataset == "coco2017":
        _say_what_is_not_published(manifest, root)
    if manifest != recorded:
        write_json(path, manifest)
    _note_root(params)
    counts = " and ".join(f"{manifest[part]['image_count']} {part}" for part in ("train", "val"))
    print(f"download: {root} holds {counts} pictures, {'checked' if manifest != recorded else 'unchanged'}", flush=True)


def _fetch(data: Data, root: Path) -> None:
    from ..data.coco2017 import obtain, published_address, published_archives  # requests, which nothing else needs

    published = Data(dataset="coco2017")
    others = [
        f"data.{field}: expected {getattr(published, field)}, as COCO 2017 is downloaded, got {getattr(data, field)}; "
        "where its files are laid out otherwise, name their folder in data.root"
        for field in ("train_images", "train_annotations", "val_images", "val_annotations")
        if getattr(data, field) != getattr(published, field)
    ]
    if others:
        raise InputError("\n".join(others))
    obtain(root, published_archives(), data.mirror or published_address())


def _say_what_is_not_published(manifest: dict[str, Any], root: Path) -> None:
    """A line for each annotation file of the right counts that is not COCO's own, byte for byte."""
    from ..data.coco2017 import published_annotations

    for part in ("train", "val"):
        if manifest[part]["annotations_sha256"] != published_annotations(part):
            file = root / manifest[part]["annotations"]
            print(f"download: note: {file} counts like COCO 2017's own file, but its sha256 is another", flush=True)


def _note_root(params: Params) -> None:
    """Note where FVLM_DATA_ROOT points, so that a later stage finds the pictures without it, too."""
    note, variable = layout.root_note(params), os.environ.get(layout.DATA_ROOT_VARIABLE)
    if params.data.dataset == "coco2017" and variable:
        write_json(note, {"root": os.path.abspath(variable)})
    else:
        note.unlink(missing_ok=True)


def _recorded(path: Path) -> Any:
    """The manifest of an earlier run; None where there is none or it cannot be read, as it is written anew then."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _is_intact(params: Params, root: Path, recorded: Any) -> bool:
    try:
        return recorded is not None and build_manifest(params.data, root, hash_pictures=True) == recorded
    except InputError:
        return False

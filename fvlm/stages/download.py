"""Stage `download`: pictures and annotations in COCO's layout, and the manifest that describes them.

The embedded world is rendered here; a folder of the user's is only checked, never changed.
"""

import json
from pathlib import Path
from typing import Any

from .. import layout
from ..data.manifest import build_manifest
from ..errors import InputError
from ..io import write_json
from ..params import Params


def run(params: Params) -> None:
    """Write data/<dataset>/manifest.json, after every check has passed; do nothing where all is there and intact.

    Raises:
        InputError: see `build_manifest`.
    """
    root, path = layout.data_root(params), layout.manifest(params)
    rendered = params.data.dataset == "emoji"
    recorded = _recorded(path)
    if rendered and not _is_intact(params, root, recorded):
        from ..data.emoji import render_dataset  # numpy and Pillow, which no other dataset needs here

        assert params.data.emoji is not None  # params' cross-check
        render_dataset(params.data.emoji, root)
    manifest = build_manifest(params.data, root, hash_pictures=rendered)
    if manifest != recorded:
        write_json(path, manifest)
    counts = " and ".join(f"{manifest[part]['image_count']} {part}" for part in ("train", "val"))
    print(f"download: {root} holds {counts} pictures, {'checked' if manifest != recorded else 'unchanged'}", flush=True)


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

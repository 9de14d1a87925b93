"""Stage `splits`: the training split of one setting."""

from .. import layout
from ..data.manifest import load_part
from ..data.splits import build_train_split
from ..errors import InputError
from ..io import write_json
from ..params import Params


def run(params: Params, setting: str) -> None:
    """Write data/splits/train_<setting>.json.

    Raises:
        InputError: the annotations are unsound or changed since `download`, or none of their boxes supervises.
    """
    split = build_train_split(load_part(params, "train"), setting, keep_empty=params.splits.keep_empty)
    if all(annotation["iscrowd"] for annotation in split["annotations"]):
        source = layout.data_root(params) / params.data.train_annotations
        raise InputError(
            f"{source}: expected boxes of the {len(split['categories'])} classes that supervise setting {setting}, "
            "found none; use annotations that have some"
        )
    write_json(layout.train_split(setting), split, compact=True)
    boxes = sum(not annotation["iscrowd"] for annotation in split["annotations"])
    print(f"splits: {setting} trains on {len(split['images'])} images, {boxes} boxes", flush=True)

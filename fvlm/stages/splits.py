"""Stage `splits`: the training split of one setting."""

from .. import layout
from ..data.counts import check_counts
from ..data.manifest import load_part
from ..data.splits import build_train_split, oddities, train_counts
from ..errors import InputError
from ..io import write_json
from ..params import Params


def run(params: Params, setting: str) -> None:
    """Write data/splits/train_<setting>.json.

    Raises:
        InputError: the annotations are unsound or changed since `download`, none of their boxes supervises, or they
            are not as many as the dataset is known to have.
    """
    coco = load_part(params, "train")
    split = build_train_split(coco, setting, keep_empty=params.splits.keep_empty)
    root = layout.data_root(params)
    if all(annotation["iscrowd"] for annotation in split["annotations"]):
        source = root / params.data.train_annotations
        raise InputError(
            f"{source}: expected boxes of the {len(split['categories'])} classes that supervise setting {setting}, "
            "found none; use annotations that have some"
        )
    check_counts(params.data, root, train_counts(coco, split, setting))
    write_json(layout.train_split(setting), split, compact=True)
    boxes = sum(not annotation["iscrowd"] for annotation in split["annotations"])
    print(f"splits: {setting} trains on {len(split['images'])} images, {boxes} boxes", flush=True)
    for oddity in oddities(split):
        print(f"splits: {setting}: boxes {oddity}", flush=True)

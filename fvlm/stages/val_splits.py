"""Stage `val_splits`: the validation splits of the three protocols, all pictures, and how much every subset holds."""

from .. import layout
from ..data.counts import check_counts
from ..data.manifest import load_part
from ..data.splits import build_val_all, build_val_split, count_table
from ..errors import InputError
from ..io import write_csv, write_json
from ..params import Params


def run(params: Params) -> None:
    """Write data/splits/val_{base,novel,generalized,all}.json and counts.csv.

    Raises:
        InputError: the annotations are unsound or changed since `download`, a protocol has no box to score, or the
            counts are not those that the dataset is known to have.
    """
    train, val = load_part(params, "train"), load_part(params, "val")
    splits = {protocol: build_val_split(val, protocol) for protocol in layout.PROTOCOLS}
    source = layout.data_root(params) / params.data.val_annotations
    empty = [
        f"{source}: expected boxes of the {len(split['categories'])} classes of protocol {protocol}, found none; "
        "use annotations that have some"
        for protocol, split in splits.items()
        if all(annotation["iscrowd"] for annotation in split["annotations"])
    ]
    if empty:
        raise InputError("\n".join(empty))

    rows = count_table(train, val)
    check_counts(params.data, layout.data_root(params), rows)
    splits["all"] = build_val_all(val)
    for name, split in splits.items():
        write_json(layout.val_split(name), split, compact=True)
    write_csv(layout.COUNTS, rows, list(rows[0]))
    sizes = ", ".join(f"{name} {len(split['images'])}" for name, split in splits.items())
    print(f"val_splits: images of the protocols: {sizes}", flush=True)

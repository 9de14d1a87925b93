"""Stage `evaluate`: score one setting under every protocol, from its raw detections; the network does not run again."""

from tqdm import tqdm

from .. import layout
from ..compute import set_up_cpu
from ..data.coco import load_instances
from ..evaluation.raw import RawDetections
from ..evaluation.scoring import PER_CLASS_COLUMNS, score
from ..evaluation.sweep import COLUMNS, sweep_fusion
from ..io import write_csv, write_json
from ..params import Params


def run(params: Params, setting: str) -> None:
    """Write metrics/<setting>.json, and per_class.csv, fusion_sweep.csv and two COCO results files in runs/<setting>/.

    Everything is computed before anything is written, on one CPU thread whatever `compute` says: the tensors are small,
    and the settings are evaluated side by side.

    Raises:
        InputError: raw detections or splits are missing, unsound, or do not belong together.
    """
    set_up_cpu(1)
    raw = RawDetections.load(layout.raw_detections(setting))
    splits = {name: load_instances(layout.val_split(name)) for name in layout.PROTOCOLS}
    print(f"evaluate {setting}: {len(raw.image_ids)} images, {len(raw.boxes)} regions", flush=True)
    scores = score(raw, splits, params.evaluate)

    grid = params.evaluate.sweep
    progress = tqdm(
        sweep_fusion(raw, splits["generalized"], params.evaluate),
        total=len(grid.alpha) * len(grid.beta),
        desc=f"evaluate {setting}: alpha x beta",
        disable=None,
    )
    sweep = list(progress)

    write_csv(layout.per_class(setting), scores.per_class, PER_CLASS_COLUMNS)
    write_csv(layout.fusion_sweep(setting), sweep, COLUMNS)
    write_json(layout.detections(setting), scores.detections, compact=True)
    write_json(layout.detector_only_detections(setting), scores.detector_only, compact=True)
    write_json(layout.metrics(setting), scores.metrics)
    shown = ", ".join(
        f"{group} {scores.metrics[f'generalized_{group}_AP50']:.1f}" for group in ("novel", "base", "all")
    )
    print(f"evaluate {setting}: generalized AP50 {shown}", flush=True)

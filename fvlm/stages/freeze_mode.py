"""One run of the freeze ablation: setting `zsd` trained, detected and scored with `model.freeze` set to one mode."""

import dataclasses

from .. import layout
from ..data.coco import load_instances
from ..evaluation.raw import RawDetections
from ..evaluation.scoring import score
from ..io import read_json, write_json
from ..params import FreezeMode, Params
from ..tensors import load_tensors
from ..vlm.freeze import statistics_shift
from .detect import detect_all
from .train import Outputs, train_detector

SETTING = "zsd"
TOWER = "tower.visual."  # prefix of the image tower's tensors in a model file
VLM_TOWER = "visual."  # and in the VLM's


def run(params: Params, mode: FreezeMode) -> None:
    """Write ablations/freeze/<mode>/: model, losses, record, raw detections and scores.json.

    scores.json is evaluate's metrics with `running_statistics_shift`, how far batch norm's running statistics moved
    from the VLM's (`statistics_shift`: standard deviations; 0 is not at all).
    """
    params = dataclasses.replace(params, model=dataclasses.replace(params.model, freeze=mode))
    folder = layout.freeze_mode(mode)
    outputs = Outputs(folder / "model.safetensors", folder / "losses.csv", folder / "train.json")
    if not train_detector(params, SETTING, outputs).is_main:
        return
    raw_path = folder / "raw_detections.safetensors"
    detect_all(params, outputs.model, f"python -m fvlm freeze_mode --mode {mode}", raw_path)
    splits = {name: load_instances(layout.val_split(name)) for name in layout.VAL_SPLITS}
    scores = score(RawDetections.load(raw_path), splits, params.evaluate)

    before, _ = load_tensors(layout.VLM_WEIGHTS, "the VLM's weights", "run `python -m fvlm vlm`")
    after, _ = load_tensors(outputs.model, "detector", "run the same command again")
    shift = statistics_shift(
        {name.removeprefix(VLM_TOWER): t for name, t in before.items() if name.startswith(VLM_TOWER)},
        {name.removeprefix(TOWER): t for name, t in after.items() if name.startswith(TOWER)},
    )
    record = read_json(outputs.record, "training record", "run the same command again")
    write_json(
        folder / "scores.json",
        {
            **scores.metrics,
            "running_statistics_shift": round(shift, 6),
            "tower_unchanged": record["tower_sha256_before"] == record["tower_sha256_after"],
        },
    )

"""Stage `ablation_evaluate`: the scores of an ablation's variant, from its raw detections."""

import dataclasses
from pathlib import Path

import torch

from .. import layout
from ..ablations import plan
from ..compute import set_up_cpu
from ..data.coco import load_instances
from ..evaluation.raw import RawDetections
from ..evaluation.scoring import headline, score
from ..io import read_json, write_json
from ..params import Params
from ..tensors import load_tensors, tensors_below
from ..vlm.freeze import DETECTOR_TOWER, IMAGE_TOWER, statistics_shift

SECTIONS = ("data", "vlm", "splits", "text", "model", "train", "evaluate")  # those that can change a score


def run(params: Params, name: str, variant: str) -> None:
    """Write ablations/<name>/<variant>/scores.json.

    It holds evaluate's metrics; `model`, which file was tested; what became of the image tower in its training:
    `running_statistics_shift` (`statistics_shift`: standard deviations; 0 is not at all) and `tower_unchanged`; and the
    params that led there.

    Raises:
        InputError: raw detections, splits or the model are missing, unsound, or do not belong together.
    """
    chosen = plan(params, name, variant)
    set_up_cpu(1)
    splits = {protocol: load_instances(layout.val_split(protocol)) for protocol in layout.VAL_SPLITS}
    scores = score(
        RawDetections.load(chosen.raw_detections), splits, chosen.params.evaluate, f"ablation {name}, {variant}"
    )
    record = read_json(chosen.record, "training record", chosen.remedy)
    write_json(
        chosen.scores,
        {
            "ablation": name,
            "variant": variant,
            "setting": chosen.setting,
            "metrics": scores.metrics,
            "model": str(chosen.model),
            "training_seconds": record["seconds"],
            **_tower(chosen.model, chosen.remedy),
            "params": {section: dataclasses.asdict(getattr(chosen.params, section)) for section in SECTIONS},
        },
    )
    print(f"ablation {name}, {variant}: {headline(scores.metrics)}", flush=True)


def _tower(model: Path, remedy: str) -> dict[str, float | bool]:
    """What training did to the image tower: the VLM's tensors against those of `model`."""
    vlm, _ = load_tensors(layout.VLM_WEIGHTS, "the VLM's weights", "run `python -m fvlm vlm`")
    detector, _ = load_tensors(model, "detector", remedy)
    before, after = tensors_below(IMAGE_TOWER, vlm), tensors_below(DETECTOR_TOWER, detector)
    return {
        "running_statistics_shift": round(statistics_shift(before, after), 6),
        "tower_unchanged": all(torch.equal(tensor, after[name]) for name, tensor in before.items()),
    }

"""Stage `ablation_detect`: raw detections of an ablation's variant that is not the pipeline's own run."""

from ..ablations import plan
from ..params import Params
from .detect import detect_all


def run(params: Params, name: str, variant: str) -> None:
    """Write ablations/<name>/<variant>/raw_detections.safetensors.

    Raises:
        InputError: the variant takes the pipeline's; or as `detect`.
    """
    chosen = plan(params, name, variant)
    output = chosen.own(chosen.raw_detections)
    chosen.require(chosen.text)
    detect_all(chosen.params, chosen.model, chosen.command, output, text_path=chosen.text)

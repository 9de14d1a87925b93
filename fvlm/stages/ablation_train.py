"""Stage `ablation_train`: the detector of an ablation's variant that trains one."""

from ..ablations import plan
from ..params import Params
from .train import Outputs, train_detector


def run(params: Params, name: str, variant: str) -> None:
    """Write model.safetensors, losses.csv and train.json in ablations/<name>/<variant>/.

    Interrupted and started again, it goes on from its last checkpoint, as `train` does.

    Raises:
        InputError: the variant takes the pipeline's, or another variant's; or as `train`.
    """
    chosen = plan(params, name, variant)
    outputs = Outputs(chosen.own(chosen.model), chosen.folder / "losses.csv", chosen.record)
    chosen.require(chosen.text)
    train_detector(chosen.params, chosen.setting, outputs, text_path=chosen.text)

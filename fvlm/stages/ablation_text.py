"""Stage `ablation_text`: text embeddings of an ablation's variant that has templates of its own."""

from ..ablations import plan
from ..params import Params
from .text import embed_all


def run(params: Params, name: str, variant: str) -> None:
    """Write ablations/<name>/<variant>/text_embeddings.safetensors.

    Raises:
        InputError: the variant takes the pipeline's; or as `text`.
    """
    chosen = plan(params, name, variant)
    embed_all(chosen.params, chosen.own(chosen.text))

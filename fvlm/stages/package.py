"""Stage `package`: make runs/<setting>/ a model folder, which can be copied, pushed and loaded anywhere."""

import dataclasses

from .. import layout
from ..errors import InputError
from ..io import read_json
from ..io import write_text as write_markdown
from ..params import Params, Setting
from ..predict.folder import read_record, write_record, write_text
from ..report.card import model_card
from ..tensors import load_tensors, sha256_of_tensors
from ..vlm.clip import load_card
from ..vlm.text_tower import text_tensors


def run(params: Params, setting: Setting) -> None:
    """Write text.safetensors, model.json and README.md beside the trained detector, which stays as it is.

    Nothing is computed: the text tower is copied from the VLM, the known embeddings from stage `text`, the defaults
    from params.evaluate; the card quotes the training record and the metrics. Equal inputs give equal bytes.

    Raises:
        InputError: a file of an earlier stage is missing, or they do not belong together.
    """
    train_again = f"run `python -m fvlm train --setting {setting}` again"
    card = load_card(layout.VLM_CARD)
    model, metadata = load_tensors(layout.model(setting), "detector", train_again)
    text, text_metadata = load_tensors(layout.TEXT_EMBEDDINGS, "text embeddings", "run `python -m fvlm text`")
    if metadata.get("vlm_card", {}).get("weights_sha256") != card.weights_sha256:
        raise InputError(f"{layout.model(setting)}: not trained on the VLM in {layout.VLM_WEIGHTS}; {train_again}")
    if metadata["inputs"]["text_embeddings"] != sha256_of_tensors(text):
        raise InputError(f"{layout.model(setting)}: not trained with {layout.TEXT_EMBEDDINGS}; {train_again}")
    model_sha256 = sha256_of_tensors(model)
    del model  # gigabytes for RN50x64

    remedy = "run `python -m fvlm vlm` again"
    vlm, _ = load_tensors(layout.VLM_WEIGHTS, "the VLM's weights", remedy)
    if sha256_of_tensors(vlm) != card.weights_sha256:
        raise InputError(f"{layout.VLM_WEIGHTS}: not the weights that {layout.VLM_CARD} describes; {remedy}")
    text_sha256 = write_text(layout.text_tower(setting), text_tensors(vlm), text["embeddings"])
    write_record(
        layout.model_record(setting),
        metadata=metadata,
        model_sha256=model_sha256,
        text_sha256=text_sha256,
        text=text_metadata,
        evaluate=dataclasses.asdict(params.evaluate),
    )
    card_of_model = model_card(
        read_record(layout.model(setting).parent),
        setting=setting,
        dataset=params.data.dataset,
        training=read_json(layout.train_record(setting), "training record", train_again),
        metrics=read_json(layout.metrics(setting), "metrics", f"run `python -m fvlm evaluate --setting {setting}`"),
        evaluate=params.evaluate,
    )
    write_markdown(layout.model_card(setting), card_of_model)

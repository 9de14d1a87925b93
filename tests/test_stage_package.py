"""The stage that makes runs/<setting>/ a model folder."""

import dataclasses
import json

import pytest
import torch
from small_model import write_models

from fvlm import layout
from fvlm.errors import InputError
from fvlm.io import sha256_of_file
from fvlm.params import Evaluate
from fvlm.predict.folder import DECIDING, NO_SAY, read_record
from fvlm.stages import package
from fvlm.tensors import load_tensors, save_tensors


@pytest.fixture
def params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_models()


def test_equal_inputs_give_equal_bytes_and_the_trained_model_is_not_touched(params):
    before = layout.model("zsd").stat().st_mtime_ns, sha256_of_file(layout.model("zsd"))
    package.run(params, "zsd")
    first = [sha256_of_file(path) for path in (layout.text_tower("zsd"), layout.model_record("zsd"))]
    package.run(params, "zsd")
    assert [sha256_of_file(path) for path in (layout.text_tower("zsd"), layout.model_record("zsd"))] == first
    assert (layout.model("zsd").stat().st_mtime_ns, sha256_of_file(layout.model("zsd"))) == before


def test_settings_of_one_vlm_have_the_same_text_file_which_a_cache_keeps_once(params):
    write_models("ovod")
    for setting in ("zsd", "ovod"):
        package.run(params, setting)
    assert sha256_of_file(layout.text_tower("zsd")) == sha256_of_file(layout.text_tower("ovod"))
    assert read_record(layout.model("ovod").parent).supervised != read_record(layout.model("zsd").parent).supervised


def test_the_record_says_what_prediction_needs(params):
    changed = dataclasses.replace(params, evaluate=dataclasses.replace(params.evaluate, alpha=0.25))
    package.run(changed, "zsd")
    record = read_record(layout.model("zsd").parent)
    assert all(getattr(record.evaluate, key) == getattr(changed.evaluate, key) for key in DECIDING)
    assert (record.setting, len(record.supervised), record.background) == ("zsd", 48, "background")
    assert len(record.names) == 1 + len(record.category_ids) == 81
    assert record.provenance["vlm"]["provenance"] == {"seed": 0}
    assert record.tokenizer["context_length"] == 24


def test_the_card_quotes_the_runs_own_numbers(params):
    package.run(params, "zsd")
    card = layout.model_card("zsd").read_text(encoding="utf-8")
    table = card[card.index("| classes |") :].splitlines()
    assert table[0] == "| classes | fused | detector only | VLM only |"
    assert table[2] == "| novel | 10.0 | 40.0 | 70.0 |"
    assert table[4] == "| all | 30.0 | 60.0 | 90.0 |"
    assert "commit c0ffee" in card and "30 steps, 240 pictures, seed 0, 12 s" in card
    assert "no use on photographs" in card and "Boxes of the novel classes" not in card
    assert "| Classes with boxes in training | 48: person, " in card
    assert all(line.isprintable() for line in card.splitlines())


def test_the_card_of_an_upper_bound_says_so(params):
    write_models("ovod")
    package.run(params, "ovod")
    card = layout.model_card("ovod").read_text(encoding="utf-8")
    assert "Boxes of the novel classes were seen in training." in card and "an upper bound" in card


@pytest.mark.parametrize(("path", "stage"), [(layout.metrics, "evaluate"), (layout.train_record, "train")])
def test_without_scores_or_record_the_missing_stage_is_named(params, path, stage):
    path("zsd").unlink()
    with pytest.raises(InputError, match=rf"not found; run `python -m fvlm {stage} --setting zsd`"):
        package.run(params, "zsd")


def test_every_key_of_evaluate_is_kept_or_known_to_have_no_say():
    fields = {field.name for field in dataclasses.fields(Evaluate)}
    assert fields == {*DECIDING, *NO_SAY, "variants"}


def test_a_model_of_another_vlm_is_refused(params):
    card = json.loads(layout.VLM_CARD.read_text())
    layout.VLM_CARD.write_text(json.dumps(card | {"weights_sha256": "0" * 64}))
    with pytest.raises(
        InputError, match=r"not trained on the VLM in models/vlm\.safetensors; run `python -m fvlm train"
    ):
        package.run(params, "zsd")


def test_text_embeddings_of_another_run_are_refused(params):
    tensors, metadata = load_tensors(layout.TEXT_EMBEDDINGS, "", "")
    save_tensors(layout.TEXT_EMBEDDINGS, {"embeddings": tensors["embeddings"] + 1}, metadata)
    with pytest.raises(InputError, match=r"not trained with data/text_embeddings\.safetensors"):
        package.run(params, "zsd")


def test_weights_that_the_card_does_not_describe_are_refused(params):
    tensors, metadata = load_tensors(layout.VLM_WEIGHTS, "", "")
    save_tensors(layout.VLM_WEIGHTS, tensors | {"logit_scale": torch.zeros(())}, metadata)
    with pytest.raises(InputError, match=r"not the weights that models/vlm\.json describes"):
        package.run(params, "zsd")

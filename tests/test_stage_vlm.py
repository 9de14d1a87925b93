"""Stage vlm as the pipeline runs it: killed and started again, and with a weights file of the user's."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from small_clip import TINY, tiny_clip
from test_golden import golden_of

from fvlm import layout
from fvlm.errors import InputError
from fvlm.io import sha256_of_file
from fvlm.params import load_params, read_tree
from fvlm.stages import vlm as stage
from fvlm.vlm import golden, weights
from fvlm.vlm.clip import load_card, load_clip

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "miniature": {"width": 8, "image_size": 32, "embed_dim": 16, "text_width": 16, "text_layers": 1},
    "pretrain": {"steps": 6, "batch_size": 8, "warmup_steps": 1, "held_out_pictures": 81, "threads": 1},
}
KILLED_AT_STEP_5 = """
import itertools, os, signal
from fvlm.cli import main
from fvlm.vlm import pretrain
pretrain.CHECKPOINT_EVERY = 2
count, right = itertools.count(1), pretrain.contrastive_loss
def loss(*arguments):
    if next(count) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return right(*arguments)
pretrain.contrastive_loss = loss
main(["vlm"])
"""


def write_params(folder):
    tree = read_tree(ROOT / "recipes" / "emoji.yaml")
    for section, values in SMALL.items():
        tree["vlm"][section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


def python(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_pretraining_killed_with_signal_9_and_started_again_ends_with_the_same_bytes(tmp_path):
    folders = [tmp_path / "killed", tmp_path / "undisturbed"]
    for folder in folders:
        folder.mkdir()
        write_params(folder)
    assert python(folders[0], "-c", KILLED_AT_STEP_5).returncode == -signal.SIGKILL
    assert len(list((folders[0] / "checkpoints").glob("vlm-*.safetensors"))) == 1
    again, undisturbed = [python(folder, "-m", "fvlm", "vlm") for folder in folders]
    assert "vlm: going on after step 4 of 6" in again.stdout
    assert undisturbed.returncode == 0, undisturbed.stderr
    for path in (layout.VLM_WEIGHTS, layout.VLM_CARD):
        assert (folders[0] / path).read_bytes() == (folders[1] / path).read_bytes()
    assert list((folders[0] / "checkpoints").iterdir()) == []


@pytest.fixture
def params():
    return load_params(ROOT / "recipes" / "emoji.yaml")


def changed(params, **values):
    return dataclasses.replace(params, vlm=dataclasses.replace(params.vlm, **values))


def test_whatever_decides_the_pretrained_weights_decides_the_checkpoints_name(params):
    pictures: Any = types.SimpleNamespace(names=["a", "b"], sprites=torch.zeros(2, 4, 2, 2))

    config = {"embed_dim": 16}
    compute = {"device": "cpu", "threads": 2}
    key = stage._key(params, compute, config, pictures)
    assert len(key) == 16

    def pretraining(**values):
        return changed(params, pretrain=dataclasses.replace(params.vlm.pretrain, **values))

    assert stage._key(pretraining(held_out_pictures=99), compute, config, pictures) == key
    for other in (pretraining(learning_rate=0.5), pretraining(steps=7), changed(params, seed=9)):
        assert stage._key(other, compute, config, pictures) != key
    assert stage._key(params, compute | {"threads": 1}, config, pictures) != key
    assert stage._key(params, compute, {"embed_dim": 32}, pictures) != key
    pictures.sprites += 1
    assert stage._key(params, compute, config, pictures) != key


@pytest.fixture
def own_weights(tmp_path, monkeypatch):
    """A project folder with a weights file in it that fits RN50, which is tiny here."""
    monkeypatch.chdir(tmp_path)
    for module in (weights, stage):
        monkeypatch.setattr(module, "real_tower_config", lambda architecture: TINY)
    values = golden_of(tiny_clip(seed=9))
    monkeypatch.setattr(golden, "golden_values", lambda architecture: values)
    save_file(tiny_clip().state_dict(), tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


def test_a_weights_file_is_loaded_and_its_hash_stands_in_the_card(params, own_weights, capsys):
    architecture = "RN50-quickgelu"
    params = changed(params, architecture=architecture, weights="./own.safetensors")  # sections of another stay unread
    stage.run(params)
    card = load_card(layout.VLM_CARD)
    assert (card.architecture, card.weights, card.pretraining) == (architecture, "./own.safetensors", None)
    assert card.provenance["weights"]["sha256"] == sha256_of_file(own_weights)
    assert card.provenance["weights"]["path"] == "./own.safetensors"
    loaded = load_clip(layout.VLM_WEIGHTS, card).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in tiny_clip().state_dict().items())
    said = capsys.readouterr().out
    assert sha256_of_file(own_weights) in said
    assert "dvc repro -f vlm" in said
    assert "golden text values of OpenAI's RN50 not reproduced: these are other weights" in said
    assert "read with QuickGELU; if it was trained with GELU" in said

    before = layout.VLM_WEIGHTS.read_bytes()
    own_weights.write_bytes(own_weights.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"own\.safetensors"):
        stage.run(params)
    assert layout.VLM_WEIGHTS.read_bytes() == before


@pytest.mark.slow
def test_snakemake_runs_the_stage_again_when_the_weights_file_changes_under_its_path(own_weights):
    pytest.importorskip("snakemake", reason="Snakemake 9.27 does not exist for Python 3.10")
    from test_workflow import Project

    project = Project(own_weights.parent / "project" / "fvlm")
    project.edit(lambda tree: tree["vlm"].update(architecture="RN50-quickgelu", weights=str(own_weights)))
    command = ("snakemake", "models/vlm.json", "--cores", "1", "--no-hooks")
    project.call(*command)
    assert project.ran() == ["vlm"]
    project.call(*command)
    assert project.ran() == []
    time.sleep(1.1)  # time stamps of some file systems have whole seconds
    save_file(tiny_clip(seed=1).state_dict(), own_weights)
    project.call(*command)
    assert project.ran() == ["vlm"]
    own_weights.unlink()
    assert str(own_weights) in project.call(*command, expect=1)


def test_the_card_of_a_pretrained_miniature_has_no_other_provenance_than_versions(params, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    vlm = params.vlm
    small = changed(
        params,
        miniature=dataclasses.replace(vlm.miniature, **SMALL["miniature"]),
        pretrain=dataclasses.replace(vlm.pretrain, **SMALL["pretrain"] | {"steps": 1}),
    )
    stage.run(small)
    card = json.loads(layout.VLM_CARD.read_text(encoding="utf-8"))
    assert set(card["provenance"]) == {"seed", "open_clip", "torch"}
    assert card["pretraining"]["steps"] == 1
    assert list(layout.CHECKPOINTS.iterdir()) == []

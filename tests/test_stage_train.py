import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import make_coco

from fvlm import layout
from fvlm.data.coco import categories, load_instances
from fvlm.data.splits import build_train_split
from fvlm.errors import InputError
from fvlm.io import write_csv, write_json
from fvlm.params import load_params
from fvlm.stages.train import Outputs, run, train_detector
from fvlm.tensors import load_tensors, save_tensors
from fvlm.training.loop import TrainingDiverged
from fvlm.vlm.clip import VlmCard, build_clip, save_vlm

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A working directory with everything that `train` reads, made without the earlier stages; gives its params."""
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load((ROOT / "recipes" / "emoji.yaml").read_text(encoding="utf-8"))
    tree["compute"] |= {"device": "cpu", "threads": 1}
    tree["data"] = {"dataset": "coco_folder", "root": "pictures"}
    tree["model"] |= {"image_size": 64, "fpn_channels": 8, "head_channels": 8, "head_fc_dim": 16}
    tree["train"] |= {"steps": 12, "batch_size": 2, "warmup_steps": 2, "checkpoint_every": 2, "learning_rate": 0.001}
    Path("params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    params = load_params()

    root = make_coco(Path("pictures"), train_images=6, val_images=1, image_size=(60, 48))
    write_json(layout.manifest(params), {"train": {"images": "train2017", "images_sha256": "0" * 64}})
    coco = load_instances(root / "annotations" / "instances_train2017.json")
    for setting in params.settings:
        write_json(layout.train_split(setting), build_train_split(coco, setting, keep_empty=False))

    config = {
        "embed_dim": 16,
        "quick_gelu": False,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 8, "patch_size": None},
        "text_cfg": {"context_length": 16, "vocab_size": 50, "width": 8, "heads": 1, "layers": 1},
    }
    torch.manual_seed(0)
    clip = build_clip(config)
    card = VlmCard.describe(
        clip, architecture="miniature", weights="random", model_config=config, pretraining=None, provenance={}
    )
    save_vlm(clip, card, layout.VLM_WEIGHTS, layout.VLM_CARD)
    names = {"names": ["background"] + [name for _, name in categories()], "category_ids": [i for i, _ in categories()]}
    save_tensors(
        layout.TEXT_EMBEDDINGS, {"embeddings": torch.randn(81, 16)}, {**names, "vlm_sha256": card.weights_sha256}
    )
    return params


def model_bytes(setting="zsd"):
    return layout.model(setting).read_bytes()


def test_equal_params_give_equal_model_files_and_the_checkpoint_is_removed(world):
    run(world, "zsd")
    first = model_bytes()
    run(world, "zsd")
    assert model_bytes() == first
    assert list(layout.CHECKPOINTS.iterdir()) == []


def test_a_seed_has_a_run_of_its_own_and_the_first_ones_is_that_without_a_seed(world):
    for seed in (0, 1, None):
        run(world, "zsd", seed)
    assert model_bytes("zsd_seed0") == model_bytes() != model_bytes("zsd_seed1")
    for name, seed in (("zsd", 0), ("zsd_seed0", 0), ("zsd_seed1", 1)):
        record = json.loads(layout.train_record(name).read_text())
        assert (record["seed"], record["params"]["train"]["seed"]) == (seed, seed)
        assert layout.losses(name).is_file()


def test_a_run_that_is_killed_with_signal_9_and_started_again_ends_with_the_same_bytes(world):
    run(world, "zsd")
    expected, losses = model_bytes(), layout.losses("zsd").read_text().splitlines()
    for path in (layout.model("zsd"), layout.losses("zsd"), layout.train_record("zsd")):
        path.unlink()

    command = [sys.executable, "-m", "fvlm", "train", "--setting", "zsd"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 60
    while not list(layout.CHECKPOINTS.glob("zsd-*.safetensors")) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(layout.CHECKPOINTS.glob("zsd-*.safetensors"))) == 1
    assert not layout.model("zsd").exists()

    run(world, "zsd")
    assert model_bytes() == expected
    speedless = [line.rsplit(",", 1)[0] for line in losses]
    assert [line.rsplit(",", 1)[0] for line in layout.losses("zsd").read_text().splitlines()] == speedless


def test_the_model_file_says_what_it_is_and_the_record_where_it_came_from(world):
    run(world, "ovod")
    tensors, metadata = load_tensors(layout.model("ovod"), "model", "")
    assert metadata["setting"] == "ovod"
    assert len(metadata["supervised"]) == 65
    assert metadata["model"] == json.loads(json.dumps(dataclasses.asdict(world.model)))
    assert VlmCard.from_dict(metadata["vlm_card"]).architecture == "miniature"
    assert any(name.startswith("tower.") for name in tensors)

    record = json.loads(layout.train_record("ovod").read_text())
    assert record["tower_sha256_before"] == record["tower_sha256_after"]
    assert (record["steps"], record["images"], record["freeze"]) == (12, 24, "all")
    assert record["trained_parameters"] + record["frozen_parameters"] > 1000
    assert {"python", "torch", "torchvision", "open_clip", "fvlm"} == record["versions"].keys()
    header, *rows = layout.losses("ovod").read_text().splitlines()
    assert header == (
        "step,loss,loss_rpn_score,loss_rpn_box,loss_class,loss_box,learning_rate,temperature,images_per_s"
    )
    assert [row.split(",")[0] for row in rows] == [str(step) for step in range(1, 13)]


def test_another_mode_of_freezing_writes_where_it_is_told_and_changes_the_tower(world):
    free = dataclasses.replace(world, model=dataclasses.replace(world.model, freeze="none"))
    train_detector(free, "zsd", Outputs(Path("a/model.safetensors"), Path("a/losses.csv"), Path("a/train.json")))
    record = json.loads(Path("a/train.json").read_text())
    assert record["tower_sha256_before"] != record["tower_sha256_after"]
    assert not layout.model("zsd").exists()


def forget_pictures(world):
    Path("pictures/train2017/000000000001.jpg").unlink()


def forget_manifest(world):
    layout.manifest(world).unlink()


def spoil_manifest(world):
    write_json(layout.manifest(world), {"train": []})


def forget_split(world):
    layout.train_split("zsd").unlink()


def forget_text(world):
    layout.TEXT_EMBEDDINGS.unlink()


def mix_text(world):
    tensors, metadata = load_tensors(layout.TEXT_EMBEDDINGS, "text", "")
    save_tensors(layout.TEXT_EMBEDDINGS, tensors, {**metadata, "vlm_sha256": "other"})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (forget_pictures, r"1 of \d pictures not found"),
        (forget_manifest, "manifest not found; run `python -m fvlm download`"),
        (spoil_manifest, r"expected train\.images and train\.images_sha256"),
        (forget_split, "run `python -m fvlm splits --setting zsd`"),
        (forget_text, "run `python -m fvlm text`"),
        (mix_text, "not of the VLM"),
    ],
)
def test_a_missing_or_foreign_input_is_named_and_older_outputs_stay(world, spoil, said):
    write_csv(layout.losses("zsd"), [], ["older"])
    spoil(world)
    with pytest.raises(InputError, match=said) as caught:
        run(world, "zsd")
    assert "\n" not in str(caught.value)
    assert [p.name for p in layout.losses("zsd").parent.iterdir()] == ["losses.csv"]


def test_a_diverging_run_leaves_no_model(world):
    wild = dataclasses.replace(world, train=dataclasses.replace(world.train, learning_rate=1e20, optimizer="sgd"))
    with pytest.raises(TrainingDiverged, match="step"):
        run(wild, "zsd")
    assert not layout.model("zsd").exists()


def test_the_texts_of_training_are_background_and_the_supervised_classes_by_rising_id(world, monkeypatch):
    tensors, metadata = load_tensors(layout.TEXT_EMBEDDINGS, "text", "")
    rows = torch.arange(81.0)[:, None].expand(81, 16)
    save_tensors(layout.TEXT_EMBEDDINGS, {**tensors, "embeddings": rows}, metadata)
    seen: dict[str, Any] = {}

    def stop(detector, pictures, text, *args, **kwargs):
        seen.update(text=text, category_ids=pictures.category_ids)
        raise InputError("seen")

    monkeypatch.setattr("fvlm.stages.train.train", stop)
    with pytest.raises(InputError, match="seen"):
        run(world, "zsd")
    names = ["background"] + [dict(categories())[category_id] for category_id in seen["category_ids"]]
    assert names[1:4] == ["person", "bicycle", "car"]
    assert len(names) == 49
    assert seen["text"][:, 0].tolist() == [metadata["names"].index(name) for name in names]


# Several processes, started as a user starts them.

COMMAND = [sys.executable, "-m", "fvlm", "train", "--setting", "zsd"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
TORCHRUN += ["--nproc-per-node", "2", *COMMAND[1:]]


def make_params(**changes):
    """params.yaml with other compute and train values."""
    tree = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    for key, value in changes.items():
        tree["compute" if key in tree["compute"] else "train"][key] = value
    Path("params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


def call(command=COMMAND, **environment):
    """The command's process, in a session of its own, its two outputs in pipes."""
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_of(session):
    """Process ids of the session that are still alive."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True).stdout
    return [line.split()[0] for line in listed.splitlines() if not line.split()[1].startswith("Z")]


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_bytes_of_two_of_our_own_killed_with_signal_9_and_started_again(world):
    make_params(processes=2, steps=30)
    out, err = (whole := call(TORCHRUN)).communicate(timeout=300)
    assert whole.returncode == 0, err
    assert out.count("parameters train") == 1 and "2 processes x 1 passes x 1" in out
    expected = model_bytes()
    assert json.loads(layout.train_record("zsd").read_text())["params"]["compute"]["processes"] == 2
    layout.model("zsd").unlink()

    killed = call()
    deadline_s = time.monotonic() + 120
    while not list(layout.CHECKPOINTS.glob("zsd-*.safetensors")) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    killed.kill()
    killed.communicate(timeout=60)
    while processes_of(killed.pid) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert processes_of(killed.pid) == [], "none is left to write into the next run's files"
    assert not layout.model("zsd").exists()

    out, err = (again := call()).communicate(timeout=300)
    assert (again.returncode, err) == (0, "")
    assert "going on after step" in out
    assert model_bytes() == expected


@pytest.mark.slow
def test_torchrun_must_start_as_many_as_the_params_say(world):
    make_params(processes=3, batch_size=3)
    process = call(TORCHRUN)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    said = [line for line in err.splitlines() if "compute.processes: expected the 2 that torchrun started" in line]
    assert len(said) == 1


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_with_one_line_and_code_2(world):
    make_params(processes=2)
    broken = sorted(Path("pictures/train2017").glob("*.jpg"))[-1]
    broken.write_bytes(broken.read_bytes()[:300])
    process = call()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert len(err.splitlines()) == 1, err
    line = err.strip()
    assert line.startswith("error: ") and broken.name in line
    assert processes_of(process.pid) == []


@pytest.mark.slow
def test_an_error_of_all_processes_is_one_line(world):
    make_params(processes=2, learning_rate=1e20, optimizer="sgd")
    process = call()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert len(err.splitlines()) == 1, err
    line = err.strip()
    assert "lower train.learning_rate" in line


@pytest.mark.slow
def test_a_terminated_training_leaves_no_process(world):
    make_params(processes=2, steps=100000)
    process = call()
    deadline_s = time.monotonic() + 120
    while not list(layout.CHECKPOINTS.glob("zsd-*.safetensors")) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in err
    assert processes_of(process.pid) == []

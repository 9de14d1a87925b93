"""The command `check` on files: what it reads, what it says where they are missing, stale or broken, its exit codes."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_coco
from raw_world import made_up_raw

from fvlm import layout
from fvlm.check import golden_findings
from fvlm.cli import PER_SETTING, main
from fvlm.data.coco import categories, load_instances
from fvlm.data.splits import build_val_split
from fvlm.detector.detector import build_detector
from fvlm.io import read_json, write_csv, write_json
from fvlm.params import load_params, read_tree
from fvlm.tensors import load_tensors, save_tensors
from fvlm.vlm.clip import VlmCard, build_clip, save_vlm
from fvlm.vlm.prompts import CLIP_TEMPLATES

ROOT = Path(__file__).resolve().parents[1]
CONFIG = {
    "embed_dim": 16,
    "quick_gelu": False,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 8, "patch_size": None},
    "text_cfg": {"context_length": 16, "vocab_size": 50, "width": 8, "heads": 1, "layers": 1},
}
METRICS = {
    "generalized_base_AP50": 65.0,
    "generalized_novel_AP50": 59.0,
    "generalized_all_AP50": 63.0,
    "detector_only_generalized_base_AP50": 61.0,
    "vlm_only_generalized_base_AP50": 58.0,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with small params and nothing built."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    write_params()
    return tmp_path


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Everything that `check` reads, of a run of setting zsd with good scores and a random VLM."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params()
        params = load_params()
        root = make_coco(Path("pictures"), train_images=1, val_images=136, image_size=(64, 48))
        write_json(layout.manifest(params), {"val": {"images": "val2017"}})
        split = build_val_split(load_instances(root / "annotations" / "instances_val2017.json"), "generalized")
        write_json(layout.val_split("generalized"), split)
        torch.manual_seed(0)
        clip = build_clip(CONFIG)
        card = VlmCard.describe(
            clip, architecture="miniature", weights="random", model_config=CONFIG, pretraining=None, provenance={}
        )
        save_vlm(clip, card, layout.VLM_WEIGHTS, layout.VLM_CARD)
        names = ["background", *(name for _, name in categories())]
        embeddings = {"embeddings": torch.randn(81, 16)}
        save_tensors(layout.TEXT_EMBEDDINGS, embeddings, {"names": names, "vlm_sha256": card.weights_sha256})
        detector = build_detector(params.model, card, clip.visual)
        save_tensors(layout.model("zsd"), detector.state_dict(), {})
        write_record(params, steps=300)
        made_up_raw(split).save(layout.raw_detections("zsd"))
        write_json(layout.metrics("zsd"), METRICS)
        rows = [
            {"alpha": a, "beta": b, "vlm_temperature": 0.05, "nms_iou": nms, "generalized_novel_AP50": 59 * b + other}
            for nms, other in ((0.4, 0), (0.6, -30))  # the headline's NMS first
            for a in (0.0, 0.35)
            for b in (0.0, 0.65)
        ]
        write_csv(layout.fusion_sweep("zsd"), rows, list(rows[0]))
    return folder


@pytest.fixture
def built(folder, template):
    """A working directory with all of `template`; gives its params."""
    shutil.copytree(template, folder, dirs_exist_ok=True)
    return load_params()


def write_params() -> None:
    tree = read_tree(ROOT / "recipes" / "emoji.yaml")
    tree["data"] = {"dataset": "coco_folder", "root": "pictures"}
    tree["model"] |= {"image_size": 64, "fpn_channels": 8, "head_channels": 8, "head_fc_dim": 16}
    Path("params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


def write_record(params, steps, after="a", **model):
    record = {"freeze": "all", "steps": steps, "tower_sha256_before": "a", "tower_sha256_after": after}
    record["params"] = {"model": dataclasses.asdict(params.model) | model}
    write_json(layout.train_record("zsd"), record)


def verdicts(*arguments: str) -> tuple[int, dict[str, dict]]:
    code = main(["check", "--json", "check.json", *arguments])
    return code, {rung["name"]: rung for rung in read_json("check.json", "outcome", "")["rungs"]}


def test_where_nothing_is_built_each_rung_names_the_command_that_makes_its_first_input(folder, capsys):
    code, rungs = verdicts()
    assert code == 2  # a script must not take it for a run that is sound
    assert {name: rung["verdict"] for name, rung in rungs.items()} == dict.fromkeys(rungs, "skipped")
    assert rungs["text"]["found"] == "models/vlm.json not found; run `python -m fvlm vlm`"
    assert rungs["regions"]["found"].endswith("manifest.json not found; run `python -m fvlm download`")
    out, err = capsys.readouterr()
    assert "check: 0 ok, 0 suspicious, 0 failed, 8 skipped" in out
    assert err == (
        "error: check: nothing of setting zsd could be checked, for the reasons above; build it with `snakemake all` "
        "or `dvc repro`\n"
    )


@pytest.mark.parametrize(
    ("path", "rung", "command"),
    [
        (layout.TEXT_EMBEDDINGS, "text", "text"),
        (layout.VLM_WEIGHTS, "regions", "vlm"),
        (layout.val_split("generalized"), "regions", "val_splits"),
        (layout.model("zsd"), "tower", "train --setting zsd"),
        (layout.raw_detections("zsd"), "proposals", "detect --setting zsd"),
        (layout.metrics("zsd"), "detector", "evaluate --setting zsd"),
        (layout.fusion_sweep("zsd"), "novel", "evaluate --setting zsd"),
    ],
)
def test_a_rung_without_its_input_names_the_command_that_makes_it(built, path, rung, command):
    path.unlink()
    code, rungs = verdicts()
    assert code == 0
    assert rungs[rung]["verdict"] == "skipped"
    assert rungs[rung]["found"] == f"{path} not found; run `python -m fvlm {command}`"


def test_a_good_run_passes_and_is_told_in_order_from_the_bottom(built, capsys):
    code, rungs = verdicts("--setting", "zsd")
    assert code == 0
    assert {name: rung["verdict"] for name, rung in rungs.items()} == {
        "text": "skipped",
        "regions": "skipped",  # the VLM's weights are random
        "tower": "ok",
        "proposals": "ok",
        "detector": "ok",
        "fusion": "ok",
        "novel": "ok",
        "published": "skipped",
    }
    out = capsys.readouterr().out
    places = [out.index(f"\n{number} {name}") for number, name in enumerate(rungs, start=1)]
    assert places == sorted(places)
    assert max(len(line) for line in out.splitlines()) <= 120
    assert "look at" not in out


def test_a_tower_that_changed_fails_with_exit_code_1_and_is_where_to_start(built, capsys):
    tensors, metadata = load_tensors(layout.model("zsd"), "", "")
    tensors["tower.visual.bn1.running_mean"] += 1e-3
    save_tensors(layout.model("zsd"), tensors, metadata)
    code, rungs = verdicts()
    assert code == 1
    assert rungs["tower"]["verdict"] == "failed" and "bn1.running_mean" in rungs["tower"]["found"]
    out = capsys.readouterr().out
    assert "look at" in out and "check: start at rung tower" in out


def test_scores_of_a_training_too_short_for_batch_norm_are_not_judged(built):
    write_record(built, steps=16)
    write_json(layout.metrics("zsd"), dict.fromkeys(METRICS, 0.0))
    code, rungs = verdicts()
    assert code == 0
    for name in ("proposals", "detector", "fusion", "novel"):
        assert rungs[name]["verdict"] == "skipped"
        assert rungs[name]["found"].startswith(
            "the detector is not trained: after 16 steps 19 % of batch norm's initial"
        )


def test_the_same_scores_after_a_whole_training_fail(built):
    write_json(layout.metrics("zsd"), dict.fromkeys(METRICS, 0.0))
    code, rungs = verdicts()
    assert code == 1
    assert rungs["detector"]["verdict"] == rungs["novel"]["verdict"] == "failed"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda params: write_record(params, 300, image_size=128), "model.image_size was 128 and is 64"),
        (lambda params: write_json(layout.train_record("zsd"), []), "expected a training record"),
        (lambda params: write_json(layout.metrics("zsd"), {}), "expected metrics as `evaluate` writes them"),
        (lambda params: layout.metrics("zsd").write_text("{"), "not valid JSON"),
        (lambda params: layout.raw_detections("zsd").write_bytes(b"x"), "not a readable safetensors file"),
        (
            lambda params: layout.fusion_sweep("zsd").write_text("a,b\n1,2\n"),
            "expected the table that `evaluate` writes",
        ),
        (
            lambda params: save_tensors(layout.TEXT_EMBEDDINGS, {"embeddings": torch.zeros(1)}, {"vlm_sha256": "0"}),
            "not of the VLM in",
        ),
        (
            lambda params: write_json(
                layout.VLM_CARD, read_json(layout.VLM_CARD, "", "") | {"architecture": "RN50-quickgelu"}
            ),
            "expected vlm.architecture miniature as in params.yaml, got RN50-quickgelu",
        ),
    ],
)
def test_broken_or_stale_files_end_with_2_and_one_line(built, spoil, words, capsys):
    spoil(built)
    assert main(["check"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and "run " in line


def test_the_outcome_for_programs_holds_every_number(built):
    verdicts()
    outcome = json.loads(Path("check.json").read_text(encoding="utf-8"))
    assert outcome["setting"] == "zsd"
    assert outcome["counts"] == {"ok": 5, "suspicious": 0, "failed": 0, "skipped": 3}
    numbers = {rung["name"]: rung["numbers"] for rung in outcome["rungs"]}
    assert numbers["novel"] == {"novel_AP50": 59.0, "novel_AP50_beta_0": 0.0}
    assert set(numbers["proposals"]) == {"AR_base", "AR_novel", "AR_base_chance", "AR_novel_chance"}


def test_an_unknown_setting_ends_with_2(folder, capsys):
    assert main(["check", "--setting", "zsd_strict"]) == 2
    assert "add it to settings" in capsys.readouterr().err


def test_golden_values_are_asked_of_openais_weights_and_clips_templates_only():
    card = VlmCard(
        architecture="RN50-quickgelu",
        weights="openai",
        model_config={},
        image_mean=(0.5,) * 3,
        image_std=(0.5,) * 3,
        logit_scale=100.0,
        grid=7,
        weights_sha256="",
        pretraining=None,
        provenance={},
    )
    names = ["background", *(name for _, name in categories())]
    metadata = {"names": names, "templates": list(CLIP_TEMPLATES), "background": "background"}
    torch.manual_seed(0)
    tensors = {"embeddings": torch.randn(81, 1024)}
    findings = golden_findings(card, tensors, metadata)
    assert findings and any("background" in finding for finding in findings)
    assert golden_findings(dataclasses.replace(card, weights="random"), tensors, metadata) is None
    assert golden_findings(dataclasses.replace(card, architecture="RN50x4-quickgelu"), tensors, metadata) is None
    assert golden_findings(card, tensors, metadata | {"templates": ["a {}"]}) is None
    assert golden_findings(card, tensors, metadata | {"background": "nothing"}) is None


@pytest.mark.long
def test_a_small_world_that_was_really_trained_climbs_the_ladder(tmp_path, monkeypatch):
    """The default recipe, shortened to what still learns: three minutes on two cores."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    tree = read_tree(ROOT / "recipes" / "emoji.yaml")
    tree["settings"] = ["zsd"]
    tree["data"]["emoji"] |= {"train_images": 400, "val_images": 200}
    tree["vlm"]["pretrain"] |= {"steps": 250, "warmup_steps": 25}
    tree["train"] |= {"steps": 120, "warmup_steps": 20}
    tree["evaluate"]["sweep"].update(alpha=[0.35], beta=[0.0, 0.65])
    Path("params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    for stage in ("download", "vlm", "splits", "val_splits", "text", "train", "detect", "evaluate"):
        assert main([stage, *(["--setting", "zsd"] if stage in PER_SETTING else [])]) == 0

    code, rungs = verdicts()
    assert code == 0
    assert {name: rungs[name]["verdict"] for name in ("regions", "tower", "proposals", "detector", "novel")} == {
        "regions": "ok", "tower": "ok", "proposals": "ok", "detector": "ok", "novel": "ok",
    }  # fmt: skip
    assert rungs["regions"]["numbers"]["novel_class_mean"] > 10 * 100 / 65


def test_text_embeddings_are_compared_with_golden_values_where_the_weights_are_openais(template):
    card = dataclasses.replace(
        VlmCard.from_dict(read_json(template / layout.VLM_CARD, "card", "")),
        architecture="RN50-quickgelu",
        weights="openai",
    )
    names = ["background", *(name for _, name in categories())]
    metadata = {"names": names, "templates": list(CLIP_TEMPLATES), "background": "background"}
    made_up = {"embeddings": torch.randn(81, 1024, generator=torch.Generator().manual_seed(0))}
    assert "first components of background" in " ".join(golden_findings(card, made_up, metadata) or [])
    named_by_hash = dataclasses.replace(card, weights="RN50.pt", provenance={"weights": {"is_openais_archive": True}})
    assert golden_findings(named_by_hash, made_up, metadata)
    by_texts = {"weights": {"is_openais_archive": False, "golden_values": {"reproduced": True}}}
    assert golden_findings(dataclasses.replace(card, weights="own.pt", provenance=by_texts), made_up, metadata)
    for other in (
        dataclasses.replace(card, weights="random"),
        dataclasses.replace(card, weights="own.pt", provenance={"weights": {"is_openais_archive": False}}),
        dataclasses.replace(card, architecture="RN50x4-quickgelu"),
    ):
        assert golden_findings(other, made_up, metadata) is None
    assert golden_findings(card, made_up, metadata | {"templates": ["{}"]}) is None
    assert golden_findings(card, made_up, metadata | {"background": "stuff"}) is None

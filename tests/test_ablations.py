"""What each variant of an ablation runs with, what it takes from the pipeline, and what the report says of it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from report_inputs import params_of, write_inputs
from test_stage_train import world  # noqa: F401 (a fixture)

from fvlm import layout
from fvlm.ablations import ABLATIONS, ONE_TEMPLATE, plan, with_changes
from fvlm.data.coco import load_instances
from fvlm.data.splits import build_train_split, build_val_all, build_val_split
from fvlm.errors import InputError
from fvlm.io import read_json, write_json
from fvlm.params import Setting, load_params, read_tree
from fvlm.report import ablations
from fvlm.stages import (
    ablation_detect,
    ablation_evaluate,
    ablation_table,
    ablation_train,
    detect,
    evaluate,
    report,
    train,
)
from fvlm.tensors import load_tensors, save_tensors
from fvlm.vlm.prompts import CLIP_TEMPLATES

RECIPE = Path(__file__).parents[1] / "recipes" / "emoji.yaml"
EVERY_VARIANT = [(name, variant) for name, ablation in ABLATIONS.items() for variant in ablation.variants]


@pytest.mark.parametrize(("name", "variant"), EVERY_VARIANT)
def test_every_change_is_one_that_params_yaml_could_make(name, variant, tmp_path):
    tree = read_tree(RECIPE)
    for key, value in ABLATIONS[name].variants[variant].changes.items():
        section, field = key.split(".")
        assert field in tree[section]
        tree[section][field] = list(value) if isinstance(value, tuple) else value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    assert plan(load_params(RECIPE), name, variant).params == load_params(tmp_path / "params.yaml")


def test_a_variant_that_changes_nothing_takes_the_pipelines_files():
    params = load_params(RECIPE)
    taken = [(name, variant) for name, variant in EVERY_VARIANT if plan(params, name, variant).is_the_pipelines]
    assert taken == [
        ("freeze", "all"), ("prompt", "ensemble"), ("background", "0.2"), ("setting", "zsd"), ("setting", "ovod"),
    ]  # fmt: skip
    ovod = plan(params, "setting", "ovod")
    assert (ovod.model, ovod.text) == (layout.model("ovod"), layout.TEXT_EMBEDDINGS)
    assert ovod.scores == Path("ablations/setting/ovod/scores.json")
    with pytest.raises(InputError, match=r"ovod of setting makes no model.safetensors of its own: it takes runs/ovod/"):
        ovod.own(ovod.model)


def test_another_headline_makes_other_variants_the_pipelines():
    params = with_changes(load_params(RECIPE), {"model.freeze": "norm_eval", "text.templates": ("one {}",)})
    params = dataclasses.replace(params, settings=("zsd_strict",))
    assert not any(plan(params, name, variant).is_the_pipelines for name, variant in EVERY_VARIANT[:-3])
    assert plan(params, "setting", "zsd_strict").is_the_pipelines
    assert not plan(params, "setting", "zsd").is_the_pipelines, "it is not among settings"
    assert plan(params, "freeze", "all").text == layout.TEXT_EMBEDDINGS
    assert plan(params, "freeze", "all").params.text.templates == ("one {}",), "all else stays as params.yaml says"


def test_the_prompt_ablation_tests_both_detectors_with_both_texts():
    params = load_params(RECIPE)
    plans = {variant: plan(params, "prompt", variant) for variant in ABLATIONS["prompt"].variants}
    own = Path("ablations/prompt")
    assert {variant: (p.model, p.text) for variant, p in plans.items()} == {
        "ensemble": (layout.model("zsd"), layout.TEXT_EMBEDDINGS),
        "single": (own / "single/model.safetensors", own / "single/text_embeddings.safetensors"),
        "single_at_test": (layout.model("zsd"), own / "single_at_test/text_embeddings.safetensors"),
        "ensemble_at_test": (own / "single/model.safetensors", layout.TEXT_EMBEDDINGS),
    }
    assert len({p.raw_detections for p in plans.values()}) == 4
    assert ONE_TEMPLATE[0] in CLIP_TEMPLATES


@pytest.fixture
def built(world):  # noqa: F811
    """The tiny world with the pipeline's own runs of `zsd` and `ovod`, evaluated."""
    coco = load_instances(Path("pictures/annotations/instances_train2017.json"))
    manifest = read_json(layout.manifest(world), "manifest", "")
    write_json(layout.manifest(world), {**manifest, "val": {"images": "train2017"}})
    for protocol in layout.PROTOCOLS:
        write_json(layout.val_split(protocol), build_val_split(coco, protocol))
    write_json(layout.val_split("all"), build_val_all(coco))
    write_json(layout.train_split("zsd_strict"), build_train_split(coco, "zsd_strict", keep_empty=False))
    for setting in world.settings:
        train.run(world, setting)
        detect.run(world, setting)
        evaluate.run(world, setting)
    return world


def run(params, name, variant):
    chosen = plan(params, name, variant)
    if chosen.model.parent == chosen.folder:
        ablation_train.run(params, name, variant)
    if chosen.raw_detections.parent == chosen.folder:
        ablation_detect.run(params, name, variant)
    ablation_evaluate.run(params, name, variant)
    return read_json(chosen.scores, "scores", "")


@pytest.mark.slow
def test_variants_are_trained_with_their_change_and_the_pipelines_own_run_scores_what_the_pipeline_scored(built):
    scores = {variant: run(built, "setting", variant) for variant in ABLATIONS["setting"].variants}
    for setting in ("zsd", "ovod"):
        pipelines = read_json(layout.metrics(setting), "metrics", "")
        assert {key: pipelines[key] for key in scores[setting]["metrics"]} == scores[setting]["metrics"]
        assert not Path(f"ablations/setting/{setting}/model.safetensors").exists()
    _, metadata = load_tensors(Path("ablations/setting/zsd_strict/model.safetensors"), "model", "")
    assert metadata["setting"] == "zsd_strict"

    frozen, drifting = run(built, "freeze", "all"), run(built, "freeze", "none")
    assert (frozen["running_statistics_shift"], frozen["tower_unchanged"]) == (0, True)
    assert drifting["running_statistics_shift"] > 0
    assert not drifting["tower_unchanged"]
    assert read_json("ablations/freeze/none/train.json", "record", "")["freeze"] == "none"

    other = plan(built, "prompt", "single_at_test").text
    tensors, metadata = load_tensors(layout.TEXT_EMBEDDINGS, "text", "")
    with pytest.raises(InputError, match=r"single_at_test/text_embeddings.safetensors: not found; run `snakemake prom"):
        ablation_detect.run(built, "prompt", "single_at_test")
    save_tensors(other, {"embeddings": torch.randn(tensors["embeddings"].shape)}, metadata)
    run(built, "prompt", "single_at_test")
    raw, _ = load_tensors(plan(built, "prompt", "single_at_test").raw_detections, "raw", "")
    pipelines, _ = load_tensors(layout.raw_detections("zsd"), "raw", "")
    assert torch.equal(raw["boxes"], pipelines["boxes"]), "the same detector"
    assert not torch.equal(raw["vlm_similarity"], pipelines["vlm_similarity"]), "other texts"

    ablation_table.run(built, "setting")
    (shown,) = ablations.shown(built, {s: read_json(layout.metrics(s), "metrics", "") for s in built.settings})
    assert shown.stale is None
    assert list(shown.table["detector"]) == ["the pipeline's", "its own", "the pipeline's"]


def write_scores(params, name, **changes):
    """Made-up scores of every variant of ablation `name`: novel AP50 is 10, 20, ..."""
    for number, variant in enumerate(ABLATIONS[name].variants, start=1):
        chosen = plan(params, name, variant)
        metrics = dict.fromkeys(ablations.METRICS, 5.0) | {"generalized_novel_AP50": 10.0 * number}
        write_json(
            chosen.scores,
            {
                "ablation": name,
                "variant": variant,
                "setting": chosen.setting,
                "metrics": metrics,
                "model": str(chosen.model),
                "running_statistics_shift": 0.126,
                "tower_unchanged": number == 1,
                "params": {s: dataclasses.asdict(getattr(chosen.params, s)) for s in ablation_evaluate.SECTIONS},
                **changes,
            },
        )


METRICS: dict[Setting, dict[str, float]] = {
    "zsd": dict.fromkeys(ablations.METRICS, 5.0) | {"generalized_novel_AP50": 10.0}
}


@pytest.fixture
def params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return params_of(settings=("zsd",), pictures=0)


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_table_has_a_row_for_each_variant_and_the_report_shows_it(params, name):
    write_scores(params, name)
    ablation_table.run(params, name)
    table = next(iter(ablations.shown(params, METRICS))).table
    assert list(table.iloc[:, 0]) == list(ABLATIONS[name].variants)
    assert list(table["novel AP50, fused"]) == [10.0 * n for n in range(1, 1 + len(table))]
    assert ("shift of running statistics" in table) is (name == "freeze")
    markdown = Path(f"ablations/{name}/comparison.md").read_text()
    assert all(note in markdown for note in ABLATIONS[name].notes)
    assert Path(f"ablations/{name}/comparison.png").read_bytes().startswith(b"\x89PNG")
    assert Path(f"ablations/{name}/comparison.csv").read_text().count("\n") == 1 + len(table)


def test_a_missing_variant_or_one_of_another_ablation_is_named(params):
    with pytest.raises(
        InputError, match=r"freeze/all/scores.json: scores of variant all not found; run `snakemake fre"
    ):
        ablation_table.run(params, "freeze")
    write_scores(params, "freeze", variant="other")
    with pytest.raises(InputError, match=r"expected scores of \('freeze', 'all'\), got \('freeze', 'other'\)"):
        ablation_table.run(params, "freeze")


def test_an_ablation_of_other_params_or_of_an_earlier_run_is_called_so(params):
    write_scores(params, "background")
    ablation_table.run(params, "background")

    def stale(params, metrics=METRICS):
        return next(iter(ablations.shown(params, metrics))).stale

    assert stale(params) is None
    assert stale(with_changes(params, {"train.background_weight": 0.5})) is None, "each variant sets its own"
    assert stale(with_changes(params, {"train.workers": 3})) is None, "that changes no score"
    assert stale(with_changes(params, {"train.steps": 7})) == "0.2 had train.steps 450 and would have 7 now"
    again: dict[Setting, dict[str, float]] = {"zsd": {**METRICS["zsd"], "generalized_base_AP50": 6.0}}
    assert stale(params, again) == "0.2 is the pipeline's run, and the pipeline has run again since, with other scores"


def test_a_damaged_comparison_says_what_to_do(params):
    write_json(layout.ablation_comparison("prompt"), {"ensemble": {}})
    with pytest.raises(InputError, match=r"comparison.json: not as this version of fvlm writes it .*; run `snakemake"):
        ablations.shown(params, METRICS)


def test_the_report_has_a_section_for_the_ablations_that_were_run_and_none_without(params):
    write_inputs(params, images=3, steps=5)
    report.run(params)
    assert "Ablations" not in Path("reports/index.html").read_text()
    write_scores(params, "setting")
    ablation_table.run(params, "setting")
    report.run(params)
    page = Path("reports/index.html").read_text()
    assert page.count('id="ablation-') == 1
    assert "Which boxes supervise" in page
    assert "that of" not in json.dumps(ablations.shown(params, METRICS)[0].table.to_dict())
    assert "Not of the run that this page shows" in page, "the made-up scores are not those of the made-up run"

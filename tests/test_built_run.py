"""The pipeline's own results, where it has been run in this clone: every AP that they hold, by plain pycocotools.

make run && python -m pytest -m long tests/test_built_run.py
"""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_ap import by_pycocotools

from fvlm import layout
from fvlm.data.coco import load_instances
from fvlm.evaluation.detections import coco_results, detect_cases
from fvlm.evaluation.protocols import case_of, protocols
from fvlm.evaluation.raw import RawDetections
from fvlm.evaluation.variants import known_variants, rules_of
from fvlm.params import Variant, load_params

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4  # percent: 1e-6 of an AP, and half of it is rounding


@pytest.fixture(scope="module", params=["zsd", "ovod", "zsd_strict"])
def run(request):
    """The run's name, its params, raw detections and splits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        if not layout.metrics(request.param).is_file():
            pytest.skip(f"{layout.metrics(request.param)} is not there: run the pipeline first")
        params, raw = load_params(), RawDetections.load(layout.raw_detections(request.param))
        yield request.param, params, raw, {name: load_instances(layout.val_split(name)) for name in layout.VAL_SPLITS}


def detected(raw, protocol, splits, rules):
    [found] = detect_cases(raw, [case_of(protocol, splits, rules)])
    return coco_results(found)


def test_every_ap_of_the_metrics_is_pycocotools_own(run):
    name, params, raw, splits = run
    metrics = json.loads((ROOT / layout.metrics(name)).read_text())
    generalized = protocols()["generalized"]
    exported = {
        "": json.loads((ROOT / layout.detections(name)).read_text()),
        "detector_only_": json.loads((ROOT / layout.detector_only_detections(name)).read_text()),
        "vlm_only_": detected(raw, generalized, splits, replace(params.evaluate, alpha=1.0, beta=1.0)),
    }
    expected: dict[str, float] = {}
    for prefix, results in exported.items():
        means = by_pycocotools(results, generalized, splits, params.evaluate.images)
        expected |= {f"{prefix}{key}": mean for key, mean in means.items()}
    for key in ("constrained_base", "constrained_novel"):
        results = detected(raw, protocols()[key], splits, params.evaluate)
        expected |= by_pycocotools(results, protocols()[key], splits, params.evaluate.images)
    assert expected == pytest.approx({key: metrics[key] for key in expected}, abs=TOLERANCE)
    assert metrics.keys() - expected.keys() == {"AR100_novel_proposals"}


@pytest.mark.parametrize("number", range(1 + len(known_variants())))
def test_every_protocol_variant_is_pycocotools_own(run, number):
    name, params, raw, splits = run
    variant = [Variant(name="headline", source=""), *known_variants()][number]
    rules = rules_of(variant, params.evaluate)
    with open(ROOT / layout.protocol_variants(name), newline="") as file:
        row = list(csv.DictReader(file))[number]
    assert row["variant"] == variant.name
    results = detected(raw, protocols()["generalized"], splits, rules)
    for key, mean in by_pycocotools(results, protocols()["generalized"], splits, rules.images).items():
        if key.endswith("_AP50"):
            assert float(row[key]) == pytest.approx(mean, abs=TOLERANCE), key

import json

import pytest
from PIL import Image
from report_inputs import params_of, write_inputs

from fvlm import layout
from fvlm.errors import InputError
from fvlm.io import write_json
from fvlm.stages import report

OUTPUTS = (
    "comparison.csv",
    "comparison.md",
    "comparison.tex",
    "losses.png",
    "fusion_sweep.png",
    "per_class.png",
    "detections.png",
    "index.html",
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_stage_writes_its_outputs_and_the_same_bytes_again(here):
    params = params_of(settings=("zsd",), pictures=2)
    write_inputs(params, images=6, steps=20)
    report.run(params)
    first = contents(here / "reports")
    assert sorted(first) == sorted(OUTPUTS)
    assert (here / "metrics.json").read_bytes() == (here / "metrics/zsd.json").read_bytes()
    for name in OUTPUTS:
        if name.endswith(".png"):
            with Image.open(here / "reports" / name) as picture:
                picture.load()
    assert b"68.8" in first["comparison.csv"]
    report.run(params)
    assert contents(here / "reports") == first


def test_report_setting_chooses_the_headline_and_zero_pictures_still_make_a_sheet(here):
    params = params_of(settings=("ovod", "zsd"), setting="ovod", pictures=0)
    write_inputs(params, images=3, steps=5)
    report.run(params)
    assert json.loads((here / "metrics.json").read_text())["generalized_novel_AP50"] == 81.2
    assert (here / "reports/detections.png").is_file()
    assert "report.pictures is 0" in (here / "reports/index.html").read_text()


def test_every_missing_file_is_named_with_the_stage_that_makes_it(here):
    with pytest.raises(InputError) as error:
        report.run(params_of())
    lines = str(error.value).splitlines()
    assert "runs/ovod/losses.csv: not found; run `python -m fvlm train --setting ovod`" in lines
    assert "metrics/zsd.json: not found; run `python -m fvlm evaluate --setting zsd`" in lines
    assert "data/splits/counts.csv: not found; run `python -m fvlm val_splits`" in lines
    assert "models/vlm.json: not found; run `python -m fvlm vlm`" in lines
    assert "data/emoji/manifest.json: not found; run `python -m fvlm download`" in lines
    assert len(lines) == 4 + 2 * 7


def _drop_metric(path):
    metrics = json.loads(path.read_text())
    del metrics["AR100_novel_proposals"]
    write_json(path, metrics)


@pytest.mark.parametrize(
    ("path", "spoil", "message"),
    [
        (layout.metrics("zsd"), _drop_metric, "absent: AR100_novel_proposals"),
        (layout.metrics("zsd"), lambda path: path.write_text("{"), "not valid JSON"),
        (
            layout.metrics("zsd"),
            lambda path: path.write_text(path.read_text().replace("68.8", '"x"')),
            "expected a number",
        ),
        (layout.losses("zsd"), lambda path: path.write_text("step,loss\n1,2\n"), "absent: loss_rpn_score"),
        (layout.losses("zsd"), lambda path: path.write_text(""), "not a table"),
        (layout.losses("zsd"), lambda path: path.write_text(path.read_text().splitlines()[0] + "\n"), "no row"),
        (
            layout.fusion_sweep("zsd"),
            lambda path: path.write_text(path.read_text() + "0.9,0.9,0.1,0.4,,,\n"),
            "empty ones",
        ),
        (layout.detections("zsd"), lambda path: path.write_text('{"a": 1}'), "expected a list of COCO results"),
        (
            layout.detections("zsd"),
            lambda path: path.write_text('[{"image_id": 101, "category_id": 15000, "bbox": [0, 0, 1, 1], "score": 1}]'),
            "category 15000 is not scored",
        ),
    ],
)
def test_an_unsound_input_is_named_and_no_output_is_touched(here, path, spoil, message):
    params = params_of(settings=("zsd",), pictures=1)
    write_inputs(params, images=2, steps=3)
    spoil(path)
    with pytest.raises(InputError, match=message) as error:
        report.run(params)
    assert str(error.value).startswith(f"{path}: ")
    assert "python -m fvlm" in str(error.value)
    assert not (here / "reports").exists()
    assert not (here / "metrics.json").exists()


def test_a_missing_validation_picture_is_named(here):
    params = params_of(settings=("zsd",), pictures=1)
    write_inputs(params, images=1, steps=3)
    (here / "data/emoji/val2017/000000000101.jpg").unlink()
    with pytest.raises(InputError, match=r"000000000101\.jpg"):
        report.run(params)

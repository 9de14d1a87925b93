import json
from html.parser import HTMLParser

import pandas as pd
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
    "precision_recall.png",
    "errors.png",
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


class Tables(HTMLParser):
    """Every table of a page as rows of cells; a cell that spans columns stands in each of them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.span: int = 0  # of the open cell, 0 outside
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.span = int(dict(attrs).get("colspan", 1))
            self.tables[-1][-1] += [""] * self.span

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.span = 0

    def handle_data(self, data):
        for place in range(-self.span, 0):
            self.tables[-1][-1][place] += data


def triples(table):
    """The numbers of novel, base and all that stand together in a row: under equal headings, if there are any above."""
    depth, names = next(((i, row) for i, row in enumerate(table) if {"novel", "base", "all"} <= set(row)), (0, []))
    above = table[depth - 1] if depth else [""] * len(names)
    for heading in dict.fromkeys(above):
        columns = [
            [i for i, cell in enumerate(names) if (cell, above[i]) == (group, heading)]
            for group in ("novel", "base", "all")
        ]
        for row in table[depth + 1 :]:
            for places in zip(*columns, strict=True):
                cells = [row[place].split()[0] for place in places]
                if cells[0][-1].isdigit():  # not a second row of headings
                    yield [float(cell) for cell in cells]


def make_consistent(setting):
    """The metrics of report_inputs are random: here all follows from novel and base."""
    metrics = json.loads(layout.metrics(setting).read_text())
    for key in [key for key in metrics if "generalized_all" in key]:
        base, novel = (metrics[key.replace("_all_", f"_{group}_")] for group in ("base", "novel"))
        metrics[key] = (48 * base + 17 * novel) / 65
    write_json(layout.metrics(setting), metrics)
    sweep = pd.read_csv(layout.fusion_sweep(setting))
    sweep["generalized_all_AP50"] = (48 * sweep["generalized_base_AP50"] + 17 * sweep["generalized_novel_AP50"]) / 65
    sweep.to_csv(layout.fusion_sweep(setting), index=False)


def test_all_is_the_weighted_mean_of_base_and_novel_in_every_table(here):
    params = params_of(pictures=0)
    write_inputs(params, images=400, steps=3)  # enough that all but the first class, which has none, have a box
    for setting in params.settings:
        make_consistent(setting)
    report.run(params)
    checked = 0
    for table in Tables((here / "reports/index.html").read_text()).tables:
        for novel, base, every in triples(table):
            # 0.1 for three roundings; errors average over the 47 base classes that have a box
            assert (48 * base + 17 * novel) / 65 == pytest.approx(every, abs=0.25), table
            checked += 1
    # AP50 and AP of three scores; three protocols; six kinds of error, fused and detector only; two NMS thresholds
    assert checked == 2 * 2 * 3 + 2 * 3 + 2 * 6 * 2 + 2 * 2


def test_report_setting_chooses_the_headline_and_zero_pictures_still_make_a_sheet(here):
    params = params_of(settings=("ovod", "zsd"), setting="ovod", pictures=0)
    write_inputs(params, images=3, steps=5)
    report.run(params)
    assert json.loads((here / "metrics.json").read_text())["generalized_novel_AP50"] == 81.2
    assert (here / "reports/detections.png").is_file()
    assert "report.pictures is 0" in (here / "reports/index.html").read_text()


def test_several_seeds_make_means_and_the_first_one_keeps_its_numbers(here):
    params = params_of(settings=("zsd",), seeds=(4, 0, 2), pictures=0)
    write_inputs(params, images=3, steps=5)
    report.run(params)
    headline = json.loads((here / "metrics.json").read_text())
    first = json.loads((here / "metrics/zsd.json").read_text())
    assert first.items() <= headline.items()
    assert [headline[f"generalized_novel_AP50{part}"] for part in ("", "_mean", "_std")] == [68.8, 70.8, 2.0]
    assert headline["seeds"] == 3
    page = (here / "reports/index.html").read_text()
    assert '<dd class="number">70.8 ± 2.0</dd>' in page
    assert "metrics/zsd_seed2.json" in page, "the page names what it was made from"
    assert "70.8 ± 2.0" in (here / "reports/comparison.md").read_text()


def test_a_seed_that_is_not_evaluated_yet_is_named_with_its_command(here):
    params = params_of(settings=("zsd",), seeds=(0, 1), pictures=0)
    write_inputs(params, images=2, steps=3)
    layout.metrics("zsd_seed1").unlink()
    with pytest.raises(InputError) as error:
        report.run(params)
    expected = "metrics/zsd_seed1.json: not found; run `python -m fvlm evaluate --setting zsd --seed 1`"
    assert str(error.value) == expected


def test_every_missing_file_is_named_with_the_stage_that_makes_it(here):
    with pytest.raises(InputError) as error:
        report.run(params_of())
    lines = str(error.value).splitlines()
    assert "runs/ovod/losses.csv: not found; run `python -m fvlm train --setting ovod`" in lines
    assert "metrics/zsd.json: not found; run `python -m fvlm evaluate --setting zsd`" in lines
    assert "data/splits/counts.csv: not found; run `python -m fvlm val_splits`" in lines
    assert "models/vlm.json: not found; run `python -m fvlm vlm`" in lines
    assert "data/emoji/manifest.json: not found; run `python -m fvlm download`" in lines
    assert len(lines) == 4 + 2 * 10


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
        (layout.errors("zsd"), lambda path: path.write_text("scores,group\nfused,novel\n"), "absent: error, count"),
        (layout.precision_recall("zsd"), lambda path: path.write_text("name,group\ncat,novel\n"), "absent: recall"),
        (layout.protocol_variants("zsd"), lambda path: path.write_text("variant\nx\n"), "absent: differs"),
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

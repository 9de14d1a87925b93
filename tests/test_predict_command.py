"""`python -m fvlm predict` on a tiny random model: what it prints, writes and returns."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from small_model import save_picture

from fvlm import load_detector
from fvlm.cli import main
from fvlm.predict import command


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory without params.yaml, with three pictures, one of them below a folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "1")  # the command sets them for its process, which is this one
    for number, name in enumerate(["photos/a.png", "photos/b.jpg", "photos/more/c.gif"]):
        save_picture(tmp_path / name, 40 + 8 * number, 60, seed=number)
    return tmp_path


@pytest.fixture
def predict(model_folder, here):
    def run(*arguments, classes="dog, red bus"):
        chosen = [] if classes is None else ["--classes", classes]
        return main(["predict", *arguments, *chosen, "--model", str(model_folder), "--threads", "1"])

    return run


def test_a_folder_is_printed_written_and_drawn(model_folder, here, predict, capsys):
    assert predict("photos", "--threshold", "0.01", "--save", "drawn", "--json", "out/results.json") == 0
    files = ["photos/a.png", "photos/b.jpg", "photos/more/c.gif"]
    whole = load_detector(model_folder).predict(files, ["dog", "red bus"])
    assert isinstance(whole, list)
    expected = [found.above(0.01) for found in whole]
    results = json.loads((here / "out/results.json").read_text())
    entries = [
        entry | {"file_name": file, "name": name}
        for number, (file, found) in enumerate(zip(files, expected, strict=True), start=1)
        for entry, name in zip(found.to_coco(number), found.names, strict=True)
    ]
    assert len(results) == len(entries) > 0
    for ours, theirs in zip(results, entries, strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], rel=1e-3)
        assert {k: ours[k] for k in ("image_id", "category_id", "file_name", "name")} == {
            k: theirs[k] for k in ("image_id", "category_id", "file_name", "name")
        }
    said = capsys.readouterr()
    rows = [line.split()[0] for line in said.out.splitlines()[1:]]
    assert [row for row in rows if row == "photos/b.jpg"] == ["photos/b.jpg"] * max(1, len(expected[1]))
    assert said.err.splitlines()[-1].startswith("predict: 3 of 3 pictures in ")
    drawn = sorted(str(path.relative_to(here / "drawn")) for path in (here / "drawn").rglob("*.*"))
    assert drawn == ["a.png", "b.jpg", "more/c.gif.png"]
    with Image.open(here / "drawn/b.jpg") as picture:
        assert picture.format == "JPEG" and picture.size == (640, 512)


def test_results_are_coco_results(here, predict):
    from pycocotools.coco import COCO

    assert predict("photos/a.png", "--threshold", "0", "--json", "results.json") == 0
    truth = COCO()
    truth.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}, {"id": 2}], "annotations": []}
    truth.createIndex()
    assert len(truth.loadRes("results.json").anns) > 10


def test_nothing_found_is_an_empty_list_and_a_row_with_a_dash(here, predict, capsys):
    assert predict("photos/a.png", "--threshold", "1", "--json", "results.json") == 0
    assert json.loads((here / "results.json").read_text()) == []
    assert capsys.readouterr().out.splitlines()[1].split() == ["photos/a.png", "-"]


def test_a_bad_picture_is_named_and_counted_the_others_go_on_and_the_exit_code_is_1(here, predict, capsys):
    (here / "photos/a_bad.jpg").write_text("no picture")
    assert predict("photos", "--threshold", "0.01", "--save", "drawn", "--json", "results.json") == 1
    said = capsys.readouterr()
    assert "error: photos/a_bad.jpg: expected a whole picture" in said.err
    assert "predict: 3 of 4 pictures" in said.err and "; 1 could not be read" in said.err
    assert {entry["image_id"] for entry in json.loads((here / "results.json").read_text())} <= {1, 3, 4}
    assert not (here / "drawn/a_bad.jpg").exists() and (here / "drawn/a.png").exists()
    assert "Traceback" not in said.err


def test_a_single_picture_is_drawn_to_the_file_that_is_named(here, predict):
    assert predict("photos/a.png", "--save", "one.jpg") == 0
    with Image.open("one.jpg") as picture:
        assert picture.format == "JPEG"


def test_names_come_from_a_file_too(here, predict, capsys):
    (here / "names.txt").write_text("zebra\n\n  a, b  \n", encoding="utf-8")
    assert predict("photos/a.png", "--classes-file", "names.txt", "--threshold", "0", "--json", "r.json") == 0
    names = {entry["name"] for entry in json.loads((here / "r.json").read_text())}
    assert names == {"dog", "red bus", "zebra", "a, b"}


@pytest.mark.parametrize(
    ("arguments", "classes", "said"),
    [
        (["photos"], None, "expected names to look for, got none"),
        (["photos"], " , ", "expected names to look for, got none"),
        (["photos"], "dog, dog", "'dog' is given twice"),
        (["nothing", "photos"], "dog", "nothing: expected a picture, a folder or a pattern, found no such file"),
        (["photos", "--classes-file", "no.txt"], "dog", "no.txt: file of names not found"),
        (["photos", "--threshold", "2"], "dog", "threshold: expected a number from 0 to 1"),
        (["photos", "--alpha", "-1"], "dog", "alpha: expected a number from 0 to 1"),
        (["photos", "--save", "photos"], "dog", "--save: photos/a.png is one of the pictures"),
        (["photos", "--save", "photos/a.png"], "dog", "--save: expected a folder, since there are 3 pictures"),
        (["photos/a.png", "--save", "photos/a.png"], "dog", "--save: photos/a.png is one of the pictures"),
        (["photos", "--json", "photos/a.png/r.json"], "dog", "cannot write"),
        (["photos", "--model", "nowhere"], "dog", "nowhere: expected a model folder, found none"),
    ],
)
def test_wrong_arguments_end_with_2_and_one_line_and_leave_no_file(
    here, model_folder, capsys, arguments, classes, said
):
    before = sorted(here.rglob("*"))
    command_line = ["predict", "--model", str(model_folder), "--threads", "1", *arguments]
    assert main(command_line + ([] if classes is None else ["--classes", classes])) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert sorted(here.rglob("*")) == before


def test_a_table_whose_reader_went_away_is_one_line(here, predict, monkeypatch, capfd):
    def gone(*arguments, **options):
        raise BrokenPipeError

    monkeypatch.setattr(command.tqdm, "write", gone)
    monkeypatch.setattr(command.os, "dup2", lambda *descriptors: None)
    assert predict("photos/a.png") == 2
    assert "the table's reader is gone" in capfd.readouterr().err


def test_alpha_and_beta_reach_the_scores(here, predict):
    scores = []
    for beta in ("0", "1"):
        assert predict("photos/a.png", "--threshold", "0", "--beta", beta, "--json", "r.json") == 0
        scores.append([entry["score"] for entry in json.loads((here / "r.json").read_text())])
    assert not np.allclose(scores[0][:5], scores[1][:5])


def resident_mib() -> float:
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory from /proc")
def test_a_thousand_pictures_need_no_more_memory_than_a_hundred(model_folder, tmp_path):
    files = [save_picture(tmp_path / f"{i}.jpg", 600 + i % 7, 800 - i % 5, seed=i) for i in range(50)] * 20
    memory = []
    for place, _ in enumerate(load_detector(model_folder).stream(files, ["dog", "red bus"]), start=1):
        if place % 100 == 0:
            memory.append(resident_mib())
    assert len(memory) == 10
    assert max(memory) - memory[0] < 16, memory

"""`python -m fvlm score` as people call it: numbers against pycocotools by hand, and one line for every bad input."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from raw_world import EVALUATE, made_up_coco, made_up_raw, val_splits

from fvlm.cli import main
from fvlm.data.coco import category_records
from fvlm.data.splits import base_names, novel_names
from fvlm.evaluation.detections import coco_results
from fvlm.evaluation.scoring import DECIMALS
from fvlm.evaluation.scoring import score as score_raw

SPLIT = "name: zoo\nbase: [a, b, c]\nnovel: [d, e, nothing]\n"
GROUPS = {"base": ("a", "b", "c"), "novel": ("d", "e", "nothing")}
NAMES = ("a", "other", "b", "c", "d", "e", "nothing")  # "other" is in neither group
SIDE = 640


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: no params.yaml, nothing that the pipeline built."""
    monkeypatch.chdir(tmp_path)
    Path("zoo.yaml").write_text(SPLIT, encoding="utf-8")
    return tmp_path


def random_world(seed: int, images: int = 24) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Boxes of all sizes with areas of their own, crowds, images without a box, ties, a class that nobody found ("d"),
    one that has only crowds ("e"), one without a box ("nothing"), more than 100 detections of a class on an image."""
    rng = np.random.default_rng(seed)
    ids = dict(zip(NAMES, (3, 5, 8, 13, 21, 34, 55), strict=True))
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def box() -> list[float]:
        return [*rng.uniform(0, 400, 2).tolist(), *np.exp(rng.uniform(np.log(12), np.log(230), 2)).tolist()]

    def detect(image_id: int, name: str, bbox: list[float]) -> None:
        score = round(float(rng.random()), 1)
        results.append({"image_id": image_id, "category_id": ids[name], "bbox": bbox, "score": score})

    for image_id in range(10, 10 * images + 1, 10):
        for _ in range(rng.integers(0, 9)):
            name, bbox = str(rng.choice(NAMES[:-1])), box()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[name],
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3] * float(rng.uniform(0.4, 1)),
                    "iscrowd": int(name == "e" or rng.random() < 0.15),
                }
            )
            for _ in range(rng.integers(0, 4)):
                if name != "d":
                    near = np.array(bbox) + rng.normal(0, 0.08, 4) * max(bbox[2:])
                    detect(image_id, name, [*near[:2].tolist(), *np.maximum(near[2:], 1).tolist()])
        for _ in range(150 if image_id == 10 else rng.integers(0, 12)):
            detect(image_id, "a" if image_id == 10 else str(rng.choice(NAMES)), box())
    results = [result for result in results if result["category_id"] != ids["d"]]
    coco = {
        "images": [{"id": i, "width": SIDE, "height": SIDE} for i in range(10, 10 * images + 1, 10)],
        "annotations": annotations,
        "categories": [{"id": category_id, "name": name} for name, category_id in ids.items()],
    }
    return results, coco


def write(results: Any, coco: Any) -> None:
    for name, value in (("results.json", results), ("truth.json", coco)):
        Path(name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def outcome(*options: str, split: str = "zoo.yaml") -> dict[str, Any]:
    command = ["score", "results.json", "--annotations", "truth.json", "--split", split, *options]
    assert main([*command, "--json", "outcome.json"]) == 0
    return json.loads(Path("outcome.json").read_text(encoding="utf-8"))


def refusal(capsys: pytest.CaptureFixture[str], *options: str, split: str = "zoo.yaml") -> str:
    """The one line that the command says on its way out with 2."""
    assert main(["score", "results.json", "--annotations", "truth.json", "--split", split, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def by_hand(category_ids: list[int], image_ids: list[int]) -> COCOeval:
    """pycocotools as a person runs it on these classes and images."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO("truth.json")
        evaluator = COCOeval(truth, truth.loadRes("results.json"), "bbox")
        evaluator.params.catIds, evaluator.params.imgIds = category_ids, image_ids
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def summary(evaluator: COCOeval) -> dict[str, tuple[float, float, float]]:
    """AP50, AP and AR of each size as pycocotools prints them (AP50 by size it does not); percent, -100 undefined."""
    values = {}
    for area, (size, ap, ar) in enumerate((("all", 0, 8), ("small", 3, 9), ("medium", 4, 10), ("large", 5, 11))):
        precision = evaluator.eval["precision"][0, :, :, area, -1]
        ap50 = precision[precision > -1].mean() if (precision > -1).any() else -1.0
        values[size] = (100 * ap50, 100 * evaluator.stats[ap], 100 * evaluator.stats[ar])
    assert values["all"][0] == 100 * evaluator.stats[1]
    return values


def of_class(evaluator: COCOeval, place: int) -> dict[str, tuple[float, float, float]]:
    """The same of one class, as people take it from COCOeval's arrays."""
    precision, recall = (evaluator.eval[name][..., place, :, -1] for name in ("precision", "recall"))
    return {
        size: tuple(100 * part.mean() for part in (precision[0, :, area], precision[:, :, area], recall[:, area]))
        for area, size in enumerate(("all", "small", "medium", "large"))
    }


def assert_equal(sizes: dict[str, Any], expected: dict[str, tuple[float, float, float]]) -> None:
    for size, values in expected.items():
        if sizes[size] is None:
            assert values == (-100, -100, -100)
        else:
            assert tuple(sizes[size][metric] for metric in ("AP50", "AP", "AR")) == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("images", ["split", "all"])
@pytest.mark.parametrize("protocol", ["generalized", "constrained_base", "constrained_novel"])
def test_every_number_equals_pycocotools_run_by_hand(seed: int, images: str, protocol: str) -> None:
    results, coco = random_world(seed)
    write(results, coco)
    got = outcome("--protocol", protocol, "--images", images)
    id_of = {category["name"]: category["id"] for category in coco["categories"]}
    members = {group: [id_of[name] for name in names] for group, names in GROUPS.items()}
    kept = {"generalized": ("base", "novel"), "constrained_base": ("base",), "constrained_novel": ("novel",)}[protocol]
    scored = [category_id for group in kept for category_id in members[group]]
    if len(kept) > 1:
        members["all"] = scored
    image_ids = [image["id"] for image in coco["images"]]
    if images == "split":
        image_ids = sorted({a["image_id"] for a in coco["annotations"] if a["category_id"] in scored})
        assert len(image_ids) < len(coco["images"])

    assert list(got["groups"]) == sorted({*kept, *(["all"] if len(kept) > 1 else [])})
    for group, of_group in got["groups"].items():
        assert_equal(of_group["sizes"], summary(by_hand(members[group], image_ids)))
    assert [row["category_id"] for row in got["classes"]] == scored
    evaluator = by_hand(scored, image_ids)
    for row in got["classes"]:
        assert_equal(row["sizes"], of_class(evaluator, sorted(scored).index(row["category_id"])))

    boxes = {row["name"]: row["sizes"]["all"] for row in got["classes"]}
    if "novel" in kept:
        assert boxes["d"] == {"AP50": 0, "AP": 0, "AR": 0}, "a class that nobody found scores 0"
        assert boxes["e"] is None and boxes["nothing"] is None, "and one without a box is in no mean"
    if "base" in kept:
        assert 5 < got["groups"]["base"]["sizes"]["all"]["AP50"] < 95  # the case is neither empty nor trivial
        assert all(got["groups"]["base"]["sizes"].values())
    assert (got["images"]["scored"], got["images"]["annotated"]) == (len(image_ids), len(coco["images"]))


def test_nothing_of_the_file_is_dropped_without_being_counted() -> None:
    results, coco = random_world(0)
    write(results, coco)
    got = outcome()
    id_of = {category["name"]: category["id"] for category in coco["categories"]}
    scored = {id_of[name] for names in GROUPS.values() for name in names}
    images = {a["image_id"] for a in coco["annotations"] if a["category_id"] in scored}
    counts = got["detections"]
    assert counts["total"] == len(results)
    assert counts["left_out_other_classes"] == sum(r["category_id"] == id_of["other"] for r in results) > 0
    of_scored = [r for r in results if r["category_id"] in scored]
    assert counts["left_out_other_images"] == sum(r["image_id"] not in images for r in of_scored) > 0
    left = [r for r in of_scored if r["image_id"] in images]
    assert counts["of_scored_classes_and_images"] == len(left)
    most = sum(r["category_id"] == id_of["a"] and r["image_id"] == 10 for r in left)
    assert counts["not_counted_beyond_best_100"] == most - 100 > 0
    assert sum(row["detections"] for row in got["classes"]) == len(left)
    assert got["images"]["with_detections"] == len({r["image_id"] for r in left})


def test_a_result_says_all_that_a_citation_needs(capsys: pytest.CaptureFixture[str]) -> None:
    write(*random_world(0))
    got = outcome()
    out, err = capsys.readouterr()
    assert err == ""
    cited = " ".join(out[out.index("cite as") :].split())
    for words in (
        "generalized protocol of split zoo: 6 classes on",
        f"{got['images']['scored']} of 24 images (--images split) of truth.json",
        got["annotations"]["sha256"][:12],
        "maxDets 100",
        "AP50 at IoU 0.50, AP and AR over IoU 0.50:0.05:0.95",
        f"base AP50 {got['groups']['base']['sizes']['all']['AP50']:.1f}",
        f"novel AP50 {got['groups']['novel']['sizes']['all']['AP50']:.1f}",
    ):
        assert words in cited
    for name in NAMES:
        assert any(line.startswith(f"{name} ") for line in out.splitlines()) == (name != "other")
    assert "2 of the classes have no box to find and are in no mean: e, nothing" in out
    assert max(map(len, out.splitlines())) <= 120


@pytest.fixture
def own_world() -> dict[str, Any]:
    """Our own export of a small made-up detector, and what `evaluate` found."""
    coco = made_up_coco()
    splits = val_splits(coco)
    scores = score_raw(made_up_raw(coco), splits, EVALUATE)
    write(coco_results(scores.detections), splits["generalized"])
    return scores.metrics


def test_our_own_export_scores_exactly_what_evaluate_says(own_world: dict[str, Any]) -> None:
    metrics = outcome(split="ovcoco")["metrics"]
    for group in ("base", "novel", "all"):
        for metric in ("AP50", "AP"):
            assert (
                round(metrics[f"generalized_{group}_{metric}"], DECIMALS) == own_world[f"generalized_{group}_{metric}"]
            )


def test_all_is_the_mean_of_48_base_and_17_novel_classes(own_world: dict[str, Any]) -> None:
    metrics = outcome(split="ovcoco")["metrics"]
    for metric in ("AP50", "AP", "AR"):
        base, novel, both = (metrics[f"generalized_{group}_{metric}"] for group in ("base", "novel", "all"))
        assert (48 * base + 17 * novel) / 65 == pytest.approx(both, abs=1e-9)
        assert base != novel


def test_a_constrained_protocol_names_its_metrics_and_what_a_file_cannot_show(
    own_world: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    got = outcome("--protocol", "constrained_novel", split="ovcoco")
    assert set(got["metrics"]) == {f"constrained_novel_{metric}" for metric in ("AP50", "AP", "AR")}
    assert len(got["classes"]) == 17
    assert "chooses among these classes alone" in " ".join(capsys.readouterr().out.split())


def test_the_split_of_coco_is_found_by_name_whatever_the_ids(own_world: dict[str, Any]) -> None:
    before = outcome(split="ovcoco")["metrics"]
    results, coco = (json.loads(Path(name).read_text()) for name in ("results.json", "truth.json"))
    for record in (*results, *coco["annotations"]):
        record["category_id"] += 1000
    for category in coco["categories"]:
        category["id"] += 1000
    write(results, coco)
    assert outcome(split="ovcoco")["metrics"] == before


def test_a_protocol_needs_only_the_categories_of_its_groups(
    own_world: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    results, coco = (json.loads(Path(name).read_text()) for name in ("results.json", "truth.json"))
    names = {category["id"]: category["name"] for category in coco["categories"]}
    novel = {category_id for category_id, name in names.items() if name in novel_names()}
    coco["categories"] = [category for category in coco["categories"] if category["id"] in novel]
    coco["annotations"] = [a for a in coco["annotations"] if a["category_id"] in novel]
    write([r for r in results if r["category_id"] in novel], coco)
    assert len(outcome("--protocol", "constrained_novel", split="ovcoco")["classes"]) == 17
    line = refusal(capsys, split="ovcoco")
    assert "expected the 48 base classes of split ovcoco among its categories, 48 are missing" in line


def lvis_world() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    results, coco = random_world(1)
    for category, frequency in zip(coco["categories"], "frcfrcr", strict=True):
        category["frequency"] = frequency
    for image in coco["images"]:
        image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
    for annotation in coco["annotations"]:
        del annotation["iscrowd"]  # LVIS has none
    return results, coco


def test_frequency_groups_as_lvis_has_them_and_a_word_on_its_rule(capsys: pytest.CaptureFixture[str]) -> None:
    results, coco = lvis_world()
    write(results, coco)
    Path("lvis.yaml").write_text("base: {frequency: [c, f]}\nnovel: {frequency: [r]}\n", encoding="utf-8")
    got = outcome(split="lvis.yaml")
    assert got["split"] == {
        "name": "lvis",
        "given": "lvis.yaml",
        "base": ["a", "b", "c", "e"],
        "novel": ["other", "d", "nothing"],
    }
    out = " ".join(capsys.readouterr().out.split())
    assert "COCO's rule is applied, not LVIS's" in out
    assert "COCO's rule and not that of LVIS, maxDets 100" in out
    for image in coco["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    write(results, coco)
    assert "LVIS" not in " ".join([*outcome(split="lvis.yaml")["notes"]])


def test_more_than_a_hundred_classes_are_left_to_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"kind {number}" for number in range(101)]
    write(
        [{"image_id": 1, "category_id": 7, "bbox": [1, 1, 9, 9], "score": 1}],
        {
            "images": [{"id": 1}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 9, 9]}],
            "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        },
    )
    Path("many.yaml").write_text(f"base: {json.dumps(names[:60])}\nnovel: {json.dumps(names[60:])}\n")
    got = outcome(split="many.yaml")
    out = capsys.readouterr().out
    assert "101 classes: their scores are in the file of --json" in out
    assert "\nkind 7 " not in out
    assert len(got["classes"]) == 101
    assert got["groups"]["base"]["sizes"]["all"] == {"AP50": pytest.approx(100), "AP": pytest.approx(100), "AR": 100}
    assert got["groups"]["novel"]["sizes"]["all"] is None, "no box of a novel class"
    assert "1 annotations have no area" in " ".join(got["notes"])


def detection(**changes: Any) -> list[dict[str, Any]]:
    """Two sound detections of `random_world`, the second with changes; a change to `...` removes the key."""
    sound = {"image_id": 10, "category_id": 3, "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.5}
    return [sound, {key: value for key, value in {**sound, **changes}.items() if value is not ...}]


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([], ["expected detections, got an empty list"]),
        ("", ["expected a list of detections, got an empty file"]),
        ('[{"image_id": 10, "category_id": 3, "bbox": [1,', ["breaks off after 47 bytes, behind 0 detections"]),
        ({"annotations": []}, ["expected a list of detections, got an object, as an annotation file has it"]),
        ([1, 2], ["2 entries that are no detections", "detection 0: 1"]),
        (detection(image_id=999), ["1 detections on images that the annotations lack", "detection 1: 999"]),
        (detection(image_id=999)[1:], ["none of its 1 detections lies on an image", "results of another data set"]),
        (detection(category_id=4), ["1 detections with a category_id that the annotations lack", "detection 1: 4"]),
        (detection(category_id="a"), ["category_id that is no whole number", '"a"', "not names"]),
        (detection(category_id=3.0), ["category_id that is no whole number", "3.0"]),
        (detection(category_id=True), ["category_id that is no whole number", "true"]),
        (detection(image_id="10.jpg"), ["image_id that is no whole number", '"10.jpg"']),
        (detection(image_id=10**30), ["image_id that is no whole number"]),
        (detection(category_id=...), ["category_id that is no whole number", "nothing"]),
        (detection(bbox=...), ["without a bbox of four numbers", "nothing"]),
        (detection(bbox=[1, 2, 3]), ["without a bbox of four numbers", "[1, 2, 3]"]),
        (detection(bbox=["1", "2", "3", "4"]), ["bbox is not four finite numbers"]),
        (detection(bbox=[1, float("nan"), 3, 4]), ["bbox is not four finite numbers", "NaN"]),
        (detection(bbox=[1, 2, float("inf"), 4]), ["bbox is not four finite numbers", "Infinity"]),
        (detection(bbox=[1, 2, 10**400, 4]), ["bbox is not four finite numbers"]),
        (detection(bbox=[1, 2, -3, 4]), ["1 detections whose bbox has a negative width or height", "not corners"]),
        (detection(score=...), ["score is no finite number", "nothing"]),
        (detection(score=float("nan")), ["score is no finite number", "NaN"]),
        (detection(score="0.5"), ["score is no finite number", '"0.5"']),
        (detection(score=1.5), ["1 detections with a score outside [0, 1]", "detection 1: 1.5", "sigmoid"]),
        (detection(score=-0.1), ["1 detections with a score outside [0, 1]", "detection 1: -0.1"]),
    ],
)
def test_a_results_file_that_cannot_be_scored_is_one_line(
    capsys: pytest.CaptureFixture[str], results: Any, words: list[str]
) -> None:
    write(results, random_world(0)[1])
    line = refusal(capsys)
    assert line.startswith("error: results.json: ")
    assert all(word in line for word in words), line


def test_each_kind_of_finding_is_one_line_with_the_number_of_detections(capsys: pytest.CaptureFixture[str]) -> None:
    bad = detection(score=7)[1:] * 30 + detection(bbox=[0, 0, -1, 1])[1:] * 20 + detection(category_id="a")
    write(detection() * 10 + bad, random_world(0)[1])
    assert main(["score", "results.json", "--annotations", "truth.json", "--split", "zoo.yaml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(": ")[1].split(",")[0] for line in lines) == [
        "1 detections with a category_id that is no whole number",
        "20 detections whose bbox has a negative width or height",
        "30 detections with a score outside [0",
    ]
    assert any("the first is detection 20: 7.0" in line for line in lines)


def test_boxes_without_width_or_height_are_kept_and_counted_as_coco_has_it() -> None:
    results, coco = random_world(2)
    for result in results[::5]:
        result["bbox"][3] = 0
    write(results, coco)
    got = outcome("--images", "all")
    scored = [r for r in results if r["category_id"] != 5]
    assert got["detections"]["without_area"] == sum(r["bbox"][3] == 0 for r in scored) > 0
    assert any("have no width or no height" in note for note in got["notes"])
    id_of = {category["name"]: category["id"] for category in coco["categories"]}
    base = [id_of[name] for name in GROUPS["base"]]
    assert_equal(got["groups"]["base"]["sizes"], summary(by_hand(base, [image["id"] for image in coco["images"]])))


def test_boxes_that_look_like_fractions_or_corners_are_pointed_out() -> None:
    results, coco = random_world(0)
    for result in results:
        result["bbox"] = [value / SIDE for value in result["bbox"]]
    write(results, coco)
    assert any("fractions of the image's size" in note for note in outcome()["notes"])
    results, coco = random_world(0)
    for result in results:
        result["bbox"] = [value + 300 for value in result["bbox"]]
    write(results, coco)
    assert any("over the edge of their image" in note and "not corners" in note for note in outcome()["notes"])
    for image in coco["images"]:
        del image["width"], image["height"]
    write(results, coco)
    assert outcome()["notes"] == [note for note in outcome()["notes"] if "edge" not in note], "their size is unknown"


def changed(change: Any) -> dict[str, Any]:
    coco = random_world(0)[1]
    change(coco)
    return coco


@pytest.mark.parametrize(
    ("coco", "words"),
    [
        ("", ["expected COCO instances as JSON, got an empty file"]),
        ('{"images": [', ["expected COCO instances as JSON"]),
        ([], ["expected an object with images, annotations and categories", "a results file is the other argument"]),
        (changed(lambda coco: coco.pop("images")), ["images: expected a list, got no such key"]),
        (changed(lambda coco: coco.update(categories={})), ["categories: expected a list, got {}"]),
        (changed(lambda coco: coco["images"][3].pop("id")), ["1 images without an id", "images[3]: nothing"]),
        (changed(lambda coco: coco["images"].append({"id": 10})), ["1 images with the id of another", "images[24]"]),
        (changed(lambda coco: coco["annotations"][2].pop("id")), ["1 annotations without an id", "annotations[2]"]),
        (changed(lambda coco: coco["annotations"][2].update(id=1)), ["1 annotations with the id of another"]),
        (changed(lambda coco: coco["annotations"][2].pop("image_id")), ["image_id that is in none of images"]),
        (changed(lambda coco: coco["annotations"][2].update(category_id=4)), ["in none of categories", ": 4"]),
        (changed(lambda coco: coco["annotations"][2].pop("bbox")), ["annotations whose bbox is not", "nothing"]),
        (changed(lambda coco: coco["annotations"][2].update(bbox=[1, 2, 3, float("nan")])), ["whose bbox is not"]),
        (changed(lambda coco: coco["annotations"][2].update(area="9")), ["area is no number of pixels"]),
        (changed(lambda coco: coco["annotations"][2].update(iscrowd=2)), ["iscrowd other than 0 or 1"]),
        (changed(lambda coco: coco["annotations"].insert(2, 7)), ["1 annotations that are no objects"]),
        (changed(lambda coco: coco["categories"][0].pop("name")), ["1 categories without a name"]),
        (changed(lambda coco: coco["categories"][0].update(name="b")), ["1 categories with the name of another"]),
        (
            changed(lambda coco: coco.update(annotations=[])),
            ["expected boxes of the 6 classes that generalized scores"],
        ),
        (changed(lambda coco: [a.update(iscrowd=1) for a in coco["annotations"]]), ["expected boxes of the 6 classes"]),
    ],
)
def test_annotations_that_cannot_be_scored_against_are_one_line(
    capsys: pytest.CaptureFixture[str], coco: Any, words: list[str]
) -> None:
    write(detection(), coco)
    line = refusal(capsys)
    assert line.startswith("error: truth.json: ")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--protocol", "novel"), "--protocol: expected one of generalized, constrained_base, constrained_novel"),
        (("--images", "val"), "--images: expected one of split, all, got 'val'"),
        (("--json", "truth.json"), "--json: expected a file for the outcome, got truth.json, which is an input"),
        (("--json", "zoo.yaml/out.json"), "--json: zoo.yaml/out.json cannot be written"),
        (("--split", "lvis"), "--split: expected ovcoco or a YAML file of base and novel classes, got 'lvis'"),
        (("--split", "none.yaml"), "none.yaml: split file not found"),
    ],
)
def test_wrong_arguments_are_one_line(capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str) -> None:
    write(*random_world(0))
    assert words in refusal(capsys, *options)


@pytest.mark.parametrize("missing", ["results.json", "truth.json"])
def test_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str], missing: str) -> None:
    write(*random_world(0))
    Path(missing).unlink()
    line = refusal(capsys)
    assert missing in line and "not found" in line


def test_the_help_shows_how_a_split_file_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["score", "--help"])
    assert ended.value.code == 0
    assert "base: {frequency: [c, f]}" in capsys.readouterr().out


def test_all_80_categories_may_be_detected_and_15_are_left_out_and_counted() -> None:
    coco = made_up_coco()
    results = [
        {"image_id": 100, "category_id": category["id"], "bbox": [1, 1, 9, 9], "score": 0.5}
        for category in category_records()
    ]
    write(results, coco)
    got = outcome(split="ovcoco")
    assert got["detections"]["total"] == 80
    assert got["detections"]["left_out_other_classes"] == 15
    assert got["split"]["base"] == base_names() and got["split"]["novel"] == novel_names()

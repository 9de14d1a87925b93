import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvlm.errors import InputError
from fvlm.evaluation import results
from fvlm.evaluation.results import read_results

COCO = {
    "images": [{"id": 1, "width": 100, "height": 100}, {"id": 2}],
    "annotations": [],
    "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
}
TRICKY = {"text": '}, {"image_id": 9}, ]', "segmentation": {"size": [1, 2], "counts": "a}b,{]"}, "list": [{}, {}]}


def detections(count: int) -> list[dict[str, Any]]:
    return [
        {"image_id": 1 + n % 2, "category_id": 7, "bbox": [n, 0.1, 3.0, 4e-1], "score": n / count}
        | (TRICKY if n % 3 else {})
        for n in range(count)
    ]


def read(path: Path, text: str) -> results.Results:
    path.write_text(text, encoding="utf-8")
    return read_results(path, COCO, [1, 2], [7])


@pytest.mark.parametrize("layout", [{}, {"indent": 1}, {"separators": (",", ":")}])
@pytest.mark.parametrize("block", [1, 2, 7, 64, 150, 10_000])
def test_a_file_is_the_same_in_blocks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, layout: dict[str, Any]
) -> None:
    monkeypatch.setattr(results, "BLOCK_CHARACTERS", block)
    expected = detections(20)
    got = read(tmp_path / "results.json", "\ufeff \n" + json.dumps(expected, **layout) + "\n ")
    assert got.total == 20
    assert got.detections.image_ids.tolist() == [record["image_id"] for record in expected]
    assert got.detections.category_ids.tolist() == [7] * 20
    assert got.detections.boxes_xywh.tolist() == [record["bbox"] for record in expected]
    assert got.detections.scores.tolist() == [record["score"] for record in expected], "to the last bit"


def test_a_long_file_is_never_held_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "BLOCK_CHARACTERS", 4096)
    lengths: list[int] = []
    add = results._Reader.add

    def noting(reader: results._Reader, records: list[Any]) -> None:
        lengths.append(len(records))
        add(reader, records)

    monkeypatch.setattr(results._Reader, "add", noting)
    assert read(tmp_path / "results.json", json.dumps(detections(2000))).total == 2000
    assert sum(lengths) == 2000 and max(lengths) < 100


@pytest.mark.parametrize("block", [3, 40, 10_000])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:-1], "breaks off after"),
        (lambda text: text[: len(text) // 2], "breaks off after"),
        (lambda text: text[:-1] + ",]", "expected an object, got"),
        (lambda text: text + text, "expected the file to end with its list"),
        (lambda text: text.replace("}, {", "} {", 1), "detection 0: expected a comma or ] behind it"),
        (lambda text: text.replace('"score":', '"score"', 1), "detection 0: expected an object"),
        (lambda text: "[" * 100_000, "expected an object"),
        (lambda text: text.replace("0.1", "1" * 5000, 1), "detection 0: expected an object"),
    ],
)
def test_damage_is_told_wherever_a_block_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, damage: Any, words: str
) -> None:
    monkeypatch.setattr(results, "BLOCK_CHARACTERS", block)
    plain = [{key: record[key] for key in ("image_id", "category_id", "bbox", "score")} for record in detections(9)]
    with pytest.raises(InputError, match=r"results\.json: ") as error:
        read(tmp_path / "results.json", damage(json.dumps(plain)))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_breaking_off_says_how_many_detections_were_whole(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="behind 8 detections"):
        read(tmp_path / "results.json", json.dumps(detections(9))[:-4])


def test_bytes_that_are_no_text_and_a_folder_are_told(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(b'[{"image_id": \xff\xfe')
    with pytest.raises(InputError, match="bytes that are no text"):
        read_results(tmp_path / "results.json", COCO, [1], [7])
    with pytest.raises(InputError, match="cannot be read"):
        read_results(tmp_path, COCO, [1], [7])


def test_what_is_left_out_is_counted_once(tmp_path: Path) -> None:
    sound = {"image_id": 1, "category_id": 7, "bbox": [0, 0, 5, 5], "score": 1}
    records = [sound, sound | {"category_id": 1}, sound | {"image_id": 2}, sound | {"image_id": 2, "category_id": 1}]
    records += [sound | {"bbox": [99, 0, 2, 9]}, sound | {"bbox": [99, 0, 2.1, 9]}, sound | {"bbox": [9, 9, 0, 9]}]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    got = read_results(path, COCO, [1], [7])
    assert (got.total, got.other_classes, got.other_images, len(got.detections)) == (7, 2, 1, 4)
    assert (got.beyond_edge, got.without_area, got.within_a_pixel) == (1, 1, False)


def test_columns_are_small(tmp_path: Path) -> None:
    columns = read(tmp_path / "results.json", json.dumps(detections(50))).detections
    assert sum(part.nbytes for part in vars(columns).values()) == 50 * 56
    assert columns.boxes_xywh.dtype == np.float64, "or numbers would not be pycocotools' to 1e-6"

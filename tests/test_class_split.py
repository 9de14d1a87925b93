from pathlib import Path
from typing import Any

import pytest

from fvlm.data.class_split import class_split
from fvlm.data.coco import category_records
from fvlm.data.splits import base_names, novel_names
from fvlm.errors import InputError

CATEGORIES = [
    {"id": 9, "name": "cat", "frequency": "f"},
    {"id": 4, "name": "dog", "frequency": "c"},
    {"id": 7, "name": "hair dryer", "frequency": "r"},
    {"id": 2, "name": "cow", "frequency": "r"},
]


def split_of(tmp_path: Path, text: str, categories: Any = CATEGORIES) -> Any:
    path = tmp_path / "pets.yaml"
    path.write_text(text, encoding="utf-8")
    return class_split(str(path), categories, ("base", "novel"), "truth.json")


def test_ovcoco_is_48_base_and_17_novel_classes() -> None:
    split = class_split("ovcoco", category_records(), ("base", "novel"), "truth.json")
    names = {category["id"]: category["name"] for category in category_records()}
    assert [names[i] for i in split.base] == base_names()
    assert [names[i] for i in split.novel] == novel_names()


def test_a_file_names_its_classes_and_the_others_are_in_neither_group(tmp_path: Path) -> None:
    split = split_of(tmp_path, "base: [dog, cat]\nnovel: [cow]\n")
    assert (split.name, split.base, split.novel) == ("pets", (9, 4), (2,))
    assert split_of(tmp_path, "name: my pets\nbase: [dog]\nnovel: [cow]\n").name == "my pets"


def test_lvis_chooses_by_frequency(tmp_path: Path) -> None:
    split = split_of(tmp_path, "base: {frequency: [c, f]}\nnovel: {frequency: r}\n")
    assert (split.base, split.novel) == ((9, 4), (7, 2))


def test_only_the_classes_of_needed_groups_must_be_there() -> None:
    novel = [category for category in category_records() if category["name"] in novel_names()]
    assert class_split("ovcoco", novel, ("novel",), "truth.json").base == ()
    with pytest.raises(InputError, match=r"truth.json: expected the 48 base classes .*, 48 are missing: 'person'"):
        class_split("ovcoco", novel, ("base", "novel"), "truth.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected the keys base and novel"),
        ("base: [cat]", "novel: expected a list of class names"),
        ("base: []\nnovel: [cow]", "base: expected a list of class names"),
        ("base: [cat]\nnovel: [cow]\nunseen: [dog]", "got unseen"),
        ("name: 3\nbase: [cat]\nnovel: [cow]", "name: expected a text, got 3"),
        ("base: [cat, no]\nnovel: [cow]", "base: expected class names as text, got False; put it in quotes"),
        ("base: [cat, cat]\nnovel: [cow]", "expected each class once, got 'cat' more often"),
        ("base: [cat, cow]\nnovel: [cow]", "'cow' are base and novel"),
        ("base: [cat]\nnovel: [hair drier]", "1 are missing: 'hair drier' (did you mean 'hair dryer'?)"),
        ("base: {frequency: [c, x]}\nnovel: [cow]", "expected frequencies out of c, f, r"),
        ("base: {frequency: []}\nnovel: [cow]", "expected frequencies out of c, f, r"),
        ("base: {frequency: [c], size: 3}\nnovel: [cow]", "expected a list of class names or {frequency: [...]}"),
        ("base: [cat\nnovel: [cow]", "not valid YAML"),
        ("base: [cat]\nbase: [dog]\nnovel: [cow]", "given more than once"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        split_of(tmp_path, text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_data_set_without_frequencies_is_told(tmp_path: Path) -> None:
    plain = [{"id": category["id"], "name": category["name"]} for category in CATEGORIES]
    with pytest.raises(InputError, match=r"expected a frequency of each category as LVIS has it, truth\.json has"):
        split_of(tmp_path, "base: {frequency: [c]}\nnovel: {frequency: [r]}", plain)

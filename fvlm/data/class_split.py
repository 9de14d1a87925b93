"""Which classes are base and which novel: COCO's open-vocabulary split, or one of any data set from a YAML file."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..params import read_tree
from .splits import base_names, novel_names

SPLIT_FILES = """a split file names its classes, or chooses them by the frequency that LVIS notes of each category:

    name: pets                     # optional; the file's name unless given
    base: [cat, dog, horse]
    novel: [hamster, parrot]

    name: LVIS, rare as novel
    base: {frequency: [c, f]}
    novel: {frequency: [r]}

classes of the annotations in neither group are not scored
"""
OVCOCO = "ovcoco"
GROUPS = ("base", "novel")
REMEDY = "see `python -m fvlm score --help` for what a split file holds"
SHOWN_NAMES = 5


@dataclass(frozen=True, kw_only=True)
class ClassSplit:
    """Base and novel category ids of one data set, each in the order of its categories."""

    name: str
    base: tuple[int, ...]
    novel: tuple[int, ...]


def class_split(split: str, categories: Sequence[Mapping[str, Any]], needed: Sequence[str], where: str) -> ClassSplit:
    """The split that `split` names, of the classes in `categories`.

    Args:
        split: "ovcoco" (48 base and 17 novel classes of COCO, found by name whatever their ids), or a YAML file as in
            `SPLIT_FILES`.
        categories: "id", "name" and, for LVIS, "frequency" each; ids and names are unique.
        needed: those of `GROUPS` whose classes must all be among `categories`; of the others some may be missing.
        where: the annotation file, for the error message.

    Raises:
        InputError: the file cannot be read or says something else; classes are unknown, in both groups or twice in
            one; a group is empty.
    """
    ids = {category["name"]: category["id"] for category in categories}
    if split == OVCOCO:
        name, chosen = OVCOCO, {"base": base_names(), "novel": novel_names()}
    else:
        name, chosen = _read(split, categories, where)
    for group in needed:
        if missing := [class_name for class_name in chosen[group] if class_name not in ids]:
            raise InputError(
                f"{where}: expected the {len(chosen[group])} {group} classes of split {name} among its categories, "
                f"{len(missing)} are missing: {_some(missing, ids)}; score with annotations that list them, or name "
                "another --split or --protocol"
            )
    if both := sorted(set(chosen["base"]) & set(chosen["novel"])):
        raise InputError(f"{split}: expected each class in one group, but {_some(both)} are base and novel; {REMEDY}")
    groups = {group: {ids[class_name] for class_name in chosen[group] if class_name in ids} for group in GROUPS}
    base, novel = (tuple(c["id"] for c in categories if c["id"] in groups[group]) for group in GROUPS)
    return ClassSplit(name=name, base=base, novel=novel)


def _read(path: str, categories: Sequence[Mapping[str, Any]], where: str) -> tuple[str, dict[str, list[str]]]:
    if Path(path).suffix not in (".yaml", ".yml"):
        raise InputError(f"--split: expected {OVCOCO} or a YAML file of base and novel classes, got {path!r}; {REMEDY}")
    tree = read_tree(path, "split file", f"name an existing one, or --split {OVCOCO}")
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected the keys base and novel, got something else; {REMEDY}")
    if unknown := sorted(map(str, tree.keys() - {"name", *GROUPS})):
        raise InputError(f"{path}: expected the keys name, base and novel, got {', '.join(unknown)}; {REMEDY}")
    name = tree.get("name", Path(path).stem)
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{path}: name: expected a text, got {name!r}; put it in quotes or leave it out")
    return name, {group: _names(path, group, tree.get(group), categories, where) for group in GROUPS}


def _names(path: str, group: str, value: Any, categories: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    if isinstance(value, dict) and value.keys() == {"frequency"}:
        return _of_frequency(path, group, value["frequency"], categories, where)
    if not isinstance(value, list) or not value:
        raise InputError(f"{path}: {group}: expected a list of class names or {{frequency: [...]}}, got {value!r}")
    for name in value:
        if not isinstance(name, str):  # YAML reads `no` as False and `1` as a number
            raise InputError(f"{path}: {group}: expected class names as text, got {name!r}; put it in quotes")
    if twice := [name for name, count in Counter(value).items() if count > 1]:
        raise InputError(f"{path}: {group}: expected each class once, got {_some(twice)} more often; remove it")
    return value


def _of_frequency(path: str, group: str, value: Any, categories: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    wanted = value if isinstance(value, list) else [value]
    known = {str(category["frequency"]) for category in categories if "frequency" in category}
    if not known:
        raise InputError(f"{path}: {group}: expected a frequency of each category as LVIS has it, {where} has none")
    if not wanted or any(letter not in known for letter in wanted):
        raise InputError(f"{path}: {group}: expected frequencies out of {', '.join(sorted(known))}, got {value!r}")
    return [category["name"] for category in categories if category.get("frequency") in wanted]


def _some(names: Sequence[str], known: Mapping[str, int] | None = None) -> str:
    """The first of `names`, the first of all with what was perhaps meant."""
    shown = ", ".join(map(repr, names[:SHOWN_NAMES])) + (", ..." if len(names) > SHOWN_NAMES else "")
    meant = difflib.get_close_matches(names[0], known or {}, n=1)
    return shown + (f" (did you mean {meant[0]!r}?)" if meant else "")

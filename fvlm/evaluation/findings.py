"""What is wrong with a file of many records: one line for each kind of finding, however many records have it."""

import json
from typing import Any

from ..errors import InputError


class CountedFindings:
    """Findings by kind, with their number and the first of each.

    Args:
        where: the file, which begins every line.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.kinds: dict[str, tuple[int, str, Any, str]] = {}  # kind -> number, place and value of the first, remedy

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def add(self, kind: str, place: str, value: Any, remedy: str, count: int = 1) -> None:
        """Note `count` records of a kind, of which the first lies at `place` and has `value`; None is "nothing"."""
        before, *first = self.kinds.get(kind, (0, place, value, remedy))
        self.kinds[kind] = (before + count, *first)

    def raise_if_any(self) -> None:
        """Raise InputError with one line a kind."""
        if self.kinds:
            raise InputError(
                "\n".join(
                    f"{self.where}: {count:,} {kind}, the first is {place}: {shown(value)}; {remedy}"
                    for kind, (count, place, value, remedy) in self.kinds.items()
                )
            )


def shown(value: Any) -> str:
    """A value as JSON writes it, on one line and not too long."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list) and len(value) > 8:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

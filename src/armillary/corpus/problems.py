"""Unusable parts of a source, reported as one line per kind with the first places and a count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 2  # places named per kind


@dataclass(frozen=True)
class Problem:
    """Something that could not be used.

    ``what`` is the kind, equal for all problems of one line in the manifest; ``detail`` belongs to this problem.
    ``count`` is the number of lost lines, files or rows. ``passing``: the cause may be temporary.
    """

    where: str
    what: str
    detail: str = ""
    count: int = 1
    passing: bool = False

    @property
    def message(self) -> str:
        """``where: what detail``."""
        return f"{self.where}: {self.what}{self.detail}"


@dataclass
class ProblemList:
    """Problems by kind, in the order in which the kinds appeared."""

    kinds: dict[str, list[Any]] = field(default_factory=dict)  # what: [count, message of the first, other places]

    def add(self, problem: Problem) -> None:
        """Count a problem."""
        self._merge(problem.what, problem.count, problem.message, [problem.where])

    def extend(self, kinds: Iterable[tuple[str, Any]]) -> None:
        """Count the problems of another list, given as the items of its ``kinds``."""
        for what, (count, message, places) in kinds:
            self._merge(what, count, message, places)

    @property
    def count(self) -> int:
        """The number of lost lines, files and rows."""
        return sum(kind[0] for kind in self.kinds.values())

    def lines(self) -> list[str]:
        """One line per kind: the first problem in full, the place of the next one, and their number."""
        messages = []
        for count, message, places in self.kinds.values():
            others = f" ({count} like this, the next at {', '.join(places[1:])})" if len(places) > 1 else ""
            messages.append(f"{message}{others}")
        return messages

    def _merge(self, what: str, count: int, message: str, places: list[str]) -> None:
        known = self.kinds.setdefault(what, [0, message, []])
        known[0] += count
        known[2] = (known[2] + places)[:EXAMPLES]


def shown(path: str) -> str:
    """``path`` for printing: bytes that are not UTF-8, line breaks and control characters are escaped."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

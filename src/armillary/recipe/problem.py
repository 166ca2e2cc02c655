"""A damaged or foreign file: its path, what is wrong with it, and the remedy.

Readers raise messages of the form ``FILE: what; remedy`` or ``FILE:LINE: what; remedy``. ``problem_of`` parses such a
message, so that every check reports its files in one form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from armillary.recipe.words import reason_of


@dataclass(frozen=True)
class FileProblem:
    """A file that is damaged, missing or not for this program, with the problem and the remedy."""

    file: Path
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.remedy}"


def problem_of(path: Path, error: Exception | str, remedy: str) -> FileProblem:
    """Parse the problem from a reader's message; ``path`` and ``remedy`` are used if the message has none."""
    text = reason_of(error).rstrip(".")
    place = re.compile(rf"({re.escape(str(path))}|[^:\n]*/[^:\n]*)(?::(\d+))?: (.*)", re.DOTALL).fullmatch(text)
    if place is not None:
        file, line, rest = place.groups()
        path, text = Path(file), rest if line is None else f"line {line}: {rest}"
    what, _, own = text.partition("; ")
    if re.fullmatch(r"column \d+", own):  # how a recipe's reader ends a message
        return FileProblem(path, f"{what}, {own}", remedy)
    return FileProblem(path, what, own or remedy)

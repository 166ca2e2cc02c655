"""Score a file of predictions against a file of true answers, and write such files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from armillary.evaluate.contests.contest import Answer, Contest, Item, Score
from armillary.files import write_file
from armillary.recipe import UsageError


@dataclass(frozen=True)
class Scored:
    """The official scores of a file of predictions, and the ids of the items without an answer."""

    contest: str
    scores: list[Score]
    items: int
    missing: list[str]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def score_file(contest: Contest, predictions: Path, gold: Path) -> Scored:
    """The official scores of ``predictions`` on the items of ``gold``; a missing item counts as wrong.

    Raises:
        UsageError: a file is not in the contest's format, with file, line and field.
    """
    items = contest.items(gold)
    answers = contest.predictions(predictions, [item.id for item in items])
    missing = [item.id for item in items if item.id not in answers]
    return Scored(contest.name, contest.examine(items, answers), len(items), missing)


def write_predictions(
    contest: Contest, path: Path, items: Sequence[Item], answers: Mapping[str, Answer | None]
) -> None:
    """Write ``answers`` in the contest's own format."""
    rows = contest.prediction_rows(items, answers)
    write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def named_files(given: Sequence[str]) -> dict[str, Path]:
    """Files by name, parsed from ``NAME=FILE``.

    Raises:
        UsageError: not of this form, or a duplicate name.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not (name and equals and file) or name in found:
            raise UsageError(f"--rival {text!r}: give each rival as NAME=FILE, each name once")
        found[name] = Path(file)
    return found

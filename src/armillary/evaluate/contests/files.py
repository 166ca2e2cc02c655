"""Score a file of predictions against a file of true answers, and write such files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from armillary.evaluate.contests.contest import Answer, Contest, Item, Score
from armillary.files import write_file


@dataclass(frozen=True)
class Scored:
    """The official scores of a file of predictions, and the ids of the items that it does not answer."""

    contest: str
    scores: list[Score]
    items: int
    missing: list[str]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def score_file(contest: Contest, predictions: Path, gold: Path) -> Scored:
    """The official scores of ``predictions`` on the items of ``gold``; an item that is missing counts as wrong.

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

"""Lists the items on which the task's extractor and the audit's differ, for manual review."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from armillary.evaluate.results import Examination
from armillary.evaluate.tasks.catalog import dataset_of
from armillary.evaluate.tasks.extract import SECOND


@dataclass(frozen=True)
class Disagreement:
    """An output in which the two extractors find different answers."""

    task: str
    id: str
    answer: Any
    second_answer: Any
    gold: Any
    output: str
    scores: dict[str, float]


def audit(examination: Examination) -> list[Disagreement]:
    """The items of all tasks on which the extractors differ, in order; ``answer`` is that of the first filter."""
    found = []
    for task, rows in examination.items.items():
        second = SECOND.get(dataset_of(task) or "")
        found += [
            Disagreement(task, i.id, i.answer, i.second_answer, i.gold, i.outputs[0], dict(i.scores))
            for i in rows
            if second is not None and not second.agree(i.answer, i.second_answer)
        ]
    return found

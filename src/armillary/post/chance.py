"""The chance level of a set of questions: the accuracy of an answer that does not depend on the question.

A model learns the form of an answer long before the task. Until then it gives the same answer to all questions of a
kind, and is right as often as that answer occurs. A kind is a family, level and language. Its best constant answer is
taken from the training questions; the held-out ones would give the best answer in hindsight.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from armillary.post.items import Item, read_items


def chance_level(training: Path, held_out: Path) -> float:
    """The expected accuracy on ``held_out`` of the best constant answer to each kind.

    For questions with options, it is at least that of a guess. A kind that is missing in ``training`` counts as a
    guess.

    Raises:
        UsageError: a wrong row in one of the files.
    """
    answers: defaultdict[tuple[str, int, str], Counter[str]] = defaultdict(Counter)
    for item in read_items(training):
        answers[_kind(item)][item.answer or ""] += 1
    often = {kind: max(counts.values()) / counts.total() for kind, counts in answers.items()}
    levels = [max(often.get(_kind(item), 0.0), _guess(item)) for item in read_items(held_out)]
    return sum(levels) / len(levels) if levels else 0.0


def _kind(item: Item) -> tuple[str, int, str]:
    return item.family, item.level, item.language


def _guess(item: Item) -> float:
    options = (item.check or {}).get("options")
    return 1 / len(options) if isinstance(options, dict) and options else 0.0

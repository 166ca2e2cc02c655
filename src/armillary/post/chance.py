"""The chance level of a set of questions: how often an answer is right that does not depend on the question.

A model learns the form of an answer long before the task. Then it answers each question of a kind alike, and is right
as often as that answer occurs. A kind is a family, level and language, which a question shows. Its best constant answer
is counted in the training questions, not in the held-out ones, where it would be the best in hindsight.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from armillary.post.items import Item, read_items


def chance_level(training: Path, held_out: Path) -> float:
    """The share of the questions in ``held_out`` that the best constant answer to each kind is expected to get right.

    With options to choose from it is at least that of a guess. A kind that ``training`` does not have adds its guess.

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

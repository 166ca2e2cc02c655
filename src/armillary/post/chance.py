"""The chance level of a set of questions: the accuracy of an answer that does not depend on the question.

A model learns the form of an answer long before the task. Until then it gives the same answer to all questions of a
kind, and is right as often as that answer occurs. A kind is a family, level and language. Its best constant answer is
taken from the training questions; the held-out ones would give the best answer in hindsight.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from armillary.post.items import Item, read_items
from armillary.post.joins import temporary_table


def chance_level(training: Path, held_out: Path) -> float:
    """The expected accuracy on ``held_out`` of the best constant answer to each kind.

    For questions with options, it is at least that of a guess. For a kind that is missing from
    ``training``, the accuracy of a guess is used.

    Raises:
        UsageError: a wrong row in one of the files.
    """
    with temporary_table("answers (family text, level integer, language text, answer blob)") as table:
        rows = ((*_kind(item), _hash(item.answer or "")) for item in read_items(training))
        table.executemany("insert into answers values (?, ?, ?, ?)", rows)
        each = "select *, count(*) as n from answers group by family, level, language, answer"
        shares = f"select family, level, language, max(n), sum(n) from ({each}) group by family, level, language"
        often = {tuple(kind): most / total for *kind, most, total in table.execute(shares)}
    levels = [max(often.get(_kind(item), 0.0), _guess(item)) for item in read_items(held_out)]
    return sum(levels) / len(levels) if levels else 0.0


def _kind(item: Item) -> tuple[str, int, str]:
    return item.family, item.level, item.language


def _hash(answer: str) -> bytes:
    return hashlib.blake2b(answer.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _guess(item: Item) -> float:
    options = (item.check or {}).get("options")
    return 1 / len(options) if isinstance(options, dict) and options else 0.0

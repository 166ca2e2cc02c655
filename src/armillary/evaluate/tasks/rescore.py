"""Applies another extractor to the raw outputs of an examination, without calling the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from armillary.evaluate.intervals import mean_interval
from armillary.evaluate.results import Examination, Item, Result
from armillary.evaluate.tasks.catalog import dataset_of
from armillary.evaluate.tasks.extract import CODE, SECOND, Extractor
from armillary.recipe import UsageError, canonical_hash

# The name for the audit's extractor of each task.
AUDIT = "audit"


@dataclass(frozen=True)
class _Read:
    """An extractor: its name and its function, which gets the correct answer only for the answer's form."""

    name: str
    read: Callable[[str, Any], str | None]


def rescore(examination: Examination, extractor: str) -> Examination:
    """Score the kept outputs with another extractor, under the metric ``exact_match``.

    Each item's former answer becomes the second answer, so the disagreement compares the two extractors. Tasks without
    answer text (choices by likelihood, IFEval) and programs, whose tests are not kept, are left out.

    Args:
        extractor: ``audit`` for the second extractor of each task, or a regular expression. Its last match counts; with
            several groups, the first that matched.

    Raises:
        UsageError: not a regular expression, or no task with text answers.
    """
    results: list[Result] = []
    items: dict[str, tuple[Item, ...]] = {}
    for task, rows in examination.items.items():
        second = SECOND.get(dataset_of(task) or "")
        if second is None or second is CODE:
            continue
        reader = _Read(second.name, second.read) if extractor == AUDIT else _pattern(extractor)
        items[task] = tuple(_rescored(item, reader, second) for item in rows)
        results.append(_result(task, task, items[task], second))
        subsets = list(dict.fromkeys(item.subset for item in rows))
        if len(subsets) > 1:
            for subset in subsets:
                results.append(_result(task, subset, [item for item in items[task] if item.subset == subset], second))
    if not items:
        raise UsageError(
            f"none of {', '.join(examination.items)} extracts answers from text; rescoring applies to "
            "gsm8k, math500, bbh and their variants"
        )
    return replace(examination, results=tuple(results), items=items)


def _pattern(expression: str) -> _Read:
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise UsageError(
            f"extractor {expression!r} is not a regular expression ({error}); give one, or {AUDIT!r}"
        ) from error

    def read(text: str, gold: Any) -> str | None:
        found = list(compiled.finditer(text))
        if not found:
            return None
        return next((group for group in found[-1].groups() if group is not None), found[-1][0]).strip()

    return _Read(f"regex {expression}", read)


def _rescored(item: Item, reader: _Read, kind: Extractor) -> Item:
    answer = reader.read(item.outputs[0], item.gold)
    correct = kind.read(str(item.gold), item.gold) or str(item.gold)
    score = answer is not None and kind.same(answer, correct)
    return replace(
        item,
        settings=canonical_hash({"of": item.settings, "extractor": reader.name}),
        answer=answer,
        second_answer=item.answer,
        scores={"exact_match": float(score)},
    )


def _result(task: str, subset: str, rows: Sequence[Item], kind: Extractor) -> Result:
    interval = mean_interval([row.scores["exact_match"] for row in rows], [row.cluster for row in rows])
    settings = sorted({row.settings for row in rows})
    return Result(
        task=task,
        subset=subset,
        metric="exact_match",
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=len(rows),
        truncated=sum(row.truncated for row in rows) / len(rows),
        extraction_disagreement=sum(not kind.agree(row.second_answer, row.answer) for row in rows) / len(rows),
        settings=settings[0] if len(settings) == 1 else canonical_hash({"settings": settings}),
        context_cut=sum(row.context_cut > 0 for row in rows) / len(rows),
    )

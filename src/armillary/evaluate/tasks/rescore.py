"""Applies another extractor to the raw outputs of an examination, without calling the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from armillary.evaluate.intervals import mean_interval
from armillary.evaluate.results import RESULTS, Examination, Item, Result, write_examination
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

    With several prompt formats, a score is the mean over their outputs, and the interval covers the formats too. The
    answer is that of the first format. Each item's former answer becomes the second answer, so the disagreement
    compares the two extractors. Tasks without answer text (choices by likelihood, IFEval) and programs, whose tests are
    not kept, are left out.

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
        rescored = [_rescored(item, reader, second) for item in rows]
        items[task] = tuple(one.item for one in rescored)
        results.append(_result(task, task, rescored, second))
        subsets = list(dict.fromkeys(item.subset for item in rows))
        if len(subsets) > 1:
            for subset in subsets:
                part = [one for one in rescored if one.item.subset == subset]
                results.append(_result(task, subset, part, second))
    if not items:
        raise UsageError(
            f"none of {', '.join(examination.items)} extracts answers from text; rescoring applies to "
            "gsm8k, math500, bbh and their variants"
        )
    return replace(examination, results=tuple(results), items=items)


def write_rescored(folder: Path, examination: Examination) -> None:
    """Write a rescored examination into a folder without results.

    Raises:
        UsageError: the folder has results, which would be lost.
        ArmillaryError: as ``write_examination``.
    """
    if (folder / RESULTS).exists():
        raise UsageError(f"{folder}: has an examination, whose scores would be lost; choose another --out")
    write_examination(folder, examination)


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


@dataclass(frozen=True)
class _Rescored:
    """An item with its new score, and the score of each of its outputs: one per prompt format."""

    item: Item
    scores: tuple[float, ...]


def _rescored(item: Item, reader: _Read, kind: Extractor) -> _Rescored:
    answers = [reader.read(output, item.gold) for output in item.outputs]
    correct = kind.read(str(item.gold), item.gold) or str(item.gold)
    scores = tuple(float(answer is not None and kind.same(answer, correct)) for answer in answers)
    changed = replace(
        item,
        settings=canonical_hash({"of": item.settings, "extractor": reader.name}),
        answer=answers[0],
        second_answer=item.answer,
        scores={"exact_match": sum(scores) / len(scores)},
    )
    return _Rescored(changed, scores)


def _result(task: str, subset: str, rescored: Sequence[_Rescored], kind: Extractor) -> Result:
    rows = [one.item for one in rescored]
    interval = mean_interval([one.scores for one in rescored], [row.cluster for row in rows])
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

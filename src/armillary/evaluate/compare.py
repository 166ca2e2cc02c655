"""Two examinations, paired item by item: difference, interval, p-value, equivalence, and the items that flipped.

Each side may be several examinations, of models that differ only in their seed. The interval then covers seeds and
items (``seeds``). With one examination on each side, it holds for these two models only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from armillary.evaluate.intervals import Array
from armillary.evaluate.paired import Flip, Paired, flipped, holm, paired
from armillary.evaluate.results import Examination, Item, Result
from armillary.evaluate.seeds import SeedNoise, paired_over_seeds
from armillary.recipe import UsageError


@dataclass(frozen=True)
class Comparison:
    """Two models on those items of one task that both answered.

    Attributes:
        first, second: mean score of each on these items.
        paired: the difference, second minus first, and its tests.
        p_adjusted: p-value after Holm's correction over all comparisons of the call.
        flips: items on which they differ, the second model's largest losses first.
        left_out: items that only one of them answered.
        seeds: what seeds add to the noise; None where each side is one examination.
        same_settings: whether prompt template, examples, extractor and generation settings are equal.
    """

    task: str
    metric: str
    first: float
    second: float
    paired: Paired
    p_adjusted: float
    flips: tuple[Flip, ...]
    left_out: int
    same_settings: bool
    seeds: SeedNoise | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)


def compare(
    first: Examination, second: Examination, margin: float | None = None, any_settings: bool = False
) -> list[Comparison]:
    """Compare two examinations on each task and metric that they share.

    Args:
        margin: largest difference that does not matter, such as 0.01; None skips the test of equivalence.
        any_settings: whether to compare results whose settings differ.

    Raises:
        UsageError: no task in common, no item in common, or different settings.
    """
    wholes = [r for r in first.results if r.subset == r.task]
    pairs = [
        (a, b) for a in wholes for b in second.results if (a.task, a.subset, a.metric) == (b.task, b.subset, b.metric)
    ]
    if not pairs:
        raise UsageError(
            f"the examinations have no task and metric in common (first: {_listed(first)}; second: {_listed(second)})"
        )
    differing = sorted({a.task for a, b in pairs if a.settings != b.settings})
    if differing and not any_settings:
        raise UsageError(
            f"{', '.join(differing)}: prompt template, examples, extractor or generation settings differ between the "
            "two (see examination.json in each folder); repeat one with the settings of the other, or pass "
            "--any-settings"
        )
    found = [_compared(a, b, first.items[a.task], second.items[b.task], margin) for a, b in pairs]
    adjusted = holm([one["paired"].p_value for one in found])
    return [Comparison(**one, p_adjusted=p) for one, p in zip(found, adjusted, strict=True)]


def compare_seeds(
    first: Sequence[Examination], second: Sequence[Examination], margin: float | None = None, any_settings: bool = False
) -> list[Comparison]:
    """Compare two recipes, each given as the examinations of models of several seeds; arguments as for ``compare``.

    The items that flipped are those whose mean scores differ.

    Raises:
        UsageError: as ``compare`` for any two of the examinations, or a side without an examination.
    """
    if not first or not second:
        raise UsageError("give one examination or more for each side")
    if len(first) == len(second) == 1:
        return compare(first[0], second[0], margin, any_settings)
    # Each pair must be comparable, also within a side.
    for other in (*first[1:], *second):
        compare(first[0], other, margin, any_settings)
    found = []
    for one in compare(first[0], second[0], margin, any_settings):
        rows = [_scores(one.task, one.metric, examination) for examination in (*first, *second)]
        if any(row is None for row in rows):
            continue  # some examination lacks this task
        known = [row for row in rows if row is not None]
        shared = [id_ for id_ in known[0] if all(id_ in row for row in known)]
        if not shared:
            raise UsageError(f"{one.task}: the examinations have no item that all of them answered")
        table = np.array([[row[id_] for id_ in shared] for row in known]).T
        clusters = {item.id: item.cluster for item in first[0].items[one.task]}
        arms = table[:, : len(first)], table[:, len(first) :]
        paired_, seeds = paired_over_seeds(*arms, [clusters[id_] for id_ in shared], margin=margin)
        means = [dict(zip(shared, map(float, arm.mean(axis=1)), strict=True)) for arm in arms]
        found.append(
            replace(
                one,
                first=float(arms[0].mean()),
                second=float(arms[1].mean()),
                paired=paired_,
                flips=tuple(flipped(*means)),
                left_out=len(set().union(*known)) - len(shared),
                seeds=seeds,
            )
        )
    if not found:
        raise UsageError("no task and metric is common to all examinations")
    adjusted = holm([one.paired.p_value for one in found])
    return [replace(one, p_adjusted=p) for one, p in zip(found, adjusted, strict=True)]


def scores_of(examinations: Sequence[Examination], task: str, metric: str | None = None) -> Array:
    """Scores [items, examinations] of a task on the items that all examinations answered.

    Raises:
        UsageError: an examination lacks the task, the task has several metrics, or no item is in common.
    """
    metrics = {r.metric for e in examinations for r in e.results if r.task == task == r.subset}
    if metric is None and len(metrics) != 1:
        raise UsageError(f"{task} has the metrics {', '.join(sorted(metrics)) or 'of no examination'}; choose one")
    name = metric if metric is not None else metrics.pop()
    rows = [_scores(task, name, examination) for examination in examinations]
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        raise UsageError(f"{task} ({name}): missing in some of the examinations")
    shared = [id_ for id_ in known[0] if all(id_ in row for row in known)]
    if not shared:
        raise UsageError(f"{task}: the examinations have no item in common; they used different data")
    return np.array([[row[id_] for id_ in shared] for row in known]).T


def _scores(task: str, metric: str, examination: Examination) -> dict[str, float] | None:
    """Score by item of a whole task; None where the examination does not have it."""
    if not any((r.task, r.subset, r.metric) == (task, task, metric) for r in examination.results):
        return None
    return {item.id: float(item.scores[metric]) for item in examination.items[task] if metric in item.scores}


def _compared(
    a: Result, b: Result, first: Sequence[Item], second: Sequence[Item], margin: float | None
) -> dict[str, Any]:
    left, right = ({item.id: item for item in items if a.metric in item.scores} for items in (first, second))
    shared = [id_ for id_ in left if id_ in right]
    if not shared:
        raise UsageError(f"{a.task}: the two examinations have no item in common; they used different data")
    scores = [{id_: float(items[id_].scores[a.metric]) for id_ in shared} for items in (left, right)]
    values = [list(part.values()) for part in scores]
    return {
        "task": a.task,
        "metric": a.metric,
        "first": sum(values[0]) / len(shared),
        "second": sum(values[1]) / len(shared),
        "paired": paired(values[0], values[1], [left[id_].cluster for id_ in shared], margin=margin),
        "flips": tuple(flipped(*scores)),
        "left_out": len(left.keys() ^ right.keys()),
        "same_settings": a.settings == b.settings,
    }


def _listed(examination: Examination) -> str:
    return ", ".join(dict.fromkeys(f"{r.task} {r.metric}" for r in examination.results)) or "none"

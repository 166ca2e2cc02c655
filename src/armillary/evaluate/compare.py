"""Two examinations, paired item by item: difference, interval, p-value, equivalence, and the items that flipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from armillary.evaluate.paired import Flip, Paired, flipped, holm, paired
from armillary.evaluate.results import Examination, Item, Result
from armillary.recipe import UsageError


@dataclass(frozen=True)
class Comparison:
    """Two models on the items of one task that both answered.

    Attributes:
        first, second: mean score of each on these items.
        paired: the difference, second minus first, and its tests.
        p_adjusted: p-value after Holm's correction over all comparisons of the call.
        flips: items on which they differ, the second model's largest losses first.
        left_out: items that only one of them answered.
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

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)


def compare(
    first: Examination, second: Examination, margin: float | None = None, any_settings: bool = False
) -> list[Comparison]:
    """Compare two examinations on each task and metric that both have.

    Args:
        margin: largest difference that does not matter, such as 0.01; None for no test of equivalence.
        any_settings: whether results of other settings are compared too.

    Raises:
        UsageError: no task in common, no item in common, or other settings.
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
            "two (examination.json in each folder has both); hold one again with the settings of the other, or pass "
            "--any-settings"
        )
    found = [_compared(a, b, first.items[a.task], second.items[b.task], margin) for a, b in pairs]
    adjusted = holm([one["paired"].p_value for one in found])
    return [Comparison(**one, p_adjusted=p) for one, p in zip(found, adjusted, strict=True)]


def _compared(
    a: Result, b: Result, first: Sequence[Item], second: Sequence[Item], margin: float | None
) -> dict[str, Any]:
    left, right = ({item.id: item for item in items if a.metric in item.scores} for items in (first, second))
    shared = [id_ for id_ in left if id_ in right]
    if not shared:
        raise UsageError(f"{a.task}: the two examinations have no item in common; they used other data")
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

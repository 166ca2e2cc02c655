"""90 % intervals for predicted speed and peak memory, from errors on left-out publications.

An error depends mostly on the kind of row: with the layout given, with parts of it assumed, or with a mixture of
experts. Each kind has separate quantiles. A kind with few rows uses those of all rows, twice as wide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from armillary.plan.constants import Interval
from armillary.plan.job import Job

LEVEL = 0.9
KINDS = ("given", "assumed", "experts")
_FEWEST = 12


def kind_of(job: Job, assumed: Iterable[str]) -> str:
    """The kind of row for a prediction."""
    if job.model.experts is not None:
        return "experts"
    return "assumed" if {"layout", "model sizes", "micro_batch"} & set(assumed) else "given"


def intervals(errors: Sequence[tuple[str, str, float]]) -> dict[str, Interval]:
    """Intervals by kind from (kind, source, log of predicted over measured); a source weighs by the root of its rows.

    The key ``all`` has the interval of all kinds together.
    """
    found = {"all": _quantiles([(source, -error) for _, source, error in errors])}
    for kind in KINDS:
        own = [(source, -error) for one, source, error in errors if one == kind]
        few = Interval(2 * found["all"].low, 2 * found["all"].high)
        found[kind] = _quantiles(own) if len(own) >= _FEWEST else few
    return found


def _quantiles(errors: list[tuple[str, float]]) -> Interval:
    if not errors:
        return Interval(-0.3, 0.3)
    sources = [source for source, _ in errors]
    weights = np.array([1 / sources.count(source) ** 0.5 for source in sources])
    values = np.array([error for _, error in errors])
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    places = (np.cumsum(weights) - weights / 2) / weights.sum()
    low, high = np.interp([(1 - LEVEL) / 2, (1 + LEVEL) / 2], places, values)
    return Interval(float(low), float(high))

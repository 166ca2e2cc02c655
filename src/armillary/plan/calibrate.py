"""Fits factors on compute time to measured rows, and the spread of the residuals.

A factor belongs to an accelerator, to a family of programs, or to mixtures of experts; the compute time of a job is
multiplied by the product of its factors. They are found by ridge regression on the logs of measured over predicted step
time, so a factor stays near 1 without evidence from several rows. The rows of a publication share an error, so its
weight grows only with the square root of their number. Errors are clipped at ``_CLIP``.

There are far fewer factors than publications have rows, and no factor belongs to a row or a model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from armillary.plan.constants import Constants
from armillary.plan.job import Job
from armillary.plan.published import Row, measured, values_of
from armillary.plan.step_time import Step, step_time

_CLIP = 0.35
_PRIOR_SD = 0.12  # of the log of a factor
_ROW_SD = 0.10
_PASSES = 8
_GRID = np.linspace(math.log(0.4), math.log(2.5), 15)  # logs of the factor at which a job's step time is computed


def factor_names(job: Job) -> tuple[str, ...]:
    """The factors that apply to a job."""
    names = [f"accelerator.{job.accelerator_name}", f"software.{job.software.name}",
             f"generation.{job.accelerator.generation}"]  # fmt: skip
    if job.precision in ("fp8", "fp4"):
        names.append(f"low-precision.{job.software.name}")
    if job.model.experts is not None:
        names += ["experts", f"experts.{job.precision}"]
    return tuple(names)


def predict(job: Job, constants: Constants) -> Step:
    """The calibrated step time of a job."""
    return step_time(job, constants, constants.factor(*factor_names(job)))


def log_error(row: Row, seconds: float) -> float | None:
    """Log of predicted over measured speed; None for a row without a measured speed."""
    found = measured(row)
    if found is None or row.job is None:
        return None
    name, value = found
    error = math.log(values_of(row, seconds)[name] / value)
    return -error if name == "step_time_s" else error


class Sample:
    """A measured row with its log error over the factor on compute time, for fits that need it many times."""

    def __init__(self, row: Row, constants: Constants) -> None:
        assert row.job is not None
        self.row = row
        self.source = row.source
        self.names = factor_names(row.job)
        self._errors = np.array([log_error(row, step_time(row.job, constants, math.exp(at)).total) for at in _GRID])

    def error(self, log_factor: float) -> float:
        """Log of predicted over measured speed."""
        return float(np.interp(log_factor, _GRID, self._errors))

    def slope(self, log_factor: float) -> float:
        """Fall of the log error over the log of the factor: the share of compute in the step."""
        return (self.error(log_factor - 0.05) - self.error(log_factor + 0.05)) / 0.1


def samples_of(rows: Iterable[Row], constants: Constants) -> list[Sample]:
    """The rows that have a job and a measured speed."""
    return [Sample(row, constants) for row in rows if row.job is not None and measured(row) is not None]


def fit_factors(samples: Sequence[Sample]) -> dict[str, float]:
    """The factors that fit the samples best; see the module."""
    counts = Counter(sample.source for sample in samples)
    names = sorted({name for sample in samples for name in sample.names})
    place = {name: i for i, name in enumerate(names)}
    logs = np.zeros(len(names))
    for _ in range(_PASSES):
        left, right = np.eye(len(names)) / _PRIOR_SD**2, -logs / _PRIOR_SD**2
        for sample in samples:
            own = [place[name] for name in sample.names]
            at = float(logs[own].sum())
            error = max(-_CLIP, min(_CLIP, sample.error(at)))
            weight = 1 / counts[sample.source] ** 0.5 / _ROW_SD**2
            slope = sample.slope(at)
            right[own] += weight * slope * error
            left[np.ix_(own, own)] += weight * slope * slope
        logs = logs + np.linalg.solve(left, right)
    return {name: float(math.exp(value)) for name, value in zip(names, logs, strict=True)}


def log_factor(factors: dict[str, float], names: Iterable[str]) -> float:
    """Log of the product of the factors of ``names``."""
    return sum(math.log(factors[name]) for name in names if name in factors)

"""Finds losses of mixture runs that contradict the other runs (diverged runs, mistyped entries).

A robust linear law finds candidates, and a smooth law of the other runs decides. Trade-off: a wrong loss that is kept
widens intervals, and a right loss that is left out may bias the law, so the threshold is high.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from armillary.laws.estimator import Array
from armillary.laws.mixture.forms import Form, GaussianProcess, Linear

# Minimum number of runs and of different mixtures for a mixture law, and the number of folds.
MIN_ROWS, FOLDS = 8, 8

# A loss is suspect beyond this many times the usual error of a linear law, and contradicted beyond this many times that
# of a smooth law; neither below this difference in log loss.
SUSPECT, CONTRADICTED, CONTRADICTED_LEAST = 3.0, 10.0, 0.3


def contradicted(X: Array, s: Array, logs: Array, gone: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], Array]:
    """A mask of the log losses [n, v] that contradict the others, and the predictions there; ``gone`` are missing.

    Candidates come from a robust linear law and are replaced by its prediction. A smooth law of the others then decides
    with two thresholds: ``CONTRADICTED`` times its usual error, and ``CONTRADICTED_LEAST`` in log loss.

    If a domain has almost no weight, its loss rises without bound, and few other runs can predict how far. So a single
    loss must also be outside the range of the others, in a run whose weights the others enclose. For a run with all
    losses contradicted, neither is required.
    """
    none = np.zeros(logs.shape, dtype=bool)
    filled = np.where(gone, np.nan, logs)
    for size in np.unique(s):  # a start: the median at the same scale
        rows = s == size
        filled[rows] = np.where(gone[rows], np.nanmedian(filled[rows], axis=0), filled[rows])
    filled = np.where(np.isfinite(filled), filled, np.nanmedian(np.where(gone, np.nan, logs), axis=0))
    folds = [np.arange(k, len(X), FOLDS) for k in range(min(FOLDS, len(X)))]

    def judged(form: Form) -> tuple[Array, Array]:
        predicted = form.held_out(X, s, filled, folds)
        off = np.abs(predicted - logs)
        usual = 1.4826 * np.nanmedian(np.where(gone | suspect, np.nan, off), axis=0)
        return predicted, np.maximum(usual, 1e-4)

    suspect = none.copy()
    for _ in range(2):
        predicted, usual = judged(Linear())
        off = np.abs(predicted - logs)
        suspect = off > np.maximum(CONTRADICTED_LEAST / 2, SUSPECT * usual)
        # A diverged run is suspect on all domains, even if the linear law accepts some of them.
        suspect = ~gone & (suspect & ~gone).any(axis=1, keepdims=True)
        if not (suspect | gone).any():
            return none, logs
        filled = np.where(suspect | gone, predicted, logs)
    for _ in range(2):
        predicted, usual = judged(GaussianProcess())
        filled = np.where(suspect | gone, predicted, logs)
    found = suspect & (np.abs(predicted - logs) > np.maximum(CONTRADICTED_LEAST, CONTRADICTED * usual))
    whole = found & _whole_rows(found, gone)
    found = whole | _beyond(logs, found & _enclosed(X)[:, None], whole | gone)
    count = found.sum(0)
    found &= count <= 0.25 * (~gone).sum(0)
    if len(np.unique(X[~found.all(1)].round(9), axis=0)) < MIN_ROWS:
        found = none
    return found, predicted


def _whole_rows(found: NDArray[np.bool_], gone: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows [n, 1] with several losses, all of them found or missing."""
    several = (~gone).sum(axis=1, keepdims=True) > 1
    return np.asarray(several & (found | gone).all(axis=1, keepdims=True))


def _enclosed(X: Array) -> NDArray[np.bool_]:
    """Rows [n] whose every weight is between, or equal to, weights of other runs."""
    ordered = np.sort(X, axis=0)
    return np.asarray(((ordered[1] <= X) & (ordered[-2] >= X)).all(axis=1))


def _beyond(logs: Array, suspects: NDArray[np.bool_], left_out: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The suspects [n, v] outside the range of all values that are neither left out nor suspect."""
    found = np.zeros_like(suspects)
    while True:
        counted = ~(left_out | found)
        low, high = np.where(counted, logs, np.inf).min(axis=0), np.where(counted, logs, -np.inf).max(axis=0)
        more = suspects & counted & ((logs <= low) | (logs >= high))
        if not more.any():
            return found
        found |= more

"""The scale of a mixture law: size and tokens of runs, the direction along which losses move, and the reach."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from armillary.laws.estimator import Array, checked_positive
from armillary.laws.mixture.forms import GaussianProcess, Rows
from armillary.recipe import UsageError, counted

# Log sizes and log tokens that differ by less are the same.
SAME_SCALE = 0.1

# e-folds of size over which movement slows down to 37 %, and the factor of its uncertainty. Beyond the fitted sizes one
# form's movement is used for all. This choice and the factor were tuned on test runs of tiny models on few tokens.
REACH = 12.0
_REACH_STD = 1.2

# Number of reaches to try if the sizes can determine the reach, and the most runs to use for it.
_REACHES, _ASKED = 12, 160


def directions(points: Array) -> Array:
    """Orthonormal directions [r, k] in which points [n, k] spread by more than ``SAME_SCALE``."""
    _, _, directions = np.linalg.svd(points - points.mean(0), full_matrices=False)
    spread = np.ptp((points - points.mean(0)) @ directions.T, axis=0)
    return np.asarray(directions[spread > SAME_SCALE])


def direction_of_scale(X: Array, logs: Array, gone: NDArray[np.bool_], sizes: Array, tokens: Array | None) -> Array:
    """Weights [2] of log size and log tokens in the scale along which losses move, in e-folds of the size.

    If the runs are on a line in size and tokens, the scale follows it. If they span both, a linear fit of the mean log
    loss gives the e-folds of size that equal one e-fold of tokens.
    """
    if tokens is None:
        return np.array([1.0, 0.0])
    varies = np.ptp(sizes) > SAME_SCALE
    if len(directions(np.stack([sizes, tokens], axis=1))) < 2:
        return np.array([1.0, 0.0]) if varies or np.ptp(tokens) <= SAME_SCALE else np.array([0.0, 1.0])
    whole = ~gone.any(1)
    columns = np.column_stack([np.sqrt(X), sizes, tokens])[whole]
    level = logs[whole].mean(1)
    centred = columns - columns.mean(0)
    penalty = 1e-3 * np.diag((centred**2).sum(0) + 1e-12)
    slopes = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (level - level.mean()))[-2:]
    worth = slopes[1] / slopes[0] if slopes[0] < 0 and slopes[1] < 0 else 1.0
    return np.array([1.0, float(np.clip(worth, 0.1, 10.0))])


def checked_sizes(sizes: float | ArrayLike, rows: int, name: str = "sizes") -> Array:
    """Sizes or tokens [rows], all above 0."""
    given = np.asarray(sizes, dtype=float)
    if given.ndim > 1 or given.size not in (1, rows):
        raise UsageError(
            f"{name} has shape {list(given.shape)}; give one number, or one for each of {counted(rows, 'row')}"
        )
    return np.broadcast_to(checked_positive(name, given.reshape(-1, 1))[:, 0], rows)


def likely_reaches(
    X: Array, e_folds: Array, Z: Array, folds: list[Rows], count: int, rng: np.random.Generator
) -> tuple[float, Array]:
    """The likeliest reach, and draws [count] of it: the prior, weighted by held-out errors if sizes determine it."""
    grid = REACH * np.exp(_REACH_STD * stats.norm.ppf((np.arange(_REACHES) + 0.5) / _REACHES))
    if len(np.unique(e_folds)) < 3:
        return REACH, rng.choice(grid, count)
    rows = rng.permutation(len(X))[:_ASKED]
    parts = [part for part in (np.flatnonzero(np.isin(rows, fold)) for fold in folds) if len(part)]
    X, e_folds, Z = X[rows], e_folds[rows], Z[rows]
    errors = []
    for reach in grid:
        s = reach * -np.expm1(-e_folds / reach)
        errors.append(np.log(((GaussianProcess().held_out(X, s, Z, parts) - Z) ** 2).mean(0) + 1e-12).mean())
    # Errors of domains are correlated, so all domains together count as one.
    likelihood = np.exp(-0.5 * len(Z) * (np.array(errors) - min(errors)))
    weights = likelihood / likelihood.sum()
    return float(np.exp(weights @ np.log(grid))), rng.choice(grid, count, p=weights)

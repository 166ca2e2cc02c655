"""Many small non-linear fits at once: Levenberg-Marquardt over a batch, with Huber loss and a normal prior.

Starts, folds and bootstrap draws of one law are the same problem with different weights, data or priors. Solved one by
one in Python they take minutes; as one batch of small dense systems they take a second. Trade-offs: the Jacobian must
be given in closed form, all problems of a batch have the same number of rows (a weight of 0 leaves a row out), and
parameters are unconstrained (fit logarithms of what must be positive).

The same solver gives posterior draws by *randomise then optimise* (Bardsley et al. 2014): perturb the data by the noise
and the prior's mean by the prior's width, and fit again. For a linear law the draw is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.laws.estimator import Array

# (parameters [P, p], which problems [P]) -> residuals [P, n] in units of the noise, Jacobian [P, n, p]
Residuals = Callable[[Array, NDArray[np.intp]], tuple[Array, Array]]

# Numbers of a Jacobian per block, so that it fits into the cache of a laptop.
CHUNK = 1_000_000


@dataclass(frozen=True)
class Fits:
    """Solutions of P problems: parameters [P, p], objective [P], precision [P, p, p] (data and prior), of the data."""

    parameters: Array
    objective: Array
    precision: Array
    data_precision: Array

    @property
    def effective_parameters(self) -> Array:
        """The number of parameters that the data determine rather than the prior, [P], each in [0, p]."""
        return np.asarray(np.trace(np.linalg.solve(self.precision, self.data_precision), axis1=1, axis2=2))


def fit_many(
    residuals: Residuals,
    start: Array,
    weights: Array,
    prior_mean: Array,
    prior_std: Array,
    *,
    huber: float | Array = np.inf,
    iterations: int = 100,
    tolerance: float = 1e-7,
) -> Fits:
    """Minimise ``sum_i w_i rho(r_i) + sum_k ((theta_k - m_k) / s_k)^2 / 2`` for P problems.

    Args:
        residuals: residuals and Jacobian in closed form.
        start: [P, p] starting points.
        weights: [P, n], 0 leaves a row out.
        prior_mean: [P, p].
        prior_std: [p], or [P, p] where it differs by problem.
        huber: beyond this many units of noise rho grows linearly (Huber 1964); infinite for least squares. [P] where
            it differs by problem.
        iterations: at most this many steps.
        tolerance: a problem has converged when a step lowers its objective by less than this share.
    """
    count, p = start.shape
    prior_std = np.broadcast_to(prior_std, (count, p))
    threshold = np.broadcast_to(huber, count)
    size = max(1, CHUNK // (weights.shape[1] * p))
    if count > size:
        parts = [
            fit_many(
                lambda theta, which, first=first: residuals(theta, which + first),  # type: ignore[misc]
                start[first : first + size],
                weights[first : first + size],
                prior_mean[first : first + size],
                prior_std[first : first + size],
                huber=threshold[first : first + size],
                iterations=iterations,
                tolerance=tolerance,
            )
            for first in range(0, count, size)
        ]
        return Fits(*(np.concatenate([getattr(part, f) for part in parts]) for f in Fits.__dataclass_fields__))

    pull = 1.0 / prior_std**2

    def evaluate(theta: Array, which: NDArray[np.intp]) -> tuple[Array, Array, Array]:
        """Objective [P], gradient [P, p], data precision [P, p, p]."""
        r, jacobian = residuals(theta, which)
        size = np.abs(r)
        # A majoriser of Huber's loss: beyond the threshold, a row's weight falls with its distance.
        linear = np.minimum(size, threshold[which, None])
        downweight = linear / np.maximum(size, 1e-300)
        rho = linear * (size - linear / 2)
        away = theta - prior_mean[which]
        objective = (weights[which] * rho).sum(1) + (pull[which] * away * away).sum(1) / 2
        weighted = jacobian * (weights[which] * downweight)[:, :, None]
        gradient = (weighted * r[:, :, None]).sum(1) + pull[which] * away
        return objective, gradient, weighted.transpose(0, 2, 1) @ jacobian

    theta = start.copy()
    objective, gradient, data = evaluate(theta, np.arange(count))
    damping = np.full(count, 1e-3)
    active = np.arange(count)
    for _ in range(iterations):
        if not len(active):
            break
        hessian = data[active].copy()
        np.einsum("pii->pi", hessian)[...] += pull[active]
        diagonal = np.einsum("pii->pi", hessian)
        diagonal *= 1 + damping[active, None]
        step = -np.linalg.solve(hessian, gradient[active][:, :, None])[:, :, 0]
        # Parameters are logarithms or of order one; for a longer step the Jacobian is no longer valid.
        step = np.clip(step, -2.0, 2.0)
        trial = theta[active] + step
        new_objective, new_gradient, new_data = evaluate(trial, active)
        better = new_objective < objective[active]
        gain = objective[active] - new_objective
        done = (np.abs(gain) <= tolerance * np.maximum(objective[active], 1e-12)) | (damping[active] > 1e10)
        taken = active[better]
        theta[taken] = trial[better]
        objective[taken] = new_objective[better]
        gradient[taken] = new_gradient[better]
        data[taken] = new_data[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 5, 1e-9), damping[active] * 6)
        active = active[~done]
    precision = data.copy()
    np.einsum("pii->pi", precision)[...] += pull
    return Fits(theta, objective, precision, data)

"""The noise of single runs around a mixture law, which depends on the mixture.

A run on almost a single domain deviates more from any law than one near the middle of the design. So does a run whose
loss depends on a weight of a tenth of a per cent, which tables round away. The standard deviation of a run is

    noise_v(x, s) = scale_v exp(b . u(x, s)),

with few features u that all validation domains share: the height of the predicted loss in its domain, the distance of
the mixture to the nearest ones of the design, the change of the prediction for 0.1 % more of a domain, and the size.
``b`` comes from a ridge regression of the logarithms of the absolute held-out residuals (Harvey 1976), so with few runs
it is near 0 and the noise is equal everywhere. ``scale`` follows from their central nine tenths. Trade-off: features
are clipped to the observed range, so no noise beyond the measured range is predicted.
"""

from __future__ import annotations

import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist

from armillary.laws.estimator import Array

NEIGHBOURS = 3

# Prior standard deviation of a coefficient, and standard deviation of the log of a normal variate's absolute value.
_PRIOR_STD = 0.15
_LOG_NORMAL_STD = 1.11


def nearest_distance(X: Array, design: Array) -> Array:
    """Mean distance [m] of mixtures to the nearest three of the design that differ from them (of square roots)."""
    apart = cdist(np.sqrt(X), np.sqrt(design))
    apart[apart < 1e-6] = np.inf
    return np.asarray(np.sort(apart, axis=1)[:, :NEIGHBOURS].mean(1))


def correlation(columns: Array) -> Array:
    """Correlation [v, v] of columns [n, v]; a constant column correlates only with itself."""
    centred = columns - columns.mean(0)
    length = np.sqrt((centred**2).sum(0))
    unit = centred / np.where(length > 0, length, 1.0)
    return np.asarray(unit.T @ unit + np.diag((length == 0).astype(float)))


class RunNoise:
    """The standard deviation of a run around a law, fitted to held-out residuals.

    Attributes:
        scale_: standard deviation [v] of log losses at average features.
        coefficients_: of the features, [k].
    """

    def fit(self, residuals: Array, features: Array, spread: Array) -> RunNoise:
        """Fit to held-out residuals [n, v] of log losses, features [n, v, k] and variances [n, v] of the law itself."""
        n, targets, k = features.shape
        self._middle = features.mean(0)
        self._width = np.maximum(features.std(0), 1e-9)
        u = self._standard(features)
        self._low, self._high = u.min((0, 1)), u.max((0, 1))
        size = np.log(np.maximum(np.abs(residuals), 1e-2 * np.abs(residuals).mean(0) + 1e-12))
        size = size - size.mean(0)
        flat = u.reshape(n * targets, k)
        # Residuals of one run are correlated: v identical domains count as one.
        alike = np.abs(correlation(size)).sum() / targets
        pull = _LOG_NORMAL_STD**2 / _PRIOR_STD**2 * max(float(alike), 1.0)
        self.coefficients_ = np.linalg.solve(flat.T @ flat + pull * np.eye(k), flat.T @ size.ravel())
        relative = self._relative(features)
        share = np.abs(residuals) / relative
        # With the root mean square as scale, a few large errors would widen all intervals.
        within = np.quantile(share, 0.9, axis=0) / stats.norm.ppf(0.95)
        scale = np.maximum(np.minimum(within, np.sqrt((share**2).mean(0))), 1e-6)
        # The law's own variance is not noise, so it is subtracted. At least half remains, because the law does not know
        # its omissions.
        own = (spread / relative**2).mean(0)
        self.scale_ = scale * np.sqrt(np.maximum(1 - own / scale**2, 0.25))
        return self

    def std(self, features: Array) -> Array:
        """Standard deviations [m, v] at features [m, v, k]."""
        return np.asarray(self.scale_ * self._relative(features))

    def _standard(self, features: Array) -> Array:
        return np.asarray((features - self._middle) / self._width)

    def _relative(self, features: Array) -> Array:
        u = np.clip(self._standard(features), self._low, self._high)
        return np.asarray(np.exp(u @ self.coefficients_))

"""The forms a scaling law may take: from sizes to the log loss, each with its derivatives in closed form and priors.

All but two are sums of power laws (``PowerSum``): ``L = E + sum_j C_j prod_k x_k^(-w_jk)``, in which an exponent may
occur in several terms. ``Kaplan`` bends the sum of the two terms. ``Repeated`` replaces parameters and tokens by their
effective values under repeated data.

Trade-offs taken:

- Every parameter has a broad normal prior on its scale (``Parameter``), so that six runs suffice for a fit and no start
  diverges. Parameters that a form adds to Chinchilla's have priors around "no effect".
- Terms are written at the centre of the runs, not at N = 1: parameters are then nearly uncorrelated and of order one.
- Terms of a sum stay positive, so a law cannot predict a loss that rises with size. Overfitting, which does rise, is a
  separate term; its shape was tuned on published runs on repeated data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from armillary.laws.estimator import Array

# Published exponents lie between 0.2 and 0.7 (Kaplan 2020, Hoffmann 2022, Besiroglu 2024, DeepSeek 2024, Llama 3). Each
# term is some share of the median loss at the centre.
EXPONENT, EXPONENT_STD = 0.4, 0.4
# The irreducible loss is a share of the lowest loss seen (``floor_share``): SHARE times that of a published law, since
# other corpora have less of it, but at least LEAST_SHARE, since that law was fitted to models above 40M parameters.
SHARE, LEAST_SHARE, FLOOR_STD = 0.75, 0.4, 0.3
TERM, TERM_STD = 0.3, 1.5


@dataclass(frozen=True)
class Parameter:
    """A fitted parameter, its scale and its prior there.

    ``kind`` is ``floor`` (log of the irreducible loss; prior relative to the lowest loss), ``term`` (log of a term at
    the centre; relative to the median loss), ``log`` (log of a positive number) or ``plain``.
    """

    name: str
    kind: str
    mean: float
    std: float


def floor_share(params: Array, tokens: Array) -> Array:
    """Prior share [P] of the irreducible loss in the loss, at log parameters [P] and log tokens [P].

    From the law of Besiroglu et al. 2024 (arXiv 2404.10102), equation 1, refitted to Chinchilla's points.
    """
    terms = 482.0 * np.exp(-0.348 * params) + 2085.0 * np.exp(-0.366 * tokens)
    return np.asarray(np.maximum(SHARE * 1.817 / (1.817 + terms), LEAST_SHARE))


def exponent(name: str, mean: float = EXPONENT, std: float = EXPONENT_STD) -> Parameter:
    """A positive exponent."""
    return Parameter(name, "log", float(np.log(mean)), std)


E = Parameter("E", "floor", 0.0, FLOOR_STD)
A = Parameter("A", "term", float(np.log(TERM)), TERM_STD)
B = Parameter("B", "term", float(np.log(TERM)), TERM_STD)
ALPHA, BETA = exponent("alpha"), exponent("beta")
BEND = Parameter("k", "log", 0.0, 0.7)
REPETITION = (
    E,
    A,
    B,
    ALPHA,
    BETA,
    Parameter("R_D", "log", float(np.log(15.0)), 1.0),
    Parameter("R_N", "log", float(np.log(5.0)), 1.0),
)
OVERFIT = (
    Parameter("O", "term", float(np.log(0.1)), TERM_STD),
    exponent("kappa", 1.0, 0.5),
    Parameter("drift", "plain", 0.0, 0.15),
    exponent("lambda", 2.0, 0.5),
    Parameter("S", "log", float(np.log(60.0)), 0.7),
)


class ScalingForm(Protocol):
    """The interface of a form. ``theta`` [P, p] are parameters on the scale of their priors, ``points`` [n, k] are logs
    of the form's features, and ``centre`` [k] is the point at which terms are written."""

    @property
    def features(self) -> tuple[str, ...]:
        """Columns that the form reads, in this order."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The fitted parameters."""

    def evaluate(self, theta: Array, points: Array, centre: Array) -> tuple[Array, Array]:
        """Log losses [P, n] and their derivatives by the parameters [P, n, p]."""

    def natural(self, theta: Array, centre: Array) -> dict[str, Array]:
        """Parameters in the units of the published formula, each [P]."""


@dataclass(frozen=True)
class PowerSum:
    """``E + (sum_j T_j^(1/k))^k`` with ``T_j = C_j prod_i x_i^(-w_ji)``; k = 1 unless ``bent``.

    With a small k the largest term dominates (Kaplan et al. 2020, equation 1.5, has k = beta and E = 0).

    Attributes:
        features: columns that the form reads.
        parameters: first ``E``, then one ``term`` for each sum's term, then exponents (``log``: positive; ``plain``).
        terms: for each term the pairs (regressor, name of its exponent). A regressor is a feature, or ``a/b`` for the
            ratio of two features.
        bent: whether the last parameter is k.
    """

    features: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    terms: tuple[tuple[tuple[str, str], ...], ...]
    bent: bool = False

    def evaluate(self, theta: Array, points: Array, centre: Array) -> tuple[Array, Array]:
        """See ``ScalingForm``."""
        u = points - centre
        logs, slopes = [], []
        for j, pairs in enumerate(self.terms, start=1):
            log = np.repeat(theta[:, j : j + 1], len(u), 1)
            by = []
            for regressor, name in pairs:
                k, value, slope = self._exponent(theta, name)
                x = self._regressor(regressor, u)
                log -= value[:, None] * x
                by.append((k, -slope[:, None] * x))
            logs.append(np.minimum(log, 300.0))
            slopes.append(by)
        bend = np.exp(theta[:, -1:]) if self.bent else 1.0
        inner = np.array(logs) / bend
        total = np.logaddexp.reduce(inner, axis=0)
        law = np.logaddexp(theta[:, :1], bend * total)
        share, inside = np.exp(bend * total - law), np.exp(inner - total)
        jacobian = np.zeros((*law.shape, len(self.parameters)))
        jacobian[:, :, 0] = np.exp(theta[:, :1] - law)
        for j, derivatives in enumerate(slopes):
            jacobian[:, :, j + 1] = share * inside[j]
            for k, by_k in derivatives:
                jacobian[:, :, k] += jacobian[:, :, j + 1] * by_k
        if self.bent:
            jacobian[:, :, -1] = share * bend * (total - (inside * inner).sum(0))
        return law, jacobian

    def natural(self, theta: Array, centre: Array) -> dict[str, Array]:
        """See ``ScalingForm``."""
        values = {parameter.name: theta[:, k] for k, parameter in enumerate(self.parameters)}
        for j, pairs in enumerate(self.terms, start=1):
            name = self.parameters[j].name
            for regressor, by in pairs:
                values[name] = values[name] + self._exponent(theta, by)[1] * self._regressor(regressor, centre[None])[0]
        return {p.name: values[p.name] if p.kind == "plain" else np.exp(values[p.name]) for p in self.parameters}

    def _exponent(self, theta: Array, name: str) -> tuple[int, Array, Array]:
        """Index of an exponent, its value [P], and the derivative of the value by the parameter [P]."""
        k = [parameter.name for parameter in self.parameters].index(name)
        if self.parameters[k].kind == "plain":
            return k, theta[:, k], np.ones(len(theta))
        value = np.exp(theta[:, k])
        return k, value, value

    def _regressor(self, name: str, u: Array) -> Array:
        over, _, under = name.partition("/")
        x = u[:, self.features.index(over)]
        return x - u[:, self.features.index(under)] if under else x


@dataclass(frozen=True)
class Repeated:
    """Repeated data (Muennighoff et al. 2023, arXiv 2305.16264, equations 5 and 6) in Chinchilla's form or ``ratio``.

    ``D' = U (1 + R_D* (1 - e^(-R_D / R_D*)))`` with U unique tokens and ``R_D = D / U - 1`` repetitions, and the same
    for parameters: ``N' = U_N (1 + R_N* (1 - e^(-R_N / R_N*)))`` where U_N is the size that U tokens are optimal for
    and ``R_N = N / U_N - 1`` the excess over it. The loss is ``E + A N'^-alpha + B D'^-beta``; where ``joint``, the
    last term is ``B (D' / N')^-beta N'^-alpha``.

    In that law the loss never rises with repetition. With ``overfits``, the term ``O (N / U)^kappa U^drift (1 - e^(-R_D
    / S))^lambda`` is added. It rises slowly at first, then fast, and saturates far beyond S.

    Attributes:
        joint: whether the base is ``ratio`` rather than Chinchilla's form.
        overfits: whether the rising term is there.
    """

    joint: bool = False
    overfits: bool = False
    features: tuple[str, ...] = ("params", "tokens", "unique_tokens")

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """See ``ScalingForm``."""
        return (*REPETITION, *OVERFIT) if self.overfits else REPETITION

    def evaluate(self, theta: Array, points: Array, centre: Array) -> tuple[Array, Array]:
        """See ``ScalingForm``."""
        n, d = points[:, 0] - centre[0], points[:, 1] - centre[1]
        new = np.minimum(points[:, 2], points[:, 1])
        unique = new - centre[1]
        alpha, beta = np.exp(theta[:, 3:4]), np.exp(theta[:, 4:5])
        worth_d, _, by_r_d = _diminishing(unique, d, theta[:, 5:6])
        best, *best_by = self._optimal(theta, unique)
        worth_n, by_best, by_r_n = _diminishing(np.minimum(best, n), n, theta[:, 6:7])
        by_best = np.where(best < n, by_best, 0.0)
        mixed = alpha - beta if self.joint else np.zeros_like(alpha)  # exponent of N' in the term of tokens
        logs = np.array(
            [
                np.broadcast_to(theta[:, :1], worth_n.shape),
                np.minimum(theta[:, 1:2] - alpha * worth_n, 300.0),
                np.minimum(theta[:, 2:3] - beta * worth_d - mixed * worth_n, 300.0),
            ]
        )
        law = np.logaddexp.reduce(logs, axis=0)
        extra = []
        if self.overfits:
            kappa, drift, rate = np.exp(theta[:, 8:9]), theta[:, 9:10], np.exp(theta[:, 10:11])
            size, level = points[:, 0] - new, new - centre[2]
            repeats = np.expm1(np.clip(d - unique, 1e-12, 50.0)) / np.exp(theta[:, 11:12])
            begun = np.log(-np.expm1(-repeats))
            log = np.minimum(theta[:, 7:8] + kappa * size + drift * level + rate * begun, 300.0)
            law = np.logaddexp(law, log)
            share = np.exp(log - law)
            by_s = -rate * repeats / np.maximum(np.expm1(np.minimum(repeats, 300.0)), 1e-300)
            extra = [share, share * kappa * size, share * level, share * rate * begun, share * by_s]
        floor, share_n, share_d = np.exp(logs - law)
        # The law's derivative by the logarithm of the optimal size.
        pull = -(share_n * alpha + share_d * mixed) * by_best
        by_worth = share_d * worth_n if self.joint else 0.0
        jacobian = np.stack(
            [
                floor,
                share_n + pull * best_by[0],
                share_d - pull * best_by[0],
                -(share_n * worth_n + by_worth) * alpha + pull * best_by[1],
                -(share_d * worth_d - by_worth) * beta + pull * best_by[2],
                -share_d * beta * by_r_d,
                -(share_n * alpha + share_d * mixed) * by_r_n,
                *extra,
            ],
            axis=-1,
        )
        return law, jacobian

    def natural(self, theta: Array, centre: Array) -> dict[str, Array]:
        """See ``ScalingForm``."""
        values = {
            p.name: theta[:, k] if p.kind == "plain" else np.exp(theta[:, k]) for k, p in enumerate(self.parameters)
        }
        alpha, beta = values["alpha"], values["beta"]
        values["A"] = values["A"] * np.exp(alpha * centre[0])
        values["B"] = values["B"] * np.exp(beta * centre[1] + (alpha - beta) * centre[0] * self.joint)
        if self.overfits:
            values["O"] = values["O"] * np.exp(-values["drift"] * centre[2])
        return values

    def _optimal(self, theta: Array, unique: Array) -> tuple[Array, Array, Array, Array]:
        """Log size that log tokens are optimal for; its derivatives by A (by B the negative), alpha and beta (logs)."""
        alpha, beta = np.exp(theta[:, 3:4]), np.exp(theta[:, 4:5])
        scales = theta[:, 1:2] - theta[:, 2:3]
        if not self.joint:
            best = (theta[:, 3:4] - theta[:, 4:5] + scales + beta * unique) / alpha
            return best, 1 / alpha, 1 / alpha - best, (beta * unique - 1) / alpha
        # All sizes have the same optimal tokens per parameter, (B (2 beta - alpha) / (A alpha))^(1 / beta); there is
        # none unless 2 beta > alpha.
        surplus = np.maximum(2 * beta - alpha, 0.05 * beta)
        free = 2 * beta - alpha > 0.05 * beta
        log = np.log(surplus) - theta[:, 3:4] - scales
        by_alpha = (1 + np.where(free, alpha / surplus, 0.0)) / beta
        by_beta = (log - np.where(free, 2 * beta / surplus, 1.0)) / beta
        return unique - log / beta, 1 / beta, by_alpha, by_beta


def _diminishing(base: Array, total: Array, log_scale: Array) -> tuple[Array, Array, Array]:
    """Log worth of ``e^total`` of which ``e^base`` is new; its derivatives by ``base`` and by ``log_scale``."""
    scale = np.exp(log_scale)
    repeats = np.maximum(np.exp(np.minimum(total - base, 50.0)) - 1, 0.0)
    fade = np.exp(-repeats / scale)
    gain = 1 + scale * (1 - fade)
    by_base = 1 - fade * (repeats + 1) / gain
    by_scale = (scale * (1 - fade) - fade * repeats) / gain
    return base + np.log(gain), by_base, by_scale


Terms = tuple[tuple[tuple[str, str], ...], ...]


def _chinchilla(*extra: Parameter, terms: Terms, features: tuple[str, ...], bent: bool = False) -> PowerSum:
    """A sum of ``terms`` whose first parameters are E, A, B; ``extra`` are the others, terms first."""
    return PowerSum(features, (E, A, B, *extra), terms, bent)


_N, _D, _ACTIVE = ("params", "alpha"), ("tokens", "beta"), ("active_params", "alpha")
_IDLE = Parameter("idle", "plain", 0.1, 0.15)
_SMALL = float(np.log(0.05))

SCALING_FORMS: Mapping[str, ScalingForm] = {
    # Hoffmann et al. 2022, equation 2.
    "chinchilla": _chinchilla(ALPHA, BETA, terms=((_N,), (_D,)), features=("params", "tokens")),
    "shared": _chinchilla(ALPHA, terms=((_N,), (("tokens", "alpha"),)), features=("params", "tokens")),
    "kaplan": _chinchilla(ALPHA, BETA, BEND, terms=((_N,), (_D,)), features=("params", "tokens"), bent=True),
    # Excess loss falls with size at a rate that only tokens per parameter change: (A + B (D/N)^-beta) / N^alpha.
    "ratio": _chinchilla(ALPHA, BETA, terms=((_N,), (_N, ("tokens/params", "beta"))), features=("params", "tokens")),
    # The same, and the worth of tokens per parameter drifts with size: B / (D^beta N^(alpha - beta + delta)).
    "interaction": _chinchilla(
        ALPHA,
        BETA,
        Parameter("delta", "plain", 0.0, 0.05),
        terms=((_N,), (_N, ("tokens/params", "beta"), ("params", "delta"))),
        features=("params", "tokens"),
    ),
    "data-constrained": Repeated(),
    "data-constrained-ratio": Repeated(joint=True),
    "overfitting": Repeated(overfits=True),
    "overfitting-ratio": Repeated(joint=True, overfits=True),
    # Chinchilla's form and ``ratio`` with the active parameters alone: idle experts have no effect.
    "active": _chinchilla(ALPHA, BETA, terms=((_ACTIVE,), (_D,)), features=("active_params", "tokens")),
    "active-ratio": _chinchilla(
        ALPHA,
        BETA,
        terms=((_ACTIVE,), (_ACTIVE, ("tokens/active_params", "beta"))),
        features=("active_params", "tokens"),
    ),
    # Effective parameters active^(1-s) total^s, with idle = s alpha.
    "idle": _chinchilla(
        ALPHA,
        BETA,
        _IDLE,
        terms=((_ACTIVE, ("total_params/active_params", "idle")), (_D,)),
        features=("active_params", "total_params", "tokens"),
    ),
    # Active parameters, with a benefit from idle ones. With more experts, each gets fewer tokens (Ludziejewski et al.
    # 2025, arXiv 2502.05172, whose terms depend on the experts in the same way).
    "moe": _chinchilla(
        ALPHA,
        BETA,
        _IDLE,
        Parameter("dilution", "plain", 0.0, 0.15),
        terms=(
            (_ACTIVE, ("total_params/active_params", "idle")),
            (_D, ("experts", "dilution")),
        ),
        features=("active_params", "total_params", "experts", "tokens"),
    ),
    "context": _chinchilla(
        Parameter("C", "term", _SMALL, TERM_STD),
        ALPHA,
        BETA,
        exponent("gamma"),
        terms=((_N,), (_D,), (("context", "gamma"),)),
        features=("params", "tokens", "context"),
    ),
    # A longer context multiplies the reducible loss by a power of either sign.
    "context-factor": _chinchilla(
        ALPHA,
        BETA,
        Parameter("gamma", "plain", 0.0, 0.1),
        terms=((_N, ("context", "gamma")), (_D, ("context", "gamma"))),
        features=("params", "tokens", "context"),
    ),
    # McLeish et al. 2025 (arXiv 2502.06857): width, depth, parameters and tokens each with a term.
    "width-depth": _chinchilla(
        Parameter("W", "term", _SMALL, TERM_STD),
        Parameter("H", "term", _SMALL, TERM_STD),
        ALPHA,
        BETA,
        exponent("omega"),
        exponent("eta"),
        terms=((_N,), (_D,), (("width", "omega"),), (("depth", "eta"),)),
        features=("params", "tokens", "width", "depth"),
    ),
}

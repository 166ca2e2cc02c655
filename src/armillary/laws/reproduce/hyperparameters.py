"""Step Law (Li et al. 2025, arXiv 2503.04715): predicts the best learning rate and batch size of a larger model.

Grids of about 120 runs, each at one (N, D). A rule chooses one run of an unseen grid. Its *regret* is that run's loss
minus the lowest loss of the grid. Losses are ``smooth loss`` (averaged over the last steps). The column ``loss`` is
that of the last batch, which runs of one (N, D, batch size) share. It differs by 1 % between batch sizes, ten times the
differences of interest. The lowest of 120 noisy losses is partly luck, so even the true optimum has a regret above
zero.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from armillary.laws.estimator import Array
from armillary.laws.hyperparameters.basin import Rows
from armillary.laws.hyperparameters.law import HyperparameterLaw
from armillary.laws.reproduce.evaluation import Evaluation, Figure, Forecast
from armillary.laws.table import read_table

SEQUENCE = 2048
NEAR = 0.03  # random forecasts are predicted within this share of the lowest loss, which excludes diverging runs


def step_law(folder: Path) -> Evaluation:
    """Regret upward (from all sizes but the largest N) and leaving out each (N, D) in turn; forecasts upward.

    Raises:
        UsageError: ``scaling/step_law_small.csv`` is missing below ``folder``, or is not such a table.
    """
    table = read_table(folder / "scaling" / "step_law_small.csv")
    X = table.numbers(("N", "D", "lr", "bs"), above=0)
    smooth, last = table.numbers(("smooth loss", "loss"), above=0).T
    sizes, which = np.unique(X[:, :2], axis=0, return_inverse=True)
    which = which.ravel()
    large = X[:, 0] == X[:, 0].max()
    grids = [np.flatnonzero(which == k) for k in range(len(sizes))]
    upward = [k for k, grid in enumerate(grids) if large[grid[0]]]

    def regrets(picked: dict[int, int]) -> Array:
        return np.array([smooth[row] / smooth[grids[k]].min() - 1 for k, row in picked.items()]) * 100

    law = HyperparameterLaw().fit(X[~large], smooth[~large])
    noisy = HyperparameterLaw(form=law.form_).fit(X[~large], last[~large])
    up = {k: _pick(law, X, grids[k]) for k in upward}
    from_last = {k: _pick(noisy, X, grids[k]) for k in upward}
    out = {}
    for k in range(len(sizes)):
        others = which != k
        out[k] = _pick(HyperparameterLaw(form=law.form_, bootstraps=25).fit(X[others], smooth[others]), X, grids[k])
    formula = {k: _nearest(X, grid, *_published(*sizes[k])) for k, grid in enumerate(grids)}
    small = [k for k in range(len(sizes)) if k not in upward]
    carried_up = {k: _carried(X, smooth, grids, sizes, k, small) for k in upward}
    carried = {k: _carried(X, smooth, grids, sizes, k, [j for j in range(len(sizes)) if j != k]) for k in out}

    figures: list[Figure] = []
    for what, ours, rule, published in (
        (f"regret at N = {sizes[upward[0], 0]:.3g} from smaller N", up, carried_up, {k: formula[k] for k in upward}),
        ("regret at each (N, D) left out in turn", out, carried, formula),
    ):
        for name, take in (("mean", np.mean), ("largest", np.max)):
            figures.append(
                Figure(
                    f"{what}, {name}",
                    float(take(regrets(ours))),
                    published=float(take(regrets(published))),
                    trivial=float(take(regrets(rule))),
                    goal=0.05 if not figures else None,
                    unit="%",
                )
            )
    figures.append(
        Figure(
            "the same as the first, fitted to losses of the last batch",
            float(regrets(from_last).mean()),
            published=float(regrets({k: formula[k] for k in upward}).mean()),
            unit="%",
            note=f"noise that runs of one batch size share, as estimated: {noisy.shared_noise_:.2%}",
        )
    )
    everything = HyperparameterLaw(form=law.form_, bootstraps=25).fit(X, smooth)
    for exponent, value in (("lr_params", -0.713), ("lr_tokens", 0.307), ("bs_tokens", 0.571)):
        middle, half = everything.parameters_[exponent], 1.645 * float(everything.draws_[exponent].std())
        measure = f"exponent {exponent}, all (N, D)"
        low, high = middle - half, middle + half
        figures.append(Figure(measure, middle, published=value, low=low, high=high, better="equal"))

    rng = np.random.default_rng(0)
    forecasts = []
    for k in upward:
        predicted = law.predict(X[grids[k]])
        near = np.flatnonzero(predicted.mean < predicted.mean.min() * (1 + NEAR))
        chosen = int(predicted.mean.argmin())
        for i in [chosen, *rng.choice(np.setdiff1d(near, [chosen]), 2, replace=False)]:
            row = grids[k][i]
            forecasts.append(
                Forecast(
                    group=f"step-law {sizes[k, 0]:.3g} x {sizes[k, 1]:.3g}",
                    what=f"lr {X[row, 2]:.3g}, bs {X[row, 3]:g}",
                    predicted=float(predicted.mean[i]),
                    low=float(predicted.low[i]),
                    high=float(predicted.high[i]),
                    measured=float(smooth[row]),
                    extrapolation=float(law.extrapolation(X[[row]])[0]),
                )
            )
    return Evaluation("step-law", "Li et al. 2025, arXiv 2503.04715; grids with N up to 429M", figures, forecasts)


def _pick(law: HyperparameterLaw, X: Array, grid: Rows) -> int:
    return int(grid[law.predict(X[grid]).mean.argmin()])


def _published(N: float, D: float) -> tuple[float, float]:
    """Learning rate and batch size in sequences by the published formula."""
    return 1.79 * N**-0.713 * D**0.307, 0.58 * D**0.571 / SEQUENCE


def _nearest(X: Array, grid: Rows, lr: float, bs: float) -> int:
    return int(grid[((np.log(X[grid, 2:]) - np.log([lr, bs])) ** 2).sum(1).argmin()])


def _carried(X: Array, losses: Array, grids: list[Rows], sizes: Array, k: int, known: list[int]) -> int:
    """The trivial rule: the best run of the known (N, D) that is nearest, at the nearest grid point."""
    nearest = min(known, key=lambda j: float(np.abs(np.log(sizes[j] / sizes[k])).sum()))
    best = grids[nearest][losses[grids[nearest]].argmin()]
    return _nearest(X, grids[k], X[best, 2], X[best, 3])

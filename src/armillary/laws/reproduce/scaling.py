"""Scaling laws on published runs: the largest runs are held out and predicted from the smaller ones.

The usual methods are applied to the same runs: Chinchilla's form fitted by Huber's loss (Hoffmann et al. 2022;
``published`` in the figures), the same by least squares (in the note), and a rule without a floor, log loss linear in
log sizes (``trivial``). Errors are mean absolute relative errors in per cent.

Forecasts for coverage: from each set held out at most ``FORECASTS`` runs, evenly spaced in compute.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from armillary.laws.estimator import Array, ExtrapolationWarning
from armillary.laws.reproduce.evaluation import Evaluation, Figure, Forecast
from armillary.laws.scaling.forms import SCALING_FORMS
from armillary.laws.scaling.law import ScalingLaw
from armillary.laws.solver import fit_many
from armillary.laws.table import read_table

FORECASTS = 8
CORPORA = ("c4_en", "pile", "wikitext_103", "dolma_stack", "dolma_wiki", "dolma_reddit", "m2d2_s2orc", "ice")


@dataclass(frozen=True)
class HeldOut:
    """A set of held-out runs: its description and mask [n]. All others are fitted, or those in ``fitted``."""

    what: str
    out: NDArray[np.bool_]
    fitted: NDArray[np.bool_] | None = None


def chinchilla(folder: Path) -> Evaluation:
    """245 points of Hoffmann et al. 2022 without the 5 highest losses; parameters, and runs held out by N, D, compute.

    The main split: fitted below a thirteenth of the largest compute, tested on all runs above.
    """
    X, y = _read(folder, "chinchilla.csv", ("params", "tokens"), ("loss",))
    kept = y[:, 0].argsort()[:-5]
    X, y = X[kept], y[kept]
    fitted = ScalingLaw(form="chinchilla", bootstraps=50).fit(X, y[:, 0]).parameters_
    published = {"A": 482.0, "B": 2085.0, "E": 1.817, "alpha": 0.348, "beta": 0.366}
    figures = [
        Figure(f"{name} of all 240 runs", float(fitted[name]), value, better="equal", note="Besiroglu et al. 2024")
        for name, value in published.items()
    ]
    compute = X.prod(1)
    cuts = [
        HeldOut("compute, 13 times", compute >= compute.max() / 13),
        HeldOut("compute, 100 times", compute >= compute.max() / 100),
        HeldOut("largest tenth by N", X[:, 0] >= np.quantile(X[:, 0], 0.9)),
        HeldOut("largest tenth by D", X[:, 1] >= np.quantile(X[:, 1], 0.9)),
    ]
    return _evaluate("chinchilla", "Besiroglu et al. 2024, arXiv 2404.10102", X, y, cuts, figures, goals=(0.9,))


def ladder(folder: Path) -> Evaluation:
    """OLMo's ladder (Bhagia et al. 2024): 8 corpora; 1.3B from 190M to 760M, and other sets of largest runs."""
    X, y = _read(folder, "olmo_ladder.csv", ("params", "tokens"), tuple(f"loss_{corpus}" for corpus in CORPORA))
    ratio = X[:, 1] / X[:, 0]
    cuts = [
        HeldOut("1.3B from 190M to 760M", X[:, 0] > 1e9),
        HeldOut("760M and 1.3B from 190M and 370M", X[:, 0] > 5e8),
        HeldOut("10 times Chinchilla's tokens", ratio > 150),
        HeldOut("5 and 10 times Chinchilla's tokens", ratio > 80),
        HeldOut("1.3B at 5 and 10 times", (X[:, 0] > 1e9) & (ratio > 80), (X[:, 0] < 1e9) & (ratio < 80)),
        HeldOut(
            "the same from 190M and 370M, 59 times", (X[:, 0] > 1e9) & (ratio > 80), (X[:, 0] < 5e8) & (ratio < 80)
        ),
    ]
    return _evaluate("ladder", "Bhagia et al. 2024, arXiv 2412.04403", X, y, cuts, targets=CORPORA)


def gemstones(folder: Path) -> Evaluation:
    """Gemstones below 1.2B (McLeish et al. 2025): width and depth vary; every 10B tokens of each run is a row."""
    features = ("params", "tokens", "width", "depth")
    X, y = _read(folder, "gemstones_small.csv", features, ("loss",))
    compute = X[:, 0] * X[:, 1]
    cuts = [
        HeldOut("three runs near 1B", X[:, 0] > 9e8),
        HeldOut("from 480M up", X[:, 0] > 4.7e8),
        HeldOut("from 80B tokens on", X[:, 1] > 7.5e10),
        HeldOut("largest fifth by compute", compute >= np.quantile(compute, 0.8)),
    ]
    return _evaluate("gemstones", "McLeish et al. 2025, arXiv 2502.06857", X, y, cuts, features=features)


def isoflop(folder: Path) -> Evaluation:
    """IsoFLOP grids on RefinedWeb under three protocols (Porian et al. 2024); the largest budgets held out."""
    table = read_table(folder / "scaling" / "isoflop_refinedweb.csv")
    protocols = np.array(table.text("file"))
    whole = np.array(
        [bool(tokens and loss) for tokens, loss in zip(table.text("tokens"), table.text("loss"), strict=True)]
    )
    parts = []
    for protocol in dict.fromkeys(protocols):
        rows = np.flatnonzero((protocols == protocol) & whole)
        values = table.taking(rows.tolist()).numbers(("n", "tokens", "loss", "flops"), above=0)
        X, y, budgets = values[:, :2], values[:, 2:3], np.unique(values[:, 3])
        label = {"summary_df": "all parameters", "summary_df_att": "with attention"}.get(protocol, "without the head")
        cuts = [
            HeldOut(f"{label}: largest budget", values[:, 3] > 0.99 * budgets[-1]),
            HeldOut(f"{label}: four largest budgets", values[:, 3] > 0.99 * budgets[-4]),
        ]
        parts.append(_evaluate("isoflop", "Porian et al. 2024, arXiv 2406.19146", X, y, cuts))
    return Evaluation(
        "isoflop",
        parts[0].source,
        [figure for part in parts for figure in part.figures],
        [forecast for part in parts for forecast in part.forecasts],
    )


def data_constrained(folder: Path) -> Evaluation:
    """C4 loss with repeated data, below 2B (Muennighoff et al. 2023); held out by N, D and compute."""
    features = ("params", "tokens", "unique_tokens")
    X, y = _read(folder, "data_constrained_small.csv", features, ("val_loss",))
    compute = X[:, 0] * X[:, 1]
    law = ScalingLaw(features=features, bootstraps=50).fit(X, y[:, 0])
    misses, refit = (
        100 * np.abs(fitted.predict(X).mean / y[:, 0] - 1)
        for fitted in (law, ScalingLaw(form="data-constrained", bootstraps=2).fit(X, y[:, 0]))
    )
    alone = f"the published form alone: mean {refit.mean():.1f}, median {np.median(refit):.1f}"
    note = f"median {np.median(misses):.1f}; {alone}"
    figures = [Figure("error of a fit to all runs", float(misses.mean()), 7.0, unit="%", note=note)]
    cuts = [
        HeldOut("1.5B from up to 1.1B", X[:, 0] > 1.2e9),
        HeldOut("from 1B up", X[:, 0] > 1e9),
        HeldOut("from 100B tokens on", X[:, 1] >= 1e11),
        HeldOut("largest seventh by compute", compute >= np.quantile(compute, 0.85)),
    ]
    source = "Muennighoff et al. 2023, arXiv 2305.16264"
    return _evaluate("data-constrained", source, X, y, cuts, figures, features=features)


def _read(folder: Path, name: str, features: Sequence[str], targets: Sequence[str]) -> tuple[Array, Array]:
    table = read_table(folder / "scaling" / name)
    return table.numbers(features, above=0), table.numbers(targets, above=0)


def _evaluate(
    name: str,
    source: str,
    X: Array,
    y: Array,
    cuts: Sequence[HeldOut],
    figures: Sequence[Figure] = (),
    *,
    features: Sequence[str] = ("params", "tokens"),
    targets: Sequence[str] = ("loss",),
    goals: Sequence[float] = (),
) -> Evaluation:
    found, forecasts = list(figures), []
    for i, cut in enumerate(cuts):
        seen = ~cut.out if cut.fitted is None else cut.fitted
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExtrapolationWarning)
            law = ScalingLaw(features=features).fit(X[seen], y[seen] if y.shape[1] > 1 else y[seen, 0])
            prediction = law.predict(X[cut.out])
        mean, low, high = (np.reshape(part, (-1, y.shape[1])) for part in prediction)
        measured, far = y[cut.out], law.extrapolation(X[cut.out])
        errors = {
            label: 100 * float(np.abs(values / measured - 1).mean())
            for label, values in (
                ("ours", mean),
                ("huber", _plain(X[seen, :2], y[seen], X[cut.out, :2], 1e-3)),
                ("least squares", _plain(X[seen, :2], y[seen], X[cut.out, :2], np.inf)),
                ("straight", _straight(X[seen], y[seen], X[cut.out])),
            )
        }
        inside, width = np.mean((low <= measured) & (measured <= high)), 100 * np.mean((high - low) / measured)
        found.append(
            Figure(
                f"error, held out: {cut.what}",
                errors["ours"],
                errors["huber"],
                errors["straight"],
                goal=goals[i] if i < len(goals) else None,
                unit="%",
                note=f"least squares {errors['least squares']:.2f}; {inside:.0%} inside, intervals {width:.1f} % wide",
            )
        )
        every = np.argsort(X[cut.out, :2].prod(1), kind="stable")
        cells = [(run, column) for run in every for column in range(y.shape[1])]
        chosen = np.unique(np.linspace(0, len(cells) - 1, FORECASTS).round().astype(int))
        for run, column in (cells[k] for k in chosen):
            size, tokens = X[cut.out][run, :2]
            forecasts.append(
                Forecast(
                    group=f"{name}: {cut.what}",
                    what=f"{targets[column]} of {size:.3g} parameters on {tokens:.3g} tokens",
                    predicted=float(mean[run, column]),
                    low=float(low[run, column]),
                    high=float(high[run, column]),
                    measured=float(measured[run, column]),
                    extrapolation=float(far[run]),
                )
            )
    return Evaluation(name, source, found, forecasts)


def _plain(X: Array, y: Array, at: Array, huber: float) -> Array:
    """Chinchilla's form fitted without priors to log losses [n, t] from many starts; losses [m, t] at ``at``."""
    form, points, logs = SCALING_FORMS["chinchilla"], np.log(X), np.log(y)
    centre = points.mean(0)
    grid = np.array([(e, a, b) for e in (0.2, 0.5, 0.8) for a in (0.1, 0.3, 0.6) for b in (0.1, 0.3, 0.6)])
    rest = np.log((1 - grid[:, 0]) / 2)
    starts = np.stack([np.log(grid[:, 0]), rest, rest, np.log(grid[:, 1]), np.log(grid[:, 2])], axis=1)
    predicted = []
    for z in logs.T:
        start = starts + np.array([z.min(), np.median(z), np.median(z), 0, 0])

        def residuals(theta: Array, which: NDArray[np.intp], z: Array = z) -> tuple[Array, Array]:
            law, jacobian = form.evaluate(theta, points, centre)
            return (law - z) / 1e-3, jacobian / 1e-3

        weights, free = np.ones((len(start), len(z))), np.full(5, 1e3)
        fits = fit_many(residuals, start, weights, start, free, huber=huber / 1e-3, iterations=500)
        best = fits.parameters[fits.objective.argmin()][None]
        predicted.append(np.exp(form.evaluate(best, np.log(at), centre)[0][0]))
    return np.stack(predicted, axis=1)


def _straight(X: Array, y: Array, at: Array) -> Array:
    """Log loss linear in log sizes, by least squares; losses [m, t] at ``at``."""
    design, new = (np.column_stack([np.ones(len(x)), np.log(x)]) for x in (X, at))
    return np.asarray(np.exp(new @ np.linalg.lstsq(design, np.log(y), rcond=None)[0]))

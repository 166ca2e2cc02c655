"""RegMix (Liu et al. 2024, arXiv 2407.01492): predicts losses on 13 domains for 256 unseen mixtures of 17 domains.

Laws are fitted to subsets of the 512 training runs at 1M parameters, alone or with a few of the 256 test runs at 60M,
and judged on unseen test runs. The measures are the rank correlation for each validation domain and for the mean loss
over the domains, and the regret: the loss of the mixture predicted to be best minus the lowest loss. The comparisons
are the published method (LightGBM on the runs at 1M, whose ranks hold for any size, without early stopping), linear
regression, and rules without any run. These rank a domain's loss by its own weight, and the mean loss by the sum of the
square roots of the 13 weights. A law that does not beat them has no skill.

Not everything is held out: the prior movement of a law with only one size (``closed_forms.LEVEL``, ``CONTRACTION`` and
their widths) was measured on these 60M runs. So the mean losses at 60M from laws of 1M runs are no evidence of skill.
Their ranks within a domain, and all laws fitted to 60M runs, hardly depend on this prior. Without 60M runs the level
there is unknown, so these laws give no interval. The 64 most even mixtures were also chosen after seeing the results.

Mixtures tested at larger scales are more even than most here. So the mean loss is also ranked among the 64 most even
test mixtures (by entropy), where the losses differ least.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from armillary.laws.estimator import Array, ExtrapolationWarning, Prediction
from armillary.laws.mixture.forms import BoostedTrees, Form, Linear
from armillary.laws.mixture.law import MixtureLaw
from armillary.laws.reproduce.evaluation import Evaluation, Figure, Forecast
from armillary.laws.table import read_table

SMALL, LARGE = 1e6, 6e7

# Tokens of each run, at either size (section 4 of the paper).
TOKENS = 1e9
EVEN = 64

# Numbers of runs at 1M and at 60M for a fit.
TRAINING = ((64, 0), (128, 0), (512, 0), (64, 16), (96, 32))
# Training set and size of the recorded forecasts: one random unseen run for each validation domain.
_FORECAST = {(64, 0, SMALL), (128, 0, SMALL), (64, 16, LARGE), (96, 32, LARGE)}

MEASURES = ("per domain", "mean loss", f"mean loss, {EVEN} most even", "top-1 regret")


@dataclass(frozen=True)
class _Runs:
    """Mixtures [n, 17] and losses [n, 13]."""

    mixtures: Array
    losses: Array


def regmix(folder: Path, subsets: int = 3) -> Evaluation:
    """Rank correlations and regret, in means over training subsets with the range of nine tenths of them.

    Args:
        folder: holds mixture/regmix/.
        subsets: training sets of each kind (10 in the long form; of all 512 runs there is one).

    Raises:
        UsageError: a table is missing or broken.
    """
    train, names, own = _read(folder, "train", "1m")
    tests = {SMALL: _read(folder, "test", "1m")[0], LARGE: _read(folder, "test", "60m")[0]}
    figures: list[Figure] = []
    forecasts: list[Forecast] = []
    for few, more in TRAINING:
        ours: dict[tuple[float, str], list[float]] = {}
        published: dict[tuple[float, str], list[float]] = {}
        linear: dict[tuple[float, str], list[float]] = {}
        trivial: dict[tuple[float, str], list[float]] = {}
        inside: dict[float, list[float]] = {}
        for subset in range(1 if few == len(train.losses) else subsets):
            rng = np.random.default_rng(subset)
            rows = rng.permutation(len(train.losses))[:few]
            seen, unseen = np.split(rng.permutation(len(tests[LARGE].losses)), [more])
            X = np.concatenate([train.mixtures[rows], tests[LARGE].mixtures[seen]])
            Y = np.concatenate([train.losses[rows], tests[LARGE].losses[seen]])
            sizes = np.repeat([SMALL, LARGE], [few, more])
            law = MixtureLaw(bootstraps=50, seed=subset).fit(X, Y, sizes, np.full(len(X), TOKENS))
            plain: dict[str, Form] = {"lightgbm": BoostedTrees(), "linear": Linear()}
            for form in plain.values():
                _fit_plain(form, _Runs(train.mixtures[rows], train.losses[rows]))
            for size, all_runs in tests.items():
                test = _Runs(all_runs.mixtures[unseen], all_runs.losses[unseen])
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExtrapolationWarning)
                    prediction = law.predict(test.mixtures, sizes=size, tokens=TOKENS)
                weights = test.mixtures[:, own]
                rule = -np.sqrt(weights)
                for found, losses in (
                    (ours, prediction.mean),
                    (published, np.exp(plain["lightgbm"].mean(test.mixtures, 0.0))),
                    (linear, np.exp(plain["linear"].mean(test.mixtures, 0.0))),
                    (trivial, rule),
                ):
                    for measure, value in zip(MEASURES, _scores(losses, test), strict=True):
                        found.setdefault((size, measure), []).append(value)
                covers = (prediction.low <= test.losses) & (test.losses <= prediction.high)
                if law.level_known(size, TOKENS).all():
                    inside.setdefault(size, []).append(float(covers.mean()))
                if subset == 0 and (few, more, size) in _FORECAST:
                    forecasts += _forecasts(f"mixture {few}+{more}", names, prediction, test, size / law.sizes_[-1])
        for (size, measure), values in ours.items():
            regret = measure == "top-1 regret"
            unit = "nats" if regret else "rank correlation"
            other = f"linear {np.mean(linear[size, measure]):.3f}"
            low, high = np.quantile(values, [0.05, 0.95]).tolist()
            figures.append(
                Figure(
                    f"{_named(few, more)} to {size / 1e6:.0f}M: {measure}",
                    float(np.mean(values)),
                    float(np.mean(published[size, measure])),
                    float(np.mean(trivial[size, measure])),
                    low,
                    high,
                    better="lower" if regret else "higher",
                    unit=unit,
                    note=f"peer: LightGBM, measured here; {other}"
                    + ("; movement not held out" if size == LARGE and not more else ""),
                )
            )
        for size, covered in inside.items():
            figures.append(
                Figure(
                    f"{_named(few, more)} to {size / 1e6:.0f}M: share of 90 % intervals that cover",
                    float(np.mean(covered)),
                    goal=0.9,
                    better="equal",
                )
            )
    return Evaluation("regmix", "Liu et al. 2024, arXiv 2407.01492", figures, forecasts)


def _forecasts(group: str, names: list[str], prediction: Prediction, test: _Runs, factor: float) -> list[Forecast]:
    rows = np.random.default_rng(0).permutation(len(test.losses))
    return [
        Forecast(
            group,
            f"{name}, unseen mixture {row}",
            float(prediction.mean[row, v]),
            float(prediction.low[row, v]),
            float(prediction.high[row, v]),
            float(test.losses[row, v]),
            max(factor, 1.0),
        )
        for v, (name, row) in enumerate(zip(names, rows, strict=False))
    ]


def _named(few: int, more: int) -> str:
    return f"{few} runs at 1M" + (f" + {more} at 60M" if more else "")


def _fit_plain(form: Form, runs: _Runs) -> None:
    """Fit a form alone, without a search for its uncertainty."""
    s, logs = np.zeros(len(runs.losses)), np.log(runs.losses)
    form.fit(runs.mixtures, s, logs, np.zeros((2, *logs.shape)), np.random.default_rng(0))


def _scores(predicted: Array, test: _Runs) -> tuple[float, float, float, float]:
    """The four measures, for predictions [m, 13]."""
    domains = [stats.spearmanr(*pair).statistic for pair in zip(predicted.T, test.losses.T, strict=True)]
    ranking, measured = predicted.mean(1), test.losses.mean(1)
    entropy = -(test.mixtures * np.log(test.mixtures + 1e-12)).sum(1)
    even = entropy.argsort()[-EVEN:]
    return (
        float(np.mean(domains)),
        float(stats.spearmanr(ranking, measured).statistic),
        float(stats.spearmanr(ranking[even], measured[even]).statistic),
        float(measured[ranking.argmin()] - measured.min()),
    )


def _read(folder: Path, part: str, size: str) -> tuple[_Runs, list[str], list[int]]:
    """Runs, names of the validation domains, and for each the column of the training domain of its name."""
    where = folder / "mixture" / "regmix"
    inputs, outputs = (read_table(where / f"{part}_{what}_{size}.csv") for what in ("mixture", "pile_loss"))
    domains, targets = inputs.columns[1:], outputs.columns[1:]
    mixtures = inputs.numbers(domains, least=0)
    names = [name.removeprefix("metric/").removesuffix("_val_loss") for name in targets]
    own = [domains.index(f"train_{name}") for name in names]
    return _Runs(mixtures / mixtures.sum(1, keepdims=True), outputs.numbers(targets, above=0)), names, own

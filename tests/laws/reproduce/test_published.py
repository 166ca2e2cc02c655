"""The laws on measurements of published work, which are not part of this repository.

``ARMILLARY_PUBLISHED`` names the folder (default ``../shared/published`` beside the repository). Run with ``-s`` to
see the figures.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from armillary.laws import MixtureLaw, ScalingLaw
from armillary.laws.reproduce import scaling as reproduce

ROOT = Path(os.environ.get("ARMILLARY_PUBLISHED", Path(__file__).parents[4] / "shared" / "published"))


def table(name, columns=None):
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{path} is missing: set ARMILLARY_PUBLISHED to the folder of published measurements")
    with open(path) as file:
        header = file.readline().strip().split(",")
        used = range(1, len(header)) if columns is None else [header.index(column) for column in columns]
        return np.loadtxt(file, delimiter=",", usecols=used)


def test_chinchilla_points_give_the_published_law():
    """Besiroglu et al. 2024 (arXiv 2404.10102): 482, 2085, 1.817, 0.348, 0.366, with standard errors 124, 1293, ..."""
    data = table("scaling/chinchilla.csv", ("params", "tokens", "loss"))
    data = data[data[:, 2].argsort()][:-5]
    law = ScalingLaw(form="chinchilla", bootstraps=50).fit(data[:, :2], data[:, 2])
    print("\nchinchilla:", {name: round(value, 4) for name, value in law.parameters_.items()})
    expected = {"A": (478, 15), "B": (2140, 60), "E": (1.817, 0.003), "alpha": (0.347, 0.002), "beta": (0.367, 0.002)}
    for name, (value, tolerance) in expected.items():
        assert law.parameters_[name] == pytest.approx(value, abs=tolerance)


def test_chinchilla_points_thirteen_times_beyond_are_foretold_better_than_by_the_published_fit():
    if not (ROOT / "scaling" / "chinchilla.csv").exists():
        pytest.skip(f"{ROOT}/scaling/chinchilla.csv is missing: set ARMILLARY_PUBLISHED")
    found = reproduce.chinchilla(ROOT)
    figures = {figure.measure: figure for figure in found.figures}
    ours = figures["error, held out: compute, 13 times"]
    print(f"\nchinchilla 13 times beyond: {ours.ours:.2f} % (Huber {ours.published:.2f} %, {ours.note})")
    assert ours.ours < 0.9 < ours.published < ours.trivial
    assert len(found.forecasts) >= 24
    assert np.mean([forecast.inside for forecast in found.forecasts]) >= 0.65


def test_largest_size_of_a_ladder_is_foretold():
    """OLMo ladder (arXiv 2412.04403): 1.3B from 190M to 760M, on every corpus of the file."""
    corpora = ("c4_en", "pile", "wikitext_103", "dolma_stack", "dolma_wiki", "dolma_reddit", "m2d2_s2orc", "ice")
    data = table("scaling/olmo_ladder.csv", ("params", "tokens", *(f"loss_{corpus}" for corpus in corpora)))
    large = data[:, 0] > 1e9
    errors, inside = [], []
    for corpus, losses in zip(corpora, data[:, 2:].T, strict=True):
        law = ScalingLaw(bootstraps=100).fit(data[~large, :2], losses[~large])
        predicted, measured = law.predict(data[large, :2]), losses[large]
        errors.append(np.abs(predicted.mean / measured - 1).mean())
        inside.append(((predicted.low <= measured) & (measured <= predicted.high)).mean())
        width = ((predicted.high - predicted.low) / measured).mean()
        print(f"\nladder {corpus}: error {errors[-1]:.2%}, interval {width:.2%} wide, {inside[-1]:.0%} inside", end="")
    assert np.mean(errors) < 0.009
    assert np.mean(inside) >= 0.75


def test_losses_that_rise_again_with_repetition_are_fitted():
    """Repeated data (arXiv 2305.16264): up to thousands of epochs. The published form, whose loss never rises, reaches
    3.7 % refitted (median 2.3 %)."""
    data = table("scaling/data_constrained_small.csv", ("params", "tokens", "unique_tokens", "val_loss"))
    X, y = data[:, :3], data[:, 3]
    law = ScalingLaw(features=("params", "tokens", "unique_tokens"), bootstraps=20).fit(X, y)
    errors = np.abs(law.predict(X).mean / y - 1)
    print(f"\nrepeated data: error {errors.mean():.2%}, median {np.median(errors):.2%}, {law.weights_}")
    assert errors.mean() < 0.023
    assert np.median(errors) < 0.015
    often = law.predict([[4e8, 3e9, 1e8], [4e8, 2e10, 1e8]]).mean
    assert often[1] > 1.2 * often[0]


def test_mixture_law_ranks_unseen_mixtures_better_than_linear_regression():
    """RegMix (arXiv 2407.01492): 64 of the 512 runs at 1M parameters; judged on 256 other runs at 1M and at 60M."""
    X, Y = table("mixture/regmix/train_mixture_1m.csv"), table("mixture/regmix/train_pile_loss_1m.csv")
    rows = np.random.default_rng(0).permutation(len(X))[:64]
    X, Y = X[rows] / X[rows].sum(1, keepdims=True), Y[rows]
    law = MixtureLaw(bootstraps=30).fit(X, Y)
    linear = MixtureLaw(models=("linear",), bootstraps=30).fit(X, Y)
    assert law.held_out_.spearman.mean() > 0.95
    assert linear.held_out_.spearman.mean() < 0.9
    for size in ("1m", "60m"):
        new = table(f"mixture/regmix/test_mixture_{size}.csv")
        new, measured = new / new.sum(1, keepdims=True), table(f"mixture/regmix/test_pile_loss_{size}.csv")
        predicted = law.predict(new)
        ranks = [stats.spearmanr(predicted.mean[:, v], measured[:, v]).statistic for v in range(Y.shape[1])]
        straight = linear.predict(new).mean
        plain = [stats.spearmanr(straight[:, v], measured[:, v]).statistic for v in range(Y.shape[1])]
        print(f"\nregmix {size}: rank correlation {np.mean(ranks):.3f}, linear {np.mean(plain):.3f}")
        assert np.mean(ranks) > 0.96 > np.mean(plain)
        if size == "1m":
            inside = ((predicted.low <= measured) & (measured <= predicted.high)).mean()
            print(f"regmix 1m: {inside:.0%} of 90 % intervals cover")
            assert 0.82 <= inside <= 0.98

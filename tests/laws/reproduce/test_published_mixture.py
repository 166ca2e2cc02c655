"""Mixture laws on measurements of published work (RegMix), which are not part of this repository.

``ARMILLARY_PUBLISHED`` names the folder (default ``../shared/published`` beside the repository).
"""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from armillary.laws import MixtureLaw
from armillary.laws.table import read_table

ROOT = Path(os.environ.get("ARMILLARY_PUBLISHED", Path(__file__).parents[4] / "shared" / "published"))


def runs(part, size):
    """Mixtures [n, 17] and losses [n, 13] on The Pile."""
    tables = []
    for what in ("mixture", "pile_loss"):
        path = ROOT / "mixture" / "regmix" / f"{part}_{what}_{size}.csv"
        if not path.exists():
            pytest.skip(f"{path} is missing: set ARMILLARY_PUBLISHED to the folder of published measurements")
        table = read_table(path)
        tables.append(table.numbers(table.columns[1:]))
    return tables


def ranks(predicted, measured):
    """Mean rank correlation over the validation domains, and that of the mean loss."""
    each = [stats.spearmanr(*pair).statistic for pair in zip(predicted.T, measured.T, strict=True)]
    return np.mean(each), stats.spearmanr(predicted.mean(1), measured.mean(1)).statistic


@pytest.fixture(scope="module")
def small():
    X, Y = runs("train", "1m")
    rows = np.random.default_rng(0).permutation(len(X))[:64]
    return X[rows], Y[rows]


@pytest.fixture(scope="module")
def law_of_one_size(small):
    return MixtureLaw(bootstraps=30).fit(*small, np.full(64, 1e6))


def test_64_runs_rank_unseen_mixtures_better_than_linear_regression_and_own_weights(small, law_of_one_size):
    linear = MixtureLaw(models=("linear",), bootstraps=30).fit(*small)
    assert law_of_one_size.held_out_.spearman.mean() > 0.95
    assert linear.held_out_.spearman.mean() < 0.9
    X, measured = runs("test", "1m")
    predicted = law_of_one_size.predict(X)
    assert ranks(predicted.mean, measured)[0] > 0.98
    assert ranks(linear.predict(X).mean, measured)[0] < 0.9
    inside = ((predicted.low <= measured) & (measured <= predicted.high)).mean()
    assert 0.85 <= inside <= 0.97


def test_asked_for_a_larger_size_the_law_ranks_mean_losses_better_than_at_its_own(law_of_one_size):
    """Domains close up with size: a mean of losses at 1M is ruled by the few that vary most there."""
    X, measured = runs("test", "60m")
    at_60m, at_1m = law_of_one_size.predict(X, sizes=6e7).mean, law_of_one_size.predict(X).mean
    assert ranks(at_60m, measured)[1] > ranks(at_1m, measured)[1] + 0.003
    assert ranks(at_60m, measured)[0] > 0.97


def test_16_runs_at_60m_beside_64_at_1m_foretell_the_others(small):
    X, Y = runs("test", "60m")
    seen, unseen = np.split(np.random.default_rng(0).permutation(len(X)), [16])
    sizes = np.repeat([1e6, 6e7], [64, 16])
    law = MixtureLaw(bootstraps=30).fit(np.concatenate([small[0], X[seen]]), np.concatenate([small[1], Y[seen]]), sizes)
    predicted, measured = law.predict(X[unseen]), Y[unseen]
    each, mean = ranks(predicted.mean, measured)
    assert each > 0.975
    assert mean > 0.965
    assert np.abs(predicted.mean / measured - 1).mean() < 0.03
    assert 0.85 <= ((predicted.low <= measured) & (measured <= predicted.high)).mean() <= 0.97

"""Decisions from scaling laws: which architecture, and which run next."""

import numpy as np
import pytest

from armillary.laws import ScalingLaw, compare_families, next_runs
from armillary.recipe import UsageError

GRID = np.array([(n, d) for n in np.geomspace(1e7, 3e8, 4) for d in np.geomspace(1e9, 3e10, 4)])
TARGET = (2e9, 1e11)


def loss(points, gain=1.0):
    """A law that needs ``gain`` times less compute (N and D each by its root) than with ``gain`` 1."""
    scaled = points * np.sqrt(gain)
    return 1.7 + 400 / scaled[:, 0] ** 0.35 + 1500 / scaled[:, 1] ** 0.37


def noisy(values, rng):
    return values * np.exp(0.002 * rng.standard_normal(len(values)))


@pytest.mark.parametrize("gain", [1.0, pytest.param(2.0, marks=pytest.mark.slow)])
def test_compute_multiplier_covers_the_true_one(gain):
    inside, better = [], []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        families = {"dense": (GRID, noisy(loss(GRID), rng)), "new": (GRID, noisy(loss(GRID, gain), rng))}
        found = compare_families(families, TARGET, bootstraps=60, seed=seed)
        versus = found.versus[0]
        assert (versus.family, versus.reference, found.at) == ("new", "dense", pytest.approx(TARGET))
        assert found.loss["dense"].low < found.loss["dense"].mean < found.loss["dense"].high
        inside.append(versus.multiplier.low <= gain <= versus.multiplier.high)
        better.append(versus.better)
    assert np.mean(inside) >= 0.8
    if gain == 1.0:
        assert 0.25 < np.mean(better) < 0.75
    else:
        assert np.mean(better) > 0.9


def test_compute_alone_is_split_as_in_the_runs_and_the_order_only_turns_the_answer():
    rng = np.random.default_rng(0)
    families = {"a": (GRID, noisy(loss(GRID), rng)), "b": (GRID, noisy(loss(GRID, 3.0), rng))}
    found = compare_families(families, 1e20)
    assert found.at[0] * found.at[1] == pytest.approx(1e20)
    assert found.at[1] / found.at[0] == pytest.approx(np.median(GRID[:, 1] / GRID[:, 0]))
    turned = compare_families(families, 1e20, reference="b").versus[0]
    assert turned.better == pytest.approx(1 - found.versus[0].better, abs=0.05)
    assert turned.multiplier.mean == pytest.approx(1 / found.versus[0].multiplier.mean, rel=0.25)


@pytest.mark.parametrize(
    ("families", "at", "message"),
    [
        ({"a": (GRID, loss(GRID))}, TARGET, "at least two families"),
        ({"a": (GRID, loss(GRID)), "b": (GRID, loss(GRID)[:-1])}, TARGET, "family 'b' has 16 rows in X and 15"),
        ({"a": (GRID, loss(GRID)), "b": (GRID, -loss(GRID))}, TARGET, "row 0, column 0 of y of family 'b'"),
        (
            {"a": (GRID[:4], loss(GRID)[:4]), "b": (GRID[:4], loss(GRID)[:4])},
            TARGET,
            "no family has runs of two sizes",
        ),
        ({"a": (GRID, loss(GRID)), "b": (GRID[:1], loss(GRID)[:1])}, TARGET, "family 'b'"),
        (
            {"a": (GRID, loss(GRID)), "b": (GRID[[0, 0]], loss(GRID)[[0, 0]])},
            TARGET,
            "family 'b' has runs of one compute",
        ),
        ({name: (GRID[[0, 5]], loss(GRID)[[0, 5]]) for name in "ab"}, TARGET, "4 runs in all; give at least 6"),
        ({"a": (GRID, loss(GRID)), "b": (GRID, loss(GRID))}, (1e9, 1e10, 1), "at has 3 numbers"),
    ],
)
def test_families_that_cannot_be_compared_are_refused(families, at, message):
    with pytest.raises(UsageError, match=message):
        compare_families(families, at)


def recipes(seed):
    """Five recipes at three sizes and, last, at a target of seven times the compute; all deviate alike at each size."""
    rng = np.random.default_rng(seed)
    sizes = np.array([130e6, 300e6, 520e6, 1.4e9])
    points = np.stack([sizes, 20 * sizes], axis=1)
    alpha, beta, floor = rng.uniform(0.25, 0.4), rng.uniform(0.25, 0.4), rng.uniform(1.6, 2.0)
    together = 0.003 * rng.standard_normal(len(sizes))
    losses = {}
    for name in "abcde":
        own = np.exp(0.01 * rng.standard_normal(3) * [1, 3, 3])
        law = floor * own[0] + 0.5 * own[1] * (sizes / 3e8) ** -alpha + 0.6 * own[2] * (points[:, 1] / 6e9) ** -beta
        losses[name] = law * np.exp(together + 0.0015 * rng.standard_normal(len(sizes)))
    return points, losses


@pytest.mark.parametrize("worlds", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_three_runs_of_each_of_five_recipes_suffice(worlds):
    levels, gaps, scores, right = [], [], [], []
    for seed in range(worlds):
        points, losses = recipes(seed)
        families = {name: (points[:-1], values[:-1]) for name, values in losses.items()}
        found = compare_families(families, points[-1], bootstraps=100, seed=seed)
        for name, said in found.loss.items():
            levels.append(said.low <= losses[name][-1] <= said.high)
            assert said.high / said.low < 1.1
        for versus in found.versus:
            gap = losses[versus.family][-1] / losses[versus.reference][-1] - 1
            gaps.append(versus.difference.low <= gap <= versus.difference.high)
            scores.append((versus.better - (gap < 0)) ** 2)
            right.append((versus.better > 0.5) == (gap < 0))
    assert np.mean(levels) >= 0.8 and np.mean(gaps) >= 0.8
    assert np.mean(scores) < 0.14  # Brier's score; 0.25 is a coin
    assert np.mean(right) > 0.8


def test_the_run_that_is_said_to_narrow_most_does():
    """Expected widths against those of laws refitted with the run."""
    rng = np.random.default_rng(1)
    y = noisy(loss(GRID), rng)
    law = ScalingLaw(form="chinchilla", bootstraps=100).fit(GRID, y, noise=0.002)
    candidates = np.array([[1e9, 6e10], [3e8, 1e9], [1e8, 3e10]])
    found = next_runs(law, TARGET, candidates)
    assert found[0].features == pytest.approx({"params": 1e9, "tokens": 6e10})
    assert found[0].flops == pytest.approx(6 * 1e9 * 6e10)
    assert found[0].width_after < 0.8 * found[0].width_before

    def width(law):
        said = law.predict([TARGET])
        return float(((said.high - said.low) / said.mean)[0])

    refitted = []
    for run in found:
        point = np.array([list(run.features.values())])
        again = ScalingLaw(form="chinchilla", bootstraps=100)
        refitted.append(width(again.fit(np.vstack([GRID, point]), np.append(y, loss(point)), noise=0.002)))
    assert refitted[0] == min(refitted)
    assert found[0].width_before == pytest.approx(width(law), rel=0.35)


def test_without_candidates_a_grid_within_the_budget_is_tried():
    law = ScalingLaw(form="chinchilla", bootstraps=20).fit(GRID, loss(GRID), noise=0.002)
    found = next_runs(law, [TARGET], budget_flops=1e20)
    assert max(run.flops for run in found) <= 1e20
    widths = [run.width_after for run in found]
    assert widths == sorted(widths)
    assert all(run.width_after <= run.width_before * (1 + 1e-9) for run in found)
    with pytest.raises(UsageError, match="no candidate costs at most"):
        next_runs(law, TARGET, budget_flops=1.0)
    with pytest.raises(UsageError, match="needs candidates or budget_flops"):
        next_runs(law, TARGET)
    with pytest.raises(UsageError, match=r"row 0, column 1 .* of target"):
        next_runs(law, [1e9, -1], budget_flops=1e20)

"""Learning rate and batch size: finds the optimum, covers, bears diverged runs, says what it does not know."""

import inspect
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from armillary.laws import ExtrapolationError, HyperparameterLaw
from armillary.laws.hyperparameters import basin
from armillary.recipe import UsageError

CENTRE = np.log([3e7, 1e9, 2e-3, 64.0])
PAIRS = [(1e7, 5e8), (1e7, 2e9), (4e7, 5e8), (4e7, 2e9)]
RATES, BATCHES = 2e-3 * 2.0 ** np.arange(-3, 4), 64 * 2.0 ** np.arange(-2, 3)


def grid(pairs, rates=RATES, batches=BATCHES):
    return np.array([(n, d, lr, bs) for n, d in pairs for lr in rates for bs in batches])


class Truth:
    """A law drawn at random: not of the fitted form (a batch size has its own kind of wall), scattered over (N, D)."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.alpha, self.beta = rng.uniform(0.25, 0.5, 2)
        self.lr = rng.uniform([-0.8, -0.2], [-0.1, 0.35])
        self.bs = rng.uniform([-0.15, 0.3], [0.15, 0.65])
        self.steep = np.exp(rng.normal(np.log([0.006, 0.005, 0.005]), 0.4))
        self.skew = rng.uniform(0.3, 1.2)
        self.seed = seed

    def optimum(self, N, D, scatter=0.08):
        size = np.log([N, D]) - CENTRE[:2]
        place = scatter * np.random.default_rng((self.seed, int(N), int(D))).standard_normal(2)
        return np.exp(CENTRE[2:] + np.array([self.lr @ size, self.bs @ size]) + place)

    def losses(self, X, noise=0.002, seed=0):
        best = np.array([self.optimum(n, d) for n, d in X[:, :2]])
        (u, v), c = np.log(X[:, 2:] / best).T, self.skew
        size = np.log(X[:, :2]) - CENTRE[:2]
        height = self.steep @ [2 * (np.exp(c * u) - 1 - c * u) / c**2, v * v * np.exp(0.15 * v), (u - 0.8 * v) ** 2]
        floor = 1.7 + 0.8 * np.exp(-self.alpha * size[:, 0]) + 0.8 * np.exp(-self.beta * size[:, 1])
        return floor * np.exp(np.minimum(height, 1.2) + noise * np.random.default_rng(seed).standard_normal(len(X)))

    def regret(self, law, N, D):
        """Of the run that the law takes for best on a grid, without noise, as a share of the loss."""
        new = grid([(N, D)], 2e-3 * 2.0 ** np.arange(-4, 5), 64 * 2.0 ** np.arange(-3, 5))
        clean = self.losses(new, noise=0.0)
        return clean[law.predict(new).mean.argmin()] / clean.min() - 1


def test_recovers_exponents_optimum_and_flatness_from_full_grids():
    truth = Truth(3)
    X = grid([(n, d) for n in (1e7, 2e7, 4e7, 8e7) for d in (5e8, 4e9)])
    law = HyperparameterLaw(bootstraps=40).fit(X, truth.losses(X))
    assert law.form_ == "basin"
    for name, value in zip(("lr_params", "lr_tokens", "bs_params", "bs_tokens"), [*truth.lr, *truth.bs], strict=True):
        assert abs(law.parameters_[name] - value) < max(3 * law.draws_[name].std(), 0.02)
    best, true = law.optimum(1.6e8, 8e9), truth.optimum(1.6e8, 8e9)
    assert best.lr.low < true[0] < best.lr.high and best.bs.low < true[1] < best.bs.high
    assert best.lr_flat[0] < best.lr.mean < best.lr_flat[1] and best.bs_flat[0] < best.bs.mean < best.bs_flat[1]
    at = np.array([[1.6e8, 8e9, best.lr.mean, best.bs.mean], [1.6e8, 8e9, best.lr_flat[1], best.bs.mean]])
    on_optimum, on_edge = law.predict(at).mean
    assert on_optimum == pytest.approx(best.loss.mean)
    assert on_edge / on_optimum - 1 == pytest.approx(1e-3, rel=0.05)
    assert best.extrapolation == pytest.approx(4.0)


def test_few_runs_point_to_a_good_run_of_a_larger_model_and_intervals_cover():
    """30 runs at four (N, D), asked for 12 times the compute."""
    inside, regrets, lr_inside = [], [], []
    for seed in range(6):
        rng, truth = np.random.default_rng(seed), Truth(seed)
        X = grid(PAIRS)
        X = X[np.sort(rng.choice(len(X), 30, replace=False))]
        law = HyperparameterLaw(form="basin", bootstraps=24).fit(X, truth.losses(X, seed=seed))
        new = grid([(1.6e8, 6e9)])
        clean = truth.losses(new, noise=0.0)
        near = clean < 1.03 * clean.min()
        predicted, measured = law.predict(new), truth.losses(new, seed=100 + seed)
        inside.append(((predicted.low <= measured) & (measured <= predicted.high))[near].mean())
        regrets.append(truth.regret(law, 1.6e8, 6e9))
        lr = law.optimum(1.6e8, 6e9).lr
        lr_inside.append(lr.low < truth.optimum(1.6e8, 6e9)[0] < lr.high)
    assert np.mean(inside) >= 0.85
    assert np.mean(lr_inside) >= 0.75
    assert np.mean(regrets) < 0.0025


def test_diverged_runs_change_nothing():
    truth, X = Truth(1), grid(PAIRS)
    y = truth.losses(X)
    broken = y.copy()
    high = X[:, 2] >= RATES[-2]
    broken[high] = 9.0
    law = HyperparameterLaw(form="basin", bootstraps=20).fit(X, broken)
    assert set(np.flatnonzero(high)) <= set(law.diverged_)
    assert len(law.diverged_) < high.sum() + 5
    kept = np.setdiff1d(np.arange(len(X)), law.diverged_)
    without = HyperparameterLaw(form="basin", bootstraps=20).fit(X[kept], y[kept])
    np.testing.assert_allclose(law.predict(X[kept]).mean, without.predict(X[kept]).mean)


def test_noise_that_a_batch_size_shares_is_told_from_noise_of_a_run():
    """The loss of the last batch: 1 % common to the runs of one (N, D, batch size); the optimum is still found."""
    truth, X = Truth(4), grid([(n, d) for n in (1e7, 2e7, 4e7) for d in (5e8, 4e9)])
    groups, which = np.unique(X[:, [0, 1, 3]], axis=0, return_inverse=True)
    shared = 0.01 * np.random.default_rng(0).standard_normal(len(groups))[which.ravel()]
    law = HyperparameterLaw(form="basin", bootstraps=20).fit(X, truth.losses(X, noise=0.001) * np.exp(shared))
    assert law.shared_noise_ == pytest.approx(0.01, rel=0.4)
    assert law.noise_ < 0.003
    assert truth.regret(law, 8e7, 8e9) < 0.002


def test_a_fitted_size_keeps_its_own_floor_and_optimum():
    truth, X = Truth(2), grid(PAIRS)
    y = truth.losses(X)
    one = (X[:, 0] == 4e7) & (X[:, 1] == 2e9)
    y[one] *= 1.01
    law = HyperparameterLaw(form="basin", bootstraps=30).fit(X, y)
    at, beside = X[one], X[one] * [1.02, 1, 1, 1]
    error = np.log(law.predict(at).mean / y[one])
    assert abs(np.median(error)) < 0.001
    assert np.median(law.predict(at).mean / law.predict(beside).mean) > 1.002
    assert ((law.predict(beside).high - law.predict(beside).low) > (law.predict(at).high - law.predict(at).low)).all()


@pytest.mark.parametrize(
    ("pairs", "rates", "batches", "unknown"),
    [
        ([(1e7, 1e9)], RATES, BATCHES, {"lr_params", "lr_tokens", "bs_params", "bs_tokens"}),
        (PAIRS, RATES, BATCHES[:1], {"bs", "bs_params", "bs_tokens"}),
        (PAIRS, RATES[2:3], BATCHES, {"lr_params"}),
        ([(1e7, 1e9), (1e7, 4e9)], RATES, BATCHES, {"lr_params", "bs_params"}),
    ],
)
def test_what_the_runs_cannot_tell_is_left_to_the_priors_and_said(pairs, rates, batches, unknown):
    X = grid(pairs, rates, batches)
    law = HyperparameterLaw(bootstraps=20).fit(X, Truth(0).losses(X))
    told = {
        name for name in ("lr", "lr_params", "lr_tokens", "bs", "bs_params", "bs_tokens") if law.identified_[name] > 0.5
    }
    assert not told & unknown
    assert told
    if unknown == {"lr_params", "bs_params"}:
        assert {"lr", "lr_tokens", "bs"} <= told
    near, far = law.optimum(*pairs[-1]), law.optimum(100 * pairs[-1][0], pairs[-1][1])
    for name in ("lr", "bs"):
        a, b = getattr(near, name), getattr(far, name)
        assert np.isfinite([*a, *b]).all()
        assert b.high / b.low > a.high / a.low


@settings(max_examples=8, deadline=None)
@example(seed=7460, rows=15, levels=3, form="auto")
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(6, 20),
    levels=st.integers(1, 3),
    form=st.sampled_from(["auto", "step-law", "basin"]),
)
def test_any_table_gives_finite_ordered_predictions(seed, rows, levels, form):
    rng = np.random.default_rng(seed)
    choices = np.exp(rng.uniform(np.log([1e6, 1e8, 1e-4, 8]), np.log([1e7, 1e9, 1e-1, 4096]), (levels, 4)))
    X = np.stack([choices[rng.integers(0, levels, rows), k] for k in range(4)], axis=1)
    X[:3, 2] *= [1, 2, 4]
    y = rng.uniform(1, 10, rows)
    law = HyperparameterLaw(form=form, bootstraps=5).fit(X, y)
    # The largest runs of such a table may be left out as diverged, up to a factor of 100.
    new = np.concatenate([X, X * [3, 3, 10, 0.1], X * [1e-3, 9, 1e-3, 1e3]])
    predicted = law.predict(new)
    assert np.isfinite(predicted).all()
    assert (predicted.low < predicted.mean).all() and (predicted.mean < predicted.high).all()
    assert np.isfinite(law.optimum(*X[0, :2]).lr).all()
    for ask in (lambda: law.predict(X * [1e5, 1e5, 1, 1]), lambda: law.optimum(1e30, 1e11)):
        with pytest.raises(ExtrapolationError, match="times beyond the fitted runs"):
            ask()


def test_units_of_sizes_rates_and_losses_change_nothing():
    X, y = grid(PAIRS), Truth(6).losses(grid(PAIRS))
    units = np.array([1e-6, 1e-9, 1e3, 2048])
    law = HyperparameterLaw(form="basin", bootstraps=5).fit(X, y)
    other = HyperparameterLaw(form="basin", bootstraps=5).fit(X * units, y / np.log(2))
    for a, b in zip(law.predict(X), other.predict(X * units), strict=True):
        np.testing.assert_allclose(a / np.log(2), b, rtol=1e-3)
    assert other.optimum(1.0, 1.0).bs.mean == pytest.approx(2048 * law.optimum(1e6, 1e9).bs.mean, rel=1e-2)


def test_whitening_is_the_inverse_root_of_the_covariance_and_splits_errors_as_it_says():
    rng = np.random.default_rng(0)
    batches, pairs, rows = np.array([0, 2, 5, 6, 9]), np.array([0, 5]), 12
    spread, slope = rng.uniform(0.5, 2, rows), rng.standard_normal(rows)
    effects = [(0.7, batches, np.ones(rows)), (1.3, pairs, np.ones(rows)), (0.9, pairs, slope)]
    covariance, designs = np.diag(spread**2), []
    for std, starts, vector in effects:
        design = vector[:, None] * (
            np.searchsorted(starts, np.arange(rows), side="right")[:, None] - 1 == range(len(starts))
        )
        covariance = covariance + std**2 * design @ design.T
        designs.append(design)
    whiten = basin.Whitening(spread, effects)
    root = whiten(np.eye(rows)).T
    np.testing.assert_allclose(root @ covariance @ root.T, np.eye(rows), atol=1e-12)
    errors, inverse = rng.standard_normal(rows), np.linalg.inv(covariance)
    runs, shared = whiten.split(errors)
    own = spread**2
    np.testing.assert_allclose(runs, (own * (inverse @ errors)) ** 2 + own - own**2 * np.diag(inverse))
    for (std, _, _), design, (mean, variance) in zip(effects, designs, shared, strict=True):
        np.testing.assert_allclose(mean, std**2 * design.T @ inverse @ errors)
        np.testing.assert_allclose(variance, std**2 - std**4 * np.diag(design.T @ inverse @ design))


def test_jacobian_agrees_with_differences():
    rng = np.random.default_rng(0)
    theta = basin.MEANS + 0.1 * rng.standard_normal((3, len(basin.NAMES)))
    theta[0, [basin.NAMES.index(f"skew_{name}") for name in ("lr", "bs", "ratio")]] = [0.0, 1e-3, -1e-3]
    x, step = 0.8 * rng.standard_normal((9, 4)), 1e-6

    def law(theta):
        return basin.floor(theta, x) + basin.height(theta, x)

    shifts = step * np.eye(len(basin.NAMES))
    numeric = np.stack([(law(theta + shift) - law(theta - shift)) / (2 * step) for shift in shifts], axis=-1)
    np.testing.assert_allclose(basin.jacobian(theta, x), numeric, atol=1e-6)


def test_the_basin_has_no_point_below_its_optimum_and_is_convex():
    rng = np.random.default_rng(1)
    theta = basin.MEANS + basin.STDS * rng.standard_normal((50, len(basin.NAMES)))
    a, b = rng.standard_normal((2, 40, 4)) * 0.7
    b[:, :2] = a[:, :2]
    middle = basin.height(theta, (a + b) / 2)
    assert (middle >= 0).all()
    low = (basin.height(theta, a) < basin.HIGHEST) & (basin.height(theta, b) < basin.HIGHEST)
    assert (middle <= (basin.height(theta, a) + basin.height(theta, b)) / 2 + 1e-12)[low].all()
    best = np.concatenate([a[0, :2], basin.lowest(theta[:1], a[0, :2])[0]])[None]
    assert basin.height(theta[:1], best)[0, 0] == pytest.approx(0.0, abs=1e-12)


def test_held_out_record_and_extrapolation():
    X = grid([(1e7, 5e8), (2e7, 5e8), (4e7, 5e8), (1e7, 4e9), (2e7, 4e9), (4e7, 4e9)])
    y = Truth(5).losses(X)
    law = HyperparameterLaw(bootstraps=10).fit(X, y)
    assert {record.form for record in law.held_out_} == set(basin.FORMS)
    by_size = next(record for record in law.held_out_ if record.what.startswith("params"))
    np.testing.assert_array_equal(X[by_size.rows, 0], 4e7)
    np.testing.assert_allclose(by_size.measured, y[by_size.rows])
    assert by_size.regret.shape == (2,) and (by_size.regret >= 0).all()
    np.testing.assert_allclose(law.extrapolation([[4e7, 4e9, 1e-3, 64], [4e8, 4e9, 1e-3, 64]]), [1.0, 10.0])


def test_contract_and_refusals():
    X, y = grid(PAIRS), Truth(0).losses(grid(PAIRS))
    law = HyperparameterLaw(form="basin", bootstraps=5)
    assert set(vars(law)) == set(inspect.signature(HyperparameterLaw).parameters)
    with pytest.raises(UsageError, match="call fit first"):
        law.predict(X)
    with pytest.raises(UsageError, match="call fit first"):
        law.optimum(1e7, 1e9)
    assert law.fit(X, y) is law
    narrow, wide = law.predict(X, interval=0.5), law.predict(X)
    assert (wide.low < narrow.low).all() and (narrow.high < wide.high).all()
    np.testing.assert_array_equal(
        law.predict(X).low, HyperparameterLaw(form="basin", bootstraps=5).fit(X, y).predict(X).low
    )
    with pytest.raises(UsageError, match=r"row 3, column 2 \(lr\) of X"):
        HyperparameterLaw().fit(np.where(np.arange(len(X))[:, None] == 3, X * [1, 1, -1, 1], X), y)
    with pytest.raises(UsageError, match=r"learning rate 0\.002 and batch size 64 .* add runs"):
        HyperparameterLaw().fit(grid(PAIRS * 2, RATES[3:4], BATCHES[2:3]), y[:8])
    with pytest.raises(UsageError, match="give auto, step-law or basin"):
        HyperparameterLaw(form="cubic").fit(X, y)
    with pytest.raises(UsageError, match="at least 6"):
        HyperparameterLaw().fit(X[:5], y[:5])
    with pytest.raises(UsageError, match="noise"):
        HyperparameterLaw().fit(X, y, noise=3.0)
    with pytest.raises(UsageError, match=r"\(N\) of N, D"):
        law.optimum(-1, 1e9)


ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("ARMILLARY_PUBLISHED", ROOT / ".." / "shared" / "published"))


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "scaling" / "step_law_small.csv").is_file(), reason=f"no measured data in {DATA}")
def test_step_law_grids_of_a_larger_model_are_foretold_better_than_by_the_published_formula():
    from armillary.laws.reproduce.hyperparameters import step_law

    evaluation = step_law(DATA)
    for figure in evaluation.figures:
        print(f"\n{figure.measure}: {figure.ours:.3f}, published {figure.published}, trivial {figure.trivial}", end="")
    upward, _, leave_out, *_ = evaluation.figures
    assert upward.ours < 0.05 < upward.published < upward.trivial
    assert leave_out.ours < 0.8 * leave_out.published
    assert np.mean([forecast.inside for forecast in evaluation.forecasts]) >= 0.85
    widths = [(forecast.high - forecast.low) / forecast.measured for forecast in evaluation.forecasts]
    assert np.mean(widths) < 0.03

"""Mixture laws over several model sizes: movement, extrapolation, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from armillary.laws import ExtrapolationWarning, MixtureLaw, SetAsideWarning, optimise_mixture, simplex_design
from armillary.laws.mixture.law import contradicted
from armillary.recipe import UsageError

D, V = 6, 4
FREE = {"lower": np.zeros(D), "upper": np.ones(D)}
CENTRE = np.full(D, 1 / D)


def family(seed):
    """Losses [n, V] of mixtures at sizes, all parameters following powers of the size."""
    rng = np.random.default_rng(seed)
    strength = rng.normal(-1, 1, (V, D))
    strength[:, :V] += 2.5 * np.eye(V)
    falls = rng.uniform(0.05, 0.2, V)

    def losses(X, sizes):
        s = np.log(np.asarray(sizes, float) / 1e6)[:, None]
        data = 0.1 * np.exp(-0.1 * s) + np.einsum("vd,nd->nv", np.exp(strength), X**0.7)
        return 1.5 * np.exp(-0.04 * s) + np.exp(-falls * s) * data**-0.4

    return losses


def runs(seed, few=40, more=16, noise=0.003):
    X = simplex_design(few + more, **FREE, centre=CENTRE, seed=seed)
    X = X[np.random.default_rng(seed).permutation(len(X))]
    sizes = np.repeat([1e6, 3e7], [few, more])
    Y = family(seed)(X, sizes)
    return X, Y * np.exp(noise * np.random.default_rng(seed).standard_normal(Y.shape)), sizes


def test_a_size_never_seen_is_foretold_with_intervals_that_cover():
    inside, errors, flat = [], [], []
    for seed in range(3):
        X, Y, sizes = runs(seed)
        law = MixtureLaw(bootstraps=40).fit(X, Y, sizes, np.full(len(X), 1e9))
        new = simplex_design(40, **FREE, centre=CENTRE, seed=50 + seed)
        measured = family(seed)(new, np.full(40, 3e8))
        predicted = law.predict(new, sizes=3e8, tokens=1e9)
        inside.append((predicted.low <= measured) & (measured <= predicted.high))
        errors.append(np.abs(predicted.mean / measured - 1).mean())
        flat.append(np.abs(law.predict(new).mean / measured - 1).mean())
    assert np.mean(errors) < 0.03 < 0.3 * np.mean(flat)
    assert np.mean(inside) > 0.85


def test_few_runs_at_the_larger_size_borrow_from_many_at_the_smaller():
    X, Y, sizes = runs(1)
    large = sizes > 1e6
    new = simplex_design(60, **FREE, centre=CENTRE, seed=99)
    measured = family(1)(new, np.full(60, 3e7))
    both = MixtureLaw(bootstraps=10).fit(X, Y, sizes, np.full(len(X), 1e9))
    alone = MixtureLaw(bootstraps=10).fit(X[large], Y[large])
    errors = [np.abs(law.predict(new).mean / measured - 1).mean() for law in (both, alone)]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.slow
def test_a_third_size_tells_that_larger_models_gain_less_and_less():
    """At the same tokens, with the exponent of Hoffmann et al. 2022."""
    found = {}
    for seed in range(3):
        X = simplex_design(100, **FREE, centre=CENTRE, seed=seed)
        X = X[np.random.default_rng(seed).permutation(len(X))]
        noise = np.exp(0.003 * np.random.default_rng(seed).standard_normal((100, V)))

        def losses(mixtures, sizes, seed=seed):
            return family(seed)(mixtures, np.full(len(mixtures), 1e6)) * np.exp(0.5 * (sizes / 1e6) ** -0.34)[:, None]

        for middle in (1e6, 4e6):  # the same runs, all of two sizes or of three
            sizes = np.repeat([1e6, middle, 2e7], [40, 16, 16])
            law = MixtureLaw(bootstraps=40).fit(X[:72], losses(X[:72], sizes) * noise[:72], sizes, np.full(72, 1e9))
            new = law.predict(X[72:], sizes=4e8, tokens=1e9)
            measured = losses(X[72:], np.full(28, 4e8)) * noise[72:]
            found.setdefault(middle, []).append(
                (
                    np.abs(new.mean / measured - 1).mean(),
                    ((new.low <= measured) & (measured <= new.high)).mean(),
                )
            )
    two, three = (np.mean(found[middle], axis=0) for middle in (1e6, 4e6))
    assert three[0] < 0.8 * two[0]
    assert min(two[1], three[1]) > 0.85


def test_ranks_hold_far_beyond_two_sizes_that_lie_close():
    """Forms that only interpolate would carry the noise between the two sizes on."""
    kept = []
    for seed in range(3):
        X = simplex_design(90, **FREE, centre=CENTRE, seed=seed)
        X = X[np.random.default_rng(seed).permutation(len(X))]
        sizes = np.repeat([1e6, 3e6, 1e8], [40, 16, 34])
        Y = family(seed)(X, sizes) * np.exp(0.01 * np.random.default_rng(seed).standard_normal((90, V)))
        law = MixtureLaw(bootstraps=10).fit(X[:56], Y[:56], sizes[:56])
        far, near = law.predict(X[56:], sizes=1e8).mean, law.predict(X[56:]).mean
        kept += [
            stats.spearmanr(far[:, v], Y[56:, v]).statistic - stats.spearmanr(near[:, v], Y[56:, v]).statistic
            for v in range(V)
        ]
    assert np.mean(kept) > -0.01


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1), factor=st.floats(1.5, 100))
def test_intervals_widen_beyond_the_largest_size(laws, seed, factor):
    law, X = laws[seed]
    widths = []
    for size in (3e7, 3e7 * factor, 3e7 * factor * 3):
        predicted = law.predict(X[:8], sizes=size, tokens=1e9)
        widths.append(np.log(predicted.high / predicted.low).mean())
        assert (predicted.low > 0).all()
    assert widths[0] < widths[1] < widths[2]
    np.testing.assert_allclose(law.extrapolation(3e7 * factor), factor)


@pytest.fixture(scope="module")
def laws():
    found = []
    for seed in range(2):
        X, Y, sizes = runs(seed)
        found.append((MixtureLaw(bootstraps=20).fit(X, Y, sizes, np.full(len(X), 1e9)), X))
    return found


def test_sizes_may_be_given_row_by_row_and_in_any_unit(laws):
    law, X = laws[0]
    mixed = law.predict(X[:2], sizes=[1e6, 3e8], tokens=1e9)
    np.testing.assert_allclose(mixed.mean[0], law.predict(X[:1], sizes=1e6).mean[0])
    np.testing.assert_allclose(mixed.high[1], law.predict(X[1:2], sizes=3e8, tokens=1e9).high[0])
    X, Y, sizes = runs(0)
    in_millions = MixtureLaw(bootstraps=20).fit(X, Y, sizes / 1e6)
    np.testing.assert_allclose(in_millions.predict(X, sizes=300.0).mean, law.predict(X, sizes=3e8).mean, rtol=1e-6)
    np.testing.assert_array_equal(law.extrapolation(), [1.0])


def test_one_size_is_the_same_law_with_and_without_its_size():
    X, Y, _ = runs(2, more=0)
    without = MixtureLaw(bootstraps=10).fit(X, Y)
    known = MixtureLaw(bootstraps=10).fit(X, Y, np.full(len(X), 1e6))
    np.testing.assert_allclose(without.predict(X).high, known.predict(X).high)
    larger = known.predict(X, sizes=6e7)
    assert (larger.mean < known.predict(X).mean).all()
    assert (larger.high / larger.low > known.predict(X).high / known.predict(X).low).all()


def test_optimum_at_a_size_is_judged_at_that_size(laws):
    law, X = laws[0]
    found = optimise_mixture(
        law, np.ones(V), **FREE, support=X, references={"even": CENTRE}, candidates=1, seed=0, size=3e8
    )[0]
    np.testing.assert_allclose(found.predicted.mean, law.predict(found.weights[None], sizes=3e8).mean.sum(), rtol=1e-6)


def test_one_run_at_the_larger_size_is_enough_to_ask_for_an_optimum_there():
    """Half of the runs then holds one size only."""
    X, Y, sizes = runs(0, few=30, more=1)
    law = MixtureLaw(models=("linear",), bootstraps=10).fit(X, Y, sizes)
    found = optimise_mixture(law, np.ones(V), **FREE, support=X, references={"even": CENTRE}, candidates=1, seed=0)[0]
    assert found.better_than["even"] > 0.5


def test_sizes_that_mean_nothing_are_refused():
    X, Y, sizes = runs(0)
    for bad, message in (
        (sizes[:-1], "sizes has shape"),
        (np.where(np.arange(len(X)) == 3, -1.0, sizes), "row 3, column 0 of sizes"),
        (np.where(np.arange(len(X)) == 5, np.nan, sizes), "row 5, column 0 of sizes"),
    ):
        with pytest.raises(UsageError, match=message):
            MixtureLaw(bootstraps=10).fit(X, Y, bad)
    without = MixtureLaw(models=("linear",), bootstraps=10).fit(X, Y)
    with pytest.raises(UsageError, match="fitted without sizes"):
        without.predict(X, sizes=1e9)
    straight = MixtureLaw(models=("linear",), bootstraps=10).fit(X, Y, np.full(len(X), 1e6))
    with pytest.raises(UsageError, match="do not predict how"):
        straight.predict(X, sizes=1e9)


@pytest.mark.parametrize("model", ["linear", "lightgbm", "exponential", "effective-data", "gaussian-process"])
def test_each_form_alone_follows_the_sizes_it_has_seen(model):
    X, Y, sizes = runs(3)
    law = MixtureLaw(models=(model,), bootstraps=10).fit(X, Y, sizes)
    for size in (1e6, 3e7):
        rows = sizes == size
        predicted, measured = law.predict(X[rows], sizes=size), Y[rows]
        np.testing.assert_allclose(predicted.mean.mean(0), measured.mean(0), rtol=0.04)
        assert ((predicted.low <= measured) & (measured <= predicted.high)).mean() > 0.8


def scaled(X, sizes, tokens, seed=0):
    """Losses that fall with size, and with tokens half as fast."""
    return family(seed)(X, sizes * (np.asarray(tokens) / 1e9) ** 0.5)


def designed(sizes, tokens, seed=0):
    X = simplex_design(len(sizes), **FREE, centre=CENTRE, seed=seed)[
        np.random.default_rng(seed).permutation(len(sizes))
    ]
    return X, scaled(X, sizes, tokens, seed) * np.exp(
        0.003 * np.random.default_rng(seed).standard_normal((len(sizes), V))
    )


def test_level_is_known_only_where_the_runs_span_size_and_tokens():
    sizes = np.repeat([1e6, 3e7], [24, 16])
    same = np.full(40, 1e9)
    grown = np.repeat([1e9, 3e10], [24, 16])
    X, Y = designed(sizes, same)
    for tokens, at, known in [
        (None, (3e7, None), True),
        (None, (3e8, None), False),
        (same, (3e7, 1e9), True),
        (same, (3e7, None), True),
        (same, (1e9, None), False),
        (same, (1e9, 1e9), True),
        (same, (1e9, 2.5e10), False),
        (same, (3e7, 2e9), False),
        (grown, (3e8, 3e11), True),
        (grown, (3e8, 1e9), False),
        (np.where(np.arange(40) % 2, 1e9, 4e9), (1e9, 2.5e10), True),
    ]:
        law = MixtureLaw(bootstraps=2, models=("effective-data",)).fit(X, Y, sizes, tokens)
        assert law.level_known(*at).tolist() == [known], (tokens, at)
    assert MixtureLaw(bootstraps=2).fit(X, Y).level_known().all()


def test_where_the_level_is_not_known_there_are_ranks_and_no_interval():
    sizes = np.repeat([1e6, 3e7], [40, 16])
    X, Y = designed(sizes, np.full(56, 1e9))
    law = MixtureLaw(bootstraps=10).fit(X, Y, sizes, np.full(56, 1e9))
    new = simplex_design(40, **FREE, centre=CENTRE, seed=9)
    measured = scaled(new, np.full(40, 3e8), np.full(40, 2.5e10))
    with pytest.warns(ExtrapolationWarning, match="at 40 of 40 rows the level of the losses is unknown"):
        said = law.predict(new, sizes=3e8, tokens=2.5e10)
    assert (said.low == 0).all() and np.isinf(said.high).all()
    for v in range(V):
        assert stats.spearmanr(said.mean[:, v], measured[:, v]).statistic > 0.9
    with pytest.warns(ExtrapolationWarning, match="is unknown"):
        goal = law.target(new, np.ones(V), sizes=3e8, tokens=2.5e10)
    assert (goal.low == 0).all() and np.isinf(goal.high).all() and np.isfinite(goal.mean).all()
    # Two sizes test no larger one, however far they are apart.
    with pytest.warns(ExtrapolationWarning, match="2.6 times beyond the fitted runs; the law was tested up to 1"):
        near = law.predict(new, sizes=7.8e7, tokens=1e9)
    assert np.isfinite(near.high).all()
    for options in ({"sizes": 3e8}, {"tokens": 3e9}):
        with pytest.raises(UsageError, match="the law was fitted without"):
            MixtureLaw(bootstraps=4).fit(X, Y).predict(new, **options)
    with pytest.raises(UsageError, match="tokens were given without sizes"):
        MixtureLaw(bootstraps=4).fit(X, Y, tokens=np.full(56, 1e9))


def test_runs_at_several_sizes_and_tokens_foretell_another_scale():
    sizes = np.repeat([1e6, 1e6, 2e7], [30, 16, 16])
    tokens = np.repeat([1e9, 8e9, 1e9], [30, 16, 16])
    X, Y = designed(sizes, tokens)
    law = MixtureLaw(bootstraps=40).fit(X, Y, sizes, tokens)
    new = simplex_design(40, **FREE, centre=CENTRE, seed=9)
    measured = scaled(new, np.full(40, 1e8), np.full(40, 1e10))
    said = law.predict(new, sizes=1e8, tokens=1e10)
    assert np.abs(said.mean / measured - 1).mean() < 0.03
    assert ((said.low <= measured) & (measured <= said.high)).mean() > 0.85


def test_a_diverged_run_and_missing_losses_change_no_law():
    X, Y, _ = runs(4, few=48, more=0)
    new = simplex_design(20, **FREE, centre=CENTRE, seed=9)
    clean = MixtureLaw(bootstraps=20).fit(X, Y)
    assert clean.set_aside_ == []
    broken = Y.copy()
    broken[7] = 10.5
    broken[20, 1] *= 4
    missing = np.zeros(Y.shape, dtype=bool)
    missing[30, 2] = True
    broken[30, 2] = np.nan
    with pytest.warns(SetAsideWarning, match="5 losses contradict the other runs .*row 7 of Y: loss 0 is 10.5"):
        law = MixtureLaw(bootstraps=20).fit(X, broken, missing=missing)
    assert {(one.row, one.target) for one in law.set_aside_} == {(7, 0), (7, 1), (7, 2), (7, 3), (20, 1)}
    assert len(law.mixtures_) == len(X) - 1
    before, after = clean.predict(new), law.predict(new)
    np.testing.assert_allclose(after.mean, before.mean, rtol=0.02)
    assert np.median((after.high - after.low) / (before.high - before.low)) < 1.3


@pytest.mark.parametrize("rows", [10, 16, 40])
def test_a_domain_without_text_has_a_high_loss_that_nothing_contradicts(rows):
    """Losses of small models: at a weight of nearly nothing the loss of the domain is many times that elsewhere."""
    for seed in range(8):
        X = simplex_design(rows, lower=np.zeros(3), upper=np.ones(3), centre=np.full(3, 1 / 3), seed=seed)
        rng = np.random.default_rng(seed)
        Y = 1.1 * (X + 0.002) ** -0.35 * np.exp(0.05 * rng.standard_normal(X.shape))
        Y = np.column_stack([Y, Y @ [0.5, 0.5, 0.0]])
        found, _ = contradicted(X, np.zeros(rows), np.log(Y), np.zeros(Y.shape, dtype=bool))
        assert not found.any(), (seed, X[found.any(1)], Y[found.any(1)])


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.02])
def test_a_sound_table_of_mixtures_loses_no_run(noise):
    for seed in range(6):
        X, Y, sizes = runs(seed, few=24, more=12, noise=noise)
        found, _ = contradicted(X, np.log(sizes / 3e7), np.log(Y), np.zeros(Y.shape, dtype=bool))
        assert not found.any()

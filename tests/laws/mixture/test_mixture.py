"""The mixture law and its optimum: recovery, coverage, bounds, and no run into the unknown."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.laws import MixtureLaw, epoch_ceilings, optimise_mixture, simplex_design
from armillary.recipe import UsageError

NATURAL = np.array([0.4, 0.2, 0.15, 0.1, 0.1, 0.05])
D = len(NATURAL)
FREE = {"lower": np.zeros(D), "upper": np.ones(D)}


def truth(seed, targets=3):
    """A law with one own domain for each target, and some transfer."""
    rng = np.random.default_rng(seed)
    strength = rng.normal(-1, 1, (targets, D))
    strength[:, :targets] += 2.5 * np.eye(targets)
    floor, power = rng.uniform(1, 2.5, targets), rng.uniform(0.2, 0.5, targets)

    def losses(X):
        return floor + (0.1 + np.einsum("vd,nd->nv", np.exp(strength), X**0.7)) ** -power

    return losses


def noisy(losses, rng, noise=0.003):
    """Noise of 0.3 %, correlated over the targets as one model's are."""
    common = rng.standard_normal((len(losses), 1))
    own = rng.standard_normal(losses.shape)
    return losses * np.exp(noise * (0.7 * common + np.sqrt(0.51) * own))


def test_intervals_cover_new_runs_and_their_weighted_target():
    inside, target_inside = [], []
    weights = np.array([0.5, 0.3, 0.2])
    for seed in range(6):
        rng = np.random.default_rng(seed)
        law_of = truth(seed)
        X = simplex_design(40, **FREE, centre=NATURAL, seed=seed)
        new = simplex_design(66, **FREE, centre=NATURAL, seed=100 + seed)[2:]
        measured = noisy(law_of(new), rng)
        law = MixtureLaw(bootstraps=50).fit(X, noisy(law_of(X), rng))
        predicted, target = law.predict(new), law.target(new, weights)
        inside.append((predicted.low <= measured) & (measured <= predicted.high))
        target_inside.append((target.low <= measured @ weights) & (measured @ weights <= target.high))
        np.testing.assert_allclose(target.mean, predicted.mean @ weights)
        assert (law.held_out_.spearman > 0.8).all()
    assert 0.82 <= np.mean(inside) <= 0.98
    assert 0.82 <= np.mean(target_inside) <= 0.98


def test_correlated_noise_widens_the_interval_of_a_target():
    """One error of 1 % in all four losses, or four that average out to half of it."""
    X = simplex_design(60, **FREE, centre=NATURAL, seed=0)
    widths = {1: [], 4: []}
    for seed in range(3):
        for errors, found in widths.items():
            Y = np.full((60, 4), 3.0) * np.exp(0.01 * np.random.default_rng(seed).standard_normal((60, errors)))
            target = MixtureLaw(bootstraps=50).fit(X, Y).target(X, np.full(4, 0.25))
            found.append((target.high - target.low).mean())
    assert np.mean(widths[1]) > 1.5 * np.mean(widths[4])


def test_held_out_runs_have_not_been_seen():
    """Pure noise: a law that peeked would correlate with what it claims to predict."""
    rng = np.random.default_rng(0)
    X = np.repeat(simplex_design(20, **FREE, centre=NATURAL, seed=0), 2, axis=0)
    each = np.repeat(rng.standard_normal((20, 6)), 2, axis=0)  # repeats of a mixture share their deviation
    Y = 3 * np.exp(0.01 * each)
    law = MixtureLaw(bootstraps=10).fit(X, Y)
    assert law.held_out_.spearman.mean() < 0.25
    assert (law.held_out_.rmse > 0.8 * Y.std(0)).all()


def test_weights_of_the_forms_favour_the_one_that_predicts_best():
    X = simplex_design(40, **FREE, centre=NATURAL, seed=0)
    straight = np.exp(1.0 - 0.3 * X[:, :1] + 0.1 * X[:, 1:2])
    bent = truth(0)(X)[:, :1]
    rng = np.random.default_rng(0)
    law = MixtureLaw(bootstraps=10).fit(X, noisy(np.hstack([straight, bent]), rng))
    assert law.chosen_["linear"][0] > 0.3
    assert law.chosen_["linear"][1] < 0.05
    np.testing.assert_allclose(sum(law.chosen_.values()), 1.0)
    assert law.held_out_.rmse_of_model["effective-data"][1] < 0.5 * law.held_out_.rmse_of_model["linear"][1]


@pytest.fixture(scope="module")
def fitted():
    X = simplex_design(40, **FREE, centre=NATURAL, seed=3)
    law = MixtureLaw(models=("linear", "gaussian-process"), bootstraps=20)
    return X, law.fit(X, noisy(truth(3)(X), np.random.default_rng(3)))


def bounds_around(seed):
    """Random floors and ceilings that hold at least one mixture of the design's neighbourhood."""
    rng = np.random.default_rng(seed)
    inside = simplex_design(40, **FREE, centre=NATURAL, seed=3)[rng.integers(1, 40)]
    return inside * rng.uniform(0, 1, D), np.minimum(inside * rng.uniform(1.05, 4, D) + 0.02, 1)


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_candidate_respects_bounds_and_support(fitted, seed):
    X, law = fitted
    lower, upper = bounds_around(seed)
    found = optimise_mixture(
        law, [1, 1, 1], lower=lower, upper=upper, support=X, references={"natural": NATURAL}, candidates=3, seed=seed
    )
    assert 1 <= len(found) <= 3
    for candidate in found:
        assert candidate.weights.sum() == pytest.approx(1)
        assert (candidate.weights >= lower - 1e-9).all() and (candidate.weights <= upper + 1e-9).all()
        assert candidate.predicted.low < candidate.predicted.mean < candidate.predicted.high
        assert 0 <= candidate.better_than["natural"] <= 1
        if not candidate.shrunken:
            assert (candidate.weights <= np.maximum(X.max(0), lower) + 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 40))
def test_designs_stay_in_bounds_and_begin_with_natural_and_uniform(seed, n):
    lower, upper = bounds_around(seed)
    design = simplex_design(n, lower, upper, centre=NATURAL, seed=seed)
    assert design.shape == (n, D)
    np.testing.assert_allclose(design.sum(1), 1)
    np.testing.assert_allclose(design[0], NATURAL)
    assert (design[1:] >= lower - 1e-9).all() and (design[1:] <= upper + 1e-9).all()
    free = simplex_design(n, **FREE, centre=NATURAL, seed=seed)
    np.testing.assert_allclose(free[1], 1 / D)
    assert len(np.unique(free.round(9), axis=0)) == n


def test_finds_the_known_optimum_and_says_that_it_beats_the_natural_mixture():
    """Loss of each of three targets falls with its own domain only: the best is a third each."""
    X = simplex_design(48, **FREE, centre=NATURAL, seed=0)

    def losses(mixtures):
        return 2 + 0.5 * (0.05 + mixtures[:, :3]) ** -0.4

    law = MixtureLaw(bootstraps=50).fit(X, noisy(losses(X), np.random.default_rng(0), 0.002))
    best, *others = optimise_mixture(
        law, [1, 1, 1], **FREE, support=X, references={"natural": NATURAL}, candidates=4, seed=0
    )
    third = losses(np.array([[1 / 3, 1 / 3, 1 / 3, 0, 0, 0]])).sum()
    natural = losses(NATURAL[None]).sum()
    reached = losses(best.weights[None]).sum()
    assert reached - third < 0.25 * (natural - third)
    assert best.better_than["natural"] > 0.95
    assert best.predicted.low <= reached <= best.predicted.high
    assert sum(other.shrunken for other in others) == 1
    mixtures = [best.weights] + [other.weights for other in others]
    assert all(np.abs(a - b).sum() > 0.05 for i, a in enumerate(mixtures) for b in mixtures[:i])


def test_does_not_run_away_to_where_no_run_was_made():
    """Runs only near the natural mixture, and a loss that keeps falling towards pure domain 5."""
    rng = np.random.default_rng(0)
    X = rng.dirichlet(60 * NATURAL, 48)
    Y = noisy(3 - 1.5 * X[:, 5:6], rng)
    law = MixtureLaw(bootstraps=50).fit(X, Y)
    best = optimise_mixture(law, [1], **FREE, support=X, references={"natural": NATURAL}, candidates=1, seed=0)[0]
    assert best.weights[5] <= X[:, 5].max() + 1e-9
    assert np.sqrt(((np.sqrt(best.weights) - np.sqrt(X)) ** 2).sum(1)).min() < 0.25
    assert best.weights[5] > NATURAL[5]


def test_bounds_far_from_every_run_are_refused():
    """Runs only near the natural mixture, and a floor that asks for nearly nothing but domain 5."""
    X = np.random.default_rng(0).dirichlet(200 * NATURAL, 40)
    law = MixtureLaw(bootstraps=10).fit(X, truth(0)(X))
    lower = np.array([0, 0, 0, 0, 0, 0.9])
    with pytest.raises(UsageError, match="exclude the region of the runs"):
        optimise_mixture(law, [1, 0, 0], lower=lower, upper=np.ones(D), support=X, references={}, candidates=1, seed=0)


@pytest.mark.slow
def test_without_any_effect_of_the_mixture_better_is_a_toss_up():
    """The optimum of a law fitted to noise is the luckiest guess; halves of the runs, judging each other, show it."""
    said = []
    for seed in range(6):
        X = simplex_design(40, **FREE, centre=NATURAL, seed=seed)
        Y = noisy(np.full((40, 2), 3.0), np.random.default_rng(seed))
        law = MixtureLaw(bootstraps=30).fit(X, Y)
        best = optimise_mixture(
            law, [1, 1], **FREE, support=X, references={"natural": NATURAL}, candidates=1, seed=seed
        )[0]
        said.append(best.better_than["natural"])
    assert 0.3 < np.mean(said) < 0.7


def test_too_few_runs_to_judge_a_choice_give_no_probability():
    X = simplex_design(12, **FREE, centre=NATURAL, seed=0)
    law = MixtureLaw(bootstraps=20).fit(X, truth(0)(X))
    best = optimise_mixture(law, [1, 1, 1], **FREE, support=X, references={"natural": NATURAL}, candidates=1, seed=0)[0]
    assert best.better_than["natural"] == 0.5
    assert best.optimism["natural"] > 0


def test_says_which_weights_matter_and_how_far_each_may_move():
    """Domain 0 feeds the only target; the others do nothing, so that only their sum matters."""
    X = simplex_design(48, **FREE, centre=NATURAL, seed=0)

    def losses(mixtures):
        return 2 + 0.5 * (0.02 + mixtures[:, :1]) ** -0.4

    law = MixtureLaw(bootstraps=30).fit(X, noisy(losses(X), np.random.default_rng(0), 0.002))
    upper = np.array([0.4, 1, 1, 1, 1, 1])
    best = optimise_mixture(
        law, [1], lower=np.zeros(D), upper=upper, support=X, references={"natural": NATURAL}, candidates=1, seed=0
    )[0]
    assert best.weights[0] > 0.35
    assert best.matters[0] > 2
    assert best.matters[1:].max() < 1
    assert (best.flat_low <= best.weights).all() and (best.weights <= best.flat_high).all()
    assert best.flat_low[0] > 0.25
    assert (best.flat_high - best.flat_low)[1:].min() > 0.1
    others = (1 - best.flat_low[0]) / 5
    worst = losses(np.array([[best.flat_low[0], *np.full(5, others)]]))
    assert (worst - losses(best.weights[None]))[0, 0] < 3 * best.noise


def test_ceilings_from_epochs():
    np.testing.assert_allclose(epoch_ceilings([1e9, 5e9, np.inf, 0], 1e10, 4), [0.4, 1, 1, 0])
    for tokens, budget, epochs in (([1e9, np.nan], 1e10, 4), ([1e9], 0, 4), ([1e9], 1e10, -1)):
        with pytest.raises(UsageError):
            epoch_ceilings(tokens, budget, epochs)


def test_noise_is_larger_where_held_out_runs_miss_by_more():
    """Noise of 0.2 % near the natural mixture and of 3 % for nearly pure ones."""
    X = simplex_design(120, **FREE, centre=NATURAL, seed=0)
    pure = X.max(1) > 0.6
    noise = np.where(pure, 0.03, 0.002)[:, None]
    Y = (3 - X[:, :3]) * np.exp(noise * np.random.default_rng(0).standard_normal((120, 3)))
    law = MixtureLaw(bootstraps=30).fit(X, Y)
    predicted = law.predict(X)
    width = np.log(predicted.high / predicted.low).mean(1)
    assert width[pure].mean() > 1.3 * width[~pure].mean()

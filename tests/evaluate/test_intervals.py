"""Intervals of mean scores: equal to published ones, never a point, and with the coverage they claim."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from armillary.evaluate.intervals import mean_interval
from armillary.recipe import UsageError


def test_independent_right_and_wrong_answers_have_jeffreys_interval():
    interval = mean_interval([1] * 7 + [0] * 3)
    assert interval.value == pytest.approx(0.7)
    # Brown, Cai and DasGupta (2001), table of Jeffreys' intervals, n = 10, x = 7 is 1 - that of x = 3 (0.093, 0.606).
    assert (round(1 - interval.high, 3), round(1 - interval.low, 3)) == (0.093, 0.606)


def test_the_draws_agree_with_jeffreys_where_both_apply():
    scores = np.repeat([1.0, 0.0], [700, 300])
    exact = mean_interval(scores)
    drawn = mean_interval(np.append(scores, 0.5))
    assert drawn.low == pytest.approx(exact.low, abs=0.003)
    assert drawn.high == pytest.approx(exact.high, abs=0.003)


@pytest.mark.parametrize(
    ("scores", "clusters"),
    [
        ([0], None),
        ([1], None),
        ([0] * 20, None),
        ([1] * 20, None),
        ([0.5] * 20, None),
        ([1] * 20, ["one passage"] * 20),
        ([0, 0, 1, 1], ["a", "a", "b", "b"]),
        ([[1, 1]] * 5, None),
        ([[0.3]], None),
    ],
)
def test_no_interval_collapses(scores, clusters):
    interval = mean_interval(scores, clusters)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.high - interval.low > 0.05


def test_twenty_answers_on_one_passage_say_less_than_twenty_passages():
    many = mean_interval([1] * 20)
    one = mean_interval([1] * 20, ["p"] * 20)
    assert one.low < many.low - 0.3


def test_equal_input_and_seed_give_equal_digits_and_items_may_change_places():
    scores = np.random.default_rng(3).random(50)
    clusters = [i // 3 for i in range(50)]
    assert mean_interval(scores, clusters) == mean_interval(list(scores), [str(c) for c in clusters])
    assert mean_interval(scores, clusters, seed=1) != mean_interval(scores, clusters, seed=2)
    order = np.random.default_rng(4).permutation(50)
    shuffled = mean_interval(scores[order], [clusters[i] for i in order])
    assert shuffled.low == pytest.approx(mean_interval(scores, clusters).low, abs=1e-9)


def test_other_bounds_move_the_interval_with_the_scores():
    scores = np.random.default_rng(5).random(40)
    unit, percent = mean_interval(scores), mean_interval(scores * 100, bounds=(0, 100))
    assert (percent.low, percent.high) == pytest.approx((unit.low * 100, unit.high * 100))


def _answers(rng, clusters, per_cluster, mean, spread):
    """0-1 answers [clusters * per_cluster] whose passages differ in difficulty: intra-class correlation ``spread``."""
    chance = rng.beta(mean * (1 / spread - 1), (1 - mean) * (1 / spread - 1), clusters)
    return rng.binomial(1, np.repeat(chance, per_cluster)).astype(float)


def _coverage(make, mean, clusters=None, repeats=200):
    rng = np.random.default_rng(11)
    inside = 0
    for repeat in range(repeats):
        interval = mean_interval(make(rng), clusters, seed=repeat)
        inside += interval.low <= mean <= interval.high
    return inside / repeats


# 200 repeats of a 95 % interval have a standard error of 0.015.
@pytest.mark.parametrize(
    ("passages", "mean"),
    [(4, 0.5), pytest.param(10, 0.1, marks=pytest.mark.slow), pytest.param(20, 0.95, marks=pytest.mark.slow)],
)
def test_coverage_over_passages(passages, mean):
    clusters = [i // 6 for i in range(passages * 6)]
    assert _coverage(lambda rng: _answers(rng, passages, 6, mean, 0.3), mean, clusters) >= 0.925


def test_without_clusters_the_same_items_are_not_covered():
    assert _coverage(lambda rng: _answers(rng, 20, 6, 0.5, 0.3), 0.5) < 0.85


@pytest.mark.parametrize(
    ("items", "mean"),
    [pytest.param(3, 0.5, marks=pytest.mark.slow), (8, 0.9), pytest.param(25, 0.25, marks=pytest.mark.slow)],
)
def test_coverage_of_graded_scores(items, mean):
    assert _coverage(lambda rng: rng.beta(4 * mean, 4 * (1 - mean), items), mean) >= 0.925


@pytest.mark.parametrize("items", [5, 40])
def test_mean_coverage_of_right_and_wrong_answers(items):
    # Averaged over the true score, as in Brown, Cai and DasGupta's figure 9: exact, no simulation.
    chances = np.linspace(0.01, 0.99, 99)
    intervals = [mean_interval([1.0] * k + [0.0] * (items - k)) for k in range(items + 1)]
    coverage = sum(
        stats.binom.pmf(k, items, chances) * ((interval.low <= chances) & (chances <= interval.high))
        for k, interval in enumerate(intervals)
    )
    assert 0.94 <= coverage.mean() <= 0.97


@pytest.mark.parametrize("variants", [2, *(pytest.param(more, marks=pytest.mark.slow) for more in (3, 6))])
def test_coverage_over_prompt_variants(variants):
    def make(rng):
        item = rng.normal(0, 0.8, (60, 1))
        variant = rng.normal(0, 0.5, (1, variants))
        return (item + variant + rng.normal(0, 0.6, (60, variants)) > 0).astype(float)

    assert _coverage(make, 0.5) >= 0.925


def test_a_prompt_variant_that_shifts_every_item_widens_the_interval():
    good, bad = np.ones(200), np.zeros(200)
    interval = mean_interval(np.column_stack([good, good, bad, good]))
    assert interval.high - interval.low > 0.3


@given(
    st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=12),
    st.integers(1, 4),
    st.floats(0.5, 0.99),
)
def test_value_lies_within_the_interval(scores, per_cluster, level):
    interval = mean_interval(scores, [i // per_cluster for i in range(len(scores))], level)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "scores have shape"),
        (([1, float("nan")],), "item 1 has the score nan"),
        ((["right"],), "not a table of numbers"),
        (([1, 2],), "score 2 of item 1 is outside 0 to 1"),
        (([1, 0], ["a"]), "1 clusters for 2 items"),
        (([1, 0], None, 95), "level is 95"),
        (([1, 0], None, 0.95, (1, 1)), "bounds are 1 to 1"),
        (([[[1]]],), "shape"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        mean_interval(*arguments)

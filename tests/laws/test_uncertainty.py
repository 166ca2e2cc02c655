"""Student's intervals against scipy, and a choice that is not fooled by picking the best of several."""

import numpy as np
import pytest
from scipy import stats

from armillary.laws import best_of, mean_interval, paired_difference
from armillary.recipe import UsageError


def test_mean_and_paired_intervals_are_students():
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, 5), rng.normal(2, 1, 5)
    mean = mean_interval(a, 0.8)
    assert (mean.low, mean.high) == pytest.approx(stats.ttest_1samp(a, 0).confidence_interval(0.8))
    difference = paired_difference(a, b)
    assert difference.mean == pytest.approx((a - b).mean())
    assert (difference.low, difference.high) == pytest.approx(stats.ttest_rel(a, b).confidence_interval(0.9))


def test_two_groups_are_a_paired_test():
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 1, 4)
    a, b = 3 + seeds + 0.01 * rng.standard_normal(4), 3.1 + seeds + 0.01 * rng.standard_normal(4)
    choice = best_of({"natural": b, "found": a}, "natural")
    assert (choice.name, choice.significant) == ("found", True)
    assert choice.difference == pytest.approx(paired_difference(a, b))


def test_of_equal_groups_the_reference_is_kept_as_often_as_said():
    """Four groups that do not differ, three seeds, pairs sharing a seed effect: at most 5 % false alarms."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(2000):
        values = rng.normal(0, 2, 3) + rng.normal(0, 1, (4, 3))
        choice = best_of({str(i): row for i, row in enumerate(values)}, "0")
        alarms += choice.significant
        assert choice.name == (choice.best if choice.significant else "0")
    assert 0.02 < alarms / 2000 < 0.06


def test_a_better_group_is_found_with_two_seeds_and_the_best_reference_is_kept():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.003, (4, 2))
    groups = {
        name: 3 - gain + noise[i] for i, (name, gain) in enumerate({"n": 0, "u": 0, "a": 0.02, "b": 0.05}.items())
    }
    choice = best_of(groups, "n")
    assert (choice.name, choice.best, choice.significant) == ("b", "b", True)
    assert choice.difference.low < -0.05 < choice.difference.high
    kept = best_of(groups, "b")
    assert (kept.name, kept.best, kept.significant) == ("b", "a", False)
    assert kept.difference.mean > 0


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": [1, 2]}, "at least two groups"),
        ({"b": [1, 2], "c": [1, 2]}, "no group 'a'"),
        ({"a": [1, 2], "b": [1]}, "'b': at least two samples"),
        ({"a": [1, 2], "b": [1, 2, 3]}, "'b' has 3 samples"),
        ({"a": [1, 2], "b": [1, float("nan")]}, "'b': sample 1 is nan"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(groups, message):
    with pytest.raises(UsageError, match=message):
        best_of(groups, "a")

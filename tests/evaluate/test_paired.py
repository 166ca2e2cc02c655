"""Paired comparisons: equal to published and scipy's values, powerful where pairs matter, honest where clusters do."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from armillary.evaluate.intervals import cluster_totals
from armillary.evaluate.paired import flipped, holm, paired, sign_flip_test
from armillary.recipe import UsageError


def _answers(both, better, worse, neither):
    """0-1 answers of two models from the counts of a 2 x 2 table; ``better``: only the second is right."""
    first = [1] * both + [0] * better + [1] * worse + [0] * neither
    second = [1] * both + [1] * better + [0] * worse + [0] * neither
    return first, second


def test_pairs_find_what_totals_miss():
    first, second = _answers(both=41, better=22, worse=7, neither=94)
    table = [[sum(first), 164 - sum(first)], [sum(second), 164 - sum(second)]]
    assert round(stats.chi2_contingency(table, correction=False).pvalue, 3) == 0.080
    compared = paired(first, second)
    assert round(compared.p_value, 3) == 0.008
    assert (compared.test, compared.better, compared.worse, compared.items) == ("mcnemar-exact", 22, 7, 164)
    assert compared.difference.value == pytest.approx(15 / 164)
    assert 0 < compared.difference.low < 15 / 164 < compared.difference.high


def test_published_mcnemar():
    # Agresti (2002), table 10.1, approval of a prime minister: 794, 150, 86, 570. His interval is (-0.055, -0.023).
    compared = paired(*_answers(both=794, better=86, worse=150, neither=570))
    assert compared.p_value == pytest.approx(3.716e-05, rel=1e-3)
    assert (round(compared.difference.low, 3), round(compared.difference.high, 3)) == pytest.approx(
        (-0.058, -0.022), abs=0.003
    )


def test_the_order_of_the_models_changes_the_sign_only():
    first, second = _answers(10, 8, 3, 20)
    one, other = paired(first, second), paired(second, first)
    assert one.p_value == other.p_value
    assert one.difference.value == -other.difference.value


@pytest.mark.parametrize("count", [1, 2, 30])
def test_equal_answers_are_no_difference_and_no_point(count):
    compared = paired([1.0] * count, [1.0] * count)
    assert (compared.p_value, compared.difference.value) == (1.0, 0.0)
    assert compared.difference.low < 0 < compared.difference.high


def test_sign_flips_equal_scipys_permutations():
    gaps = np.array([0.31, -0.2, 0.55, 0.12, -0.07, 0.4, 0.33])
    ours = sign_flip_test(gaps)
    theirs = stats.permutation_test((gaps,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert ours == ("sign-flip-exact", pytest.approx(theirs))


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=7))
def test_whole_numbers_are_summed_exactly(gaps):
    signs = itertools.product((1, -1), repeat=len(gaps))
    farther = [abs(np.dot(sign, gaps)) >= abs(sum(gaps)) for sign in signs]
    assert sign_flip_test(np.array(gaps, dtype=float))[1] == pytest.approx(np.mean(farther))


def test_many_graded_items_are_sampled_and_agree_with_the_normal():
    gaps = np.random.default_rng(0).normal(0.05, 1, 900)
    test, p_value = sign_flip_test(gaps)
    normal = 2 * stats.norm.sf(abs(gaps.sum()) / np.sqrt((gaps**2).sum()))
    assert (test, p_value) == ("sign-flip-sampled", pytest.approx(normal, abs=0.01))


def test_one_passage_is_one_observation():
    first, second = _answers(0, 20, 0, 0)
    assert paired(first, second).p_value < 1e-5
    assert paired(first, second, ["one"] * 20).p_value == 1.0


def _false_alarms(clusters):
    """Share of 200 comparisons of equal models on 15 passages of 6 items in which p < 0.05."""
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(200):
        lean = np.repeat(rng.normal(0, 1.5, 15), 6)
        first = rng.random(90) < 1 / (1 + np.exp(lean))
        second = rng.random(90) < 1 / (1 + np.exp(-lean))
        totals, _ = cluster_totals((second * 1.0 - first)[:, None], clusters)
        alarms += sign_flip_test(totals[:, 0])[1] < 0.05
    return alarms / 200


def test_false_alarms_over_passages():
    assert _false_alarms([i // 6 for i in range(90)]) <= 0.08
    assert _false_alarms(None) > 0.12


def test_coverage_of_the_difference():
    rng = np.random.default_rng(6)
    inside = 0
    for _ in range(200):
        chance = rng.beta(1, 1, 60)
        first = (rng.random(60) < chance).astype(float)
        second = np.where(rng.random(60) < 0.1, 1.0, first)
        interval = paired(first, second).difference
        inside += interval.low <= 0.05 <= interval.high
    assert inside / 200 >= 0.925


def test_equivalence_needs_enough_items():
    few, many = _answers(20, 1, 1, 20), _answers(2000, 10, 12, 2000)
    assert paired(*few, margin=0.01).equivalent is False
    sure = paired(*many, margin=0.01)
    assert sure.equivalent is True
    assert sure.equivalence_p < 0.05
    assert paired(*many).equivalent is None


def test_equivalence_is_rarely_claimed_at_the_margin():
    rng = np.random.default_rng(7)
    claimed = 0
    for _ in range(100):
        gap = rng.choice([1.0, 0.0, -1.0], 400, p=[0.15, 0.75, 0.10])
        claimed += paired(np.zeros(400), gap, margin=0.05).equivalent
    assert claimed / 100 <= 0.1


def test_holm():
    # statsmodels.stats.multitest.multipletests([0.01, 0.04, 0.03, 0.005], method="holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    with pytest.raises(UsageError, match="between 0 and 1"):
        holm([1.2])


def test_flipped_items_are_listed_with_the_losses_first():
    flips = flipped({"a": 1, "b": 0, "c": 1, "d": 1}, {"a": 0, "b": 1, "c": 1, "e": 0})
    assert [(flip.id, flip.first, flip.second) for flip in flips] == [("a", 1, 0), ("b", 0, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 0], [1]), "same items"),
        (([], []), "shape"),
        (([1, 0], [1, float("inf")]), "item 1 has the score inf"),
        (([1], [0], ["a", "b"]), "2 clusters for 1 items"),
        (([1], [0], None, 0.95, 0), "margin is 0"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        paired(*arguments)

"""Intervals over seeds and items cover the difference of two recipes, and the planned numbers find it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from armillary.evaluate import ComparisonPlan, Examination, Item, Result, compare, compare_seeds, plan_comparison
from armillary.evaluate.paired import paired
from armillary.evaluate.seeds import Noise, items_needed_over_seeds, noise_of_seeds, paired_over_seeds, seeds_needed
from armillary.recipe import UsageError

GAIN, EFFECT, DIFFICULTY, SPREAD = 0.2, 0.6, 1.5, 0.1


def drawn(rng: np.random.Generator, items: int, seeds: tuple[int, int], spread: float = SPREAD) -> list[Any]:
    """0-1 scores of two recipes: items of other difficulty, each with its own gain, and seeds of other skill."""
    difficulty, gain = rng.normal(0, DIFFICULTY, items), GAIN + rng.normal(0, EFFECT, items)
    arms = []
    for shift, count in ((0.0, seeds[0]), (gain, seeds[1])):
        right = expit(np.reshape(shift, (-1, 1)) + rng.normal(0, spread, count) - difficulty[:, None])
        arms.append((rng.random(right.shape) < right) * 1.0)
    return arms


def expected(spread: float = SPREAD) -> float:
    rng = np.random.default_rng(99)
    skill = rng.normal(0, math.hypot(DIFFICULTY, spread), (2, 400_000))
    return float(expit(GAIN + rng.normal(0, EFFECT, 400_000) + skill[0]).mean() - expit(skill[1]).mean())


@pytest.mark.parametrize(
    "seeds", [(3, 3), (1, 3), *(pytest.param(more, marks=pytest.mark.slow) for more in ((2, 2), (5, 2)))]
)
@pytest.mark.parametrize("spread", [SPREAD, *(pytest.param(more, marks=pytest.mark.slow) for more in (0.0, 0.3))])
def test_intervals_cover_the_difference_of_the_recipes(seeds: tuple[int, int], spread: float) -> None:
    truth, inside, rng = expected(spread), [], np.random.default_rng(0)
    for _ in range(300):
        found, _ = paired_over_seeds(*drawn(rng, 200, seeds, spread))
        inside.append(found.difference.low <= truth <= found.difference.high)
    assert np.mean(inside) >= 0.91, np.mean(inside)  # of 95 % intervals; one standard error is 0.013


def test_an_interval_over_items_alone_does_not() -> None:
    truth, inside, rng = expected(0.3), [], np.random.default_rng(0)
    for _ in range(60):
        first, second = drawn(rng, 1000, (1, 1), 0.3)
        found = paired(first, second)
        inside.append(found.difference.low <= truth <= found.difference.high)
    assert np.mean(inside) < 0.75


def test_equal_recipes_are_seldom_called_different() -> None:
    rng, alarms = np.random.default_rng(3), []
    for _ in range(300):
        arm, _ = drawn(rng, 200, (6, 1), 0.2)
        alarms.append(paired_over_seeds(arm[:, :3], arm[:, 3:])[0].p_value < 0.05)
    assert np.mean(alarms) < 0.07


def test_what_seeds_and_what_items_add_is_told_apart() -> None:
    rng = np.random.default_rng(0)
    stds, shares = [], []
    for _ in range(40):
        arms = drawn(rng, 2000, (5, 5), 0.3)
        _, noise = paired_over_seeds(*arms)
        stds.append(noise.std)
        shares.append(noise.share)
    # a spread of 0.3 logits moves the mean score by 0.3 E[p (1 - p)]
    moved = 0.3 * float(np.mean([p * (1 - p) for p in expit(rng.normal(0, DIFFICULTY, 100_000))]))
    assert np.mean(stds) == pytest.approx(moved, rel=0.15)
    assert np.mean(shares) > 0.7
    assert noise_of_seeds(drawn(rng, 2000, (8, 1), 0.0)[0])[0] < 0.006


def test_passages_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    few = [np.repeat(arm, 10, axis=0) for arm in drawn(rng, 50, (3, 3))]
    alone, _ = paired_over_seeds(*few)
    together, _ = paired_over_seeds(*few, clusters=[n // 10 for n in range(500)])
    assert together.difference.value == alone.difference.value
    assert together.clusters == 50
    width = [one.difference.high - one.difference.low for one in (alone, together)]
    assert width[1] > 1.1 * width[0]


def test_equivalence_needs_seeds_that_agree() -> None:
    rng = np.random.default_rng(1)
    arm = (rng.random((4000, 1)) < 0.5) * np.ones((1, 6))
    found, noise = paired_over_seeds(arm[:, :3], arm[:, 3:], margin=0.02)
    assert found.equivalent and found.p_value == 1.0 and noise.std == 0.0
    apart = arm.copy()
    apart[:200, 0] = 1 - apart[:200, 0]
    apart[:400, 4] = 0.0
    assert not paired_over_seeds(apart[:, :3], apart[:, 3:], margin=0.02)[0].equivalent


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.03), pytest.param(6, 0.06, marks=pytest.mark.slow)])
def test_the_planned_items_find_the_difference_as_often_as_wanted(seeds: int, spread: float) -> None:
    rng = np.random.default_rng(0)
    pilot = drawn(rng, 20_000, (30, 30), spread)
    std, flips = noise_of_seeds(pilot[0])
    discordant = float(np.abs(pilot[0][:, 0] - pilot[1][:, 0]).mean())
    items = items_needed_over_seeds(Noise(expected(spread), discordant, std, flips), seeds)
    found = [paired_over_seeds(*drawn(rng, int(items), (seeds, seeds), spread))[0].p_value < 0.05 for _ in range(250)]
    # between the seeds' noise and the test, which is on the safe side, some power is lost
    assert 0.6 < np.mean(found) < 0.9


def test_more_seeds_need_fewer_items_and_noisy_seeds_none_are_enough() -> None:
    noise = Noise(0.03, 0.2, 0.01, 0.1)
    items = [items_needed_over_seeds(noise, seeds) for seeds in (2, 3, 5, 10)]
    assert items == sorted(items, reverse=True) and items[-1] < items[-2]
    assert math.isinf(items_needed_over_seeds(Noise(0.02, 0.2, 0.03), 2))
    # two seeds 6 points apart at random (a standard deviation of 4 points) hide 3 points even on any number of items
    assert seeds_needed(Noise(0.03, 0.2, 0.04), 1_000_000) > 20
    assert seeds_needed(noise, int(items[2])) == 5
    assert math.isinf(seeds_needed(Noise(0.001, 0.2, 0.05), 1000))


def test_a_plan_is_made_from_seeds_or_from_assumptions() -> None:
    arm, _ = drawn(np.random.default_rng(0), 500, (4, 1))
    measured = plan_comparison(ComparisonPlan(0.05, items=500), arm)
    assert measured["flips"] > 0.1 and measured["discordant"] == pytest.approx(measured["flips"] + 0.05)
    assumed = plan_comparison(ComparisonPlan(0.02, items=5000))
    assert assumed["discordant"] == 0.15 and assumed["seed_std"] == 0.015
    assert assumed["rows"][0] == {"seeds": 2, "items": None} and assumed["seeds"] > 5


def examination(scores: list[float], settings: str = "s", task: str = "gsm8k") -> Examination:
    items = tuple(
        Item(f"i{n}", task, f"i{n}", settings, "", ("",), "", None, {"exact_match": score})
        for n, score in enumerate(scores)
    )
    mean = sum(scores) / len(scores)
    return Examination((Result(task, task, "exact_match", mean, 0, 1, len(items), 0, None, settings),), {task: items})


def test_examinations_of_several_seeds_are_compared() -> None:
    arms = drawn(np.random.default_rng(2), 150, (2, 3))
    sides = [[examination([float(s) for s in arm[:, k]]) for k in range(arm.shape[1])] for arm in arms]
    (found,) = compare_seeds(*sides)
    assert found.seeds is not None and (found.seeds.first, found.seeds.second) == (2, 3)
    assert found.paired == paired_over_seeds(*arms)[0]
    assert found.second - found.first == pytest.approx(found.paired.difference.value)
    assert compare_seeds(sides[0][:1], sides[1][:1]) == compare(sides[0][0], sides[1][0])
    with pytest.raises(UsageError, match="settings differ"):
        compare_seeds(sides[0], [*sides[1], examination([1.0] * 150, "other")])
    with pytest.raises(UsageError, match="no task and metric in common"):
        compare_seeds([*sides[0], examination([1.0] * 150, task="mmlu")], sides[1])
    with pytest.raises(UsageError, match="one examination or more"):
        compare_seeds([], sides[1])


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (np.ones((5, 1)), np.ones((5, 1)), "one seed"),
        (np.ones((5, 2)), np.ones((4, 2)), "same items"),
        (np.full((5, 2), np.nan), np.ones((5, 2)), "finite"),
        (np.ones((1, 2)), np.ones((1, 2)), "at least two"),
    ],
)
def test_wrong_scores_are_refused(first: Any, second: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        paired_over_seeds(first, second)
    for noise in ((0.0, 0.2, 0.01), (0.1, 0.05, 0.01), (0.1, 0.2, 1.0), (0.1, 0.2, 0.01, -1)):
        with pytest.raises(UsageError):
            Noise(*noise)

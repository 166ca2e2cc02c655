"""Numbers of items: equal to published ones, and to what simulated comparisons find."""

import math

import numpy as np
import pytest
from scipy import stats

from armillary.evaluate.power import design_effect, difference_seen, items_needed, items_needed_unpaired
from armillary.recipe import UsageError


def test_published_number_of_unpaired_items():
    # R's help page of power.prop.test: p1 = 0.50, p2 = 0.75, power = 0.90 gives n = 76.7.
    assert items_needed_unpaired(0.25, 0.50, power=0.9) == 77


def test_one_point_needs_thousands_of_items_and_pairs_need_fewer():
    assert items_needed(0.01, discordant=0.1) == 7847
    assert items_needed_unpaired(0.01, 0.5) > 39_000


@pytest.mark.parametrize(("difference", "discordant"), [(0.05, 0.2), (0.1, 0.15), (0.02, 0.04)])
def test_simulated_comparisons_find_the_difference_as_often_as_wanted(difference, discordant):
    items = items_needed(difference, discordant)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(
        items, [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant], 4000
    )
    apart = counts[:, 0] + counts[:, 1]
    statistic = (counts[:, 0] - counts[:, 1]) / np.sqrt(np.maximum(apart, 1))
    assert np.mean(np.abs(statistic) > stats.norm.ppf(0.975)) == pytest.approx(0.8, abs=0.03)


def test_the_difference_seen_is_the_inverse():
    items = items_needed(0.03, 0.12)
    assert difference_seen(items, 0.12) == pytest.approx(0.03, rel=1e-3)
    assert difference_seen(3, 0.1) == math.inf


def test_design_effect():
    rng = np.random.default_rng(1)
    passages = [i // 8 for i in range(4000)]
    alone = rng.integers(0, 2, 4000)
    assert design_effect(alone, passages) == pytest.approx(1, abs=0.15)
    assert design_effect(np.repeat(alone[:500], 8), passages) == pytest.approx(8, rel=0.02)
    assert design_effect([1, 1, 1, 1], [0, 0, 1, 1]) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: items_needed(0, 0.1), "difference is 0"),
        (lambda: items_needed(0.1, 0.05), "discordant share is 0.05"),
        (lambda: items_needed(0.1, 0.2, power=0.3), "power is 0.3"),
        (lambda: items_needed(0.1, 0.2, level=1), "level is 1"),
        (lambda: items_needed_unpaired(0.2, 0.9), "between 0 and 1"),
        (lambda: difference_seen(0, 0.1), "0 items"),
        (lambda: difference_seen(10, 0), "discordant share is 0"),
        (lambda: design_effect([1, 0], ["a", "a"]), "at least two"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()

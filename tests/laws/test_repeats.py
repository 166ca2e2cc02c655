"""The stated power is that of ``best_of`` on generated losses, and seeds and differences invert it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.laws import best_of
from armillary.laws.repeats import SeedNoise, detectable, power, seeds_needed
from armillary.recipe import UsageError


@pytest.mark.parametrize(("seeds", "arms"), [(2, 2), (3, 4), (8, 3)])
@pytest.mark.parametrize("wanted", [0.5, 0.8])
def test_the_power_is_that_of_the_test(seeds, arms, wanted):
    noise, rng, trials = 0.01, np.random.default_rng(seeds * arms), 1500
    difference = detectable(noise, seeds, arms, chance=wanted)
    found = 0
    for _ in range(trials):
        losses = 3 + rng.normal(0, noise, (arms, seeds)) + rng.normal(0, 0.05, seeds)  # a seed's part cancels
        losses[1] -= difference
        choice = best_of({str(i): row for i, row in enumerate(losses)}, reference="0")
        found += choice.name == "1"
    assert found / trials == pytest.approx(wanted, abs=0.04)


@settings(max_examples=60)
@given(
    noise=st.floats(1e-4, 1.0),
    ratio=st.floats(0.2, 5),
    arms=st.integers(2, 8),
    interval=st.sampled_from([0.5, 0.9, 0.99]),
)
def test_the_seeds_needed_are_the_fewest(noise, ratio, arms, interval):
    difference = ratio * noise
    seeds = seeds_needed(difference, noise, arms, interval)
    assert power(difference, noise, seeds, arms, interval) >= 0.8
    assert seeds == 2 or power(difference, noise, seeds - 1, arms, interval) < 0.8
    smallest = detectable(noise, seeds, arms, interval)
    assert smallest <= difference * (1 + 1e-9) and power(smallest, noise, seeds, arms, interval) == pytest.approx(0.8)


def test_the_noise_pools_the_arms_and_its_interval_covers():
    rng, inside, trials = np.random.default_rng(0), 0, 1000
    for _ in range(trials):
        noise = SeedNoise.of([rng.normal(mean, 0.02, 3) for mean in (3, 4, 5)])
        assert noise.freedom == 6
        inside += noise.low <= 0.02 <= noise.high
    assert inside / trials == pytest.approx(0.9, abs=0.03)


def test_the_paired_noise_is_without_what_a_seed_does_to_all_arms():
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        shared = rng.normal(0, 0.5, 3)
        found.append(SeedNoise.paired([mean + shared + rng.normal(0, 0.02, 3) for mean in (3, 4, 5)]).std ** 2)
    assert np.sqrt(np.mean(found)) == pytest.approx(0.02, rel=0.1)


def test_wrong_input_is_refused():
    for groups in ([np.ones(2)], [np.ones(2), np.ones(3)], [np.ones(1), np.ones(1)]):
        with pytest.raises(UsageError, match="at least two arms with the same two or more seeds"):
            SeedNoise.paired(groups)
    with pytest.raises(UsageError, match="no arm has two seeds"):
        SeedNoise.of([np.array([1.0])])
    with pytest.raises(UsageError, match="give one above 0"):
        seeds_needed(0.0, 0.1, 2)
    with pytest.raises(UsageError, match="at least two of each"):
        power(0.1, 0.1, 1, 2)
    assert seeds_needed(1e-6, 1.0, 2) is None
    assert power(0.1, 0.0, 2, 2) == 1

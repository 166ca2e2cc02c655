"""Mixtures for further runs: inside the limits, beyond an edge, around an optimum inside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.laws.mixture import into_bounds, refining_mixtures, weights_at_ends


@st.composite
def situations(draw):
    d = draw(st.integers(2, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lower = rng.uniform(0, 0.8 / d, d) * rng.integers(0, 2, d)
    upper = np.minimum(1, lower + rng.uniform(0.5 / d, 1, d))
    if upper.sum() < 1:
        upper = np.minimum(1, upper / upper.sum() * 1.2)
    upper = np.maximum(upper, lower)
    tried = into_bounds(rng.dirichlet(np.full(d, 0.6), 12), lower, upper)
    return lower, upper, tried, tried[rng.integers(0, 12)] if rng.integers(0, 2) else tried.mean(0)


@settings(max_examples=300)
@given(situations(), st.integers(1, 8), st.integers(0, 9))
def test_every_mixture_is_within_the_limits(situation, count, seed):
    lower, upper, tried, best = situation
    new = refining_mixtures(best, tried, lower, upper, count=count, seed=seed)
    assert new.shape == (count, len(best))
    np.testing.assert_allclose(new.sum(1), 1, atol=1e-6)
    assert (new >= lower - 1e-6).all() and (new <= upper + 1e-6).all()


def test_an_edge_that_the_runs_set_is_passed_and_one_of_the_limits_is_not():
    tried = np.array([[0.2, 0.5, 0.3], [0.5, 0.3, 0.2], [0.4, 0.1, 0.5], [0.3, 0.6, 0.1]])
    lower, upper = np.zeros(3), np.array([0.9, 1.0, 1.0])
    (at,) = [end for end in weights_at_ends(tried[1], tried, lower, upper) if end.domain == 0]
    assert (at.end, at.by) == ("high", "tried")
    new = refining_mixtures(tried[1], tried, lower, upper, count=2, seed=0)
    assert new[:, 0] == pytest.approx([0.5 + 0.6 * 0.2, 0.5 + 0.6 * 0.4])
    at_limit = weights_at_ends(np.array([0.9, 0.05, 0.05]), tried, lower, upper)
    assert [(end.domain, end.end, end.by) for end in at_limit if end.domain == 0] == [(0, "high", "limits")]


def test_floors_of_the_other_domains_are_a_limit():
    """With floors of 0.1 on two others, no weight can exceed 0.8, whatever its own ceiling."""
    tried = np.array([[0.3, 0.4, 0.3], [0.8, 0.1, 0.1]])
    ends = weights_at_ends(tried[1], tried, np.array([0.0, 0.1, 0.1]), np.ones(3))
    found = {(end.domain, end.end, end.by) for end in ends}
    assert found == {(0, "high", "limits"), (1, "low", "limits"), (2, "low", "limits")}


def test_an_optimum_inside_is_surrounded():
    tried = np.array([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    best = np.array([0.3, 0.4, 0.3])
    assert weights_at_ends(best, tried, np.zeros(3), np.ones(3)) == []
    new = refining_mixtures(best, tried, np.zeros(3), np.ones(3), count=200, seed=0)
    assert np.abs(new.mean(0) - best).max() < 0.05
    assert (new.std(0) > 0.05).all()

"""The law of two phases: what it predicts, its optimum, and points within every bound."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.laws import PhaseBounds, PhaseLaw, optimise_phases, phase_design, refining_points, split_points
from armillary.recipe import UsageError

D = 3
FREE = PhaseBounds(np.zeros(D), np.ones(D), np.ones(D), (0.05, 0.6))


def losses(points, weight=3.0):
    """Losses of two domains; the decay is best over a fifth of the tokens, and late tokens count ``weight`` times."""
    stable, annealing, share = split_points(points)
    w = (weight * share / (1 - share + weight * share))[:, None]
    mixed = (1 - w) * stable + w * annealing
    decay = 1 + 0.01 * np.log(share / 0.2) ** 2
    return np.stack([(2 + (0.05 + mixed[:, i]) ** -0.3) * decay for i in (0, 1)], axis=1)


def fitted(n=40, noise=0.001, seed=0):
    points = phase_design(n, FREE, centre=np.full(D, 1 / D), seed=seed)
    rng = np.random.default_rng(seed)
    return points, PhaseLaw().fit(points, losses(points) * np.exp(noise * rng.standard_normal((n, 2))))


def test_it_predicts_new_points_and_their_intervals_cover():
    _, law = fitted()
    new = phase_design(200, FREE, centre=np.full(D, 1 / D), seed=9)[2:]
    measured = losses(new) * np.exp(0.001 * np.random.default_rng(1).standard_normal((198, 2)))
    found = law.predict(new)
    assert np.abs(found.mean / measured - 1).mean() < 0.01
    assert 0.8 < ((found.low <= measured) & (measured <= found.high)).mean() <= 1
    assert law.weight_ in (2.0, 4.0) and (law.held_out_.spearman > 0.95).all()
    target = law.target(new, [0.5, 0.5])
    assert np.abs(target.mean / (measured @ [0.5, 0.5]) - 1).mean() < 0.01


def test_the_optimum_is_near_the_best_point_and_inside_its_flat_region():
    points, law = fitted()
    found = optimise_phases(law, [0.5, 0.5], FREE, support=points, natural=points[0], candidates=3, seed=0)
    candidates = np.array([found.points[0], points[0], [0.5, 0.5, 0, 0.5, 0.5, 0, 0.2]])
    chosen, natural, best = losses(candidates) @ [0.5, 0.5]
    assert natural - chosen > 0.5 * (natural - best)
    assert len(found.points) == 3 and found.error > 0
    assert (found.flat_low <= found.points[0] + 1e-9).all() and (found.points[0] <= found.flat_high + 1e-9).all()
    assert found.points[-1] == pytest.approx((found.points[0] + points[0]) / 2)


@st.composite
def bounded(draw):
    d = draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lower = rng.uniform(0, 0.5 / d, d) * rng.integers(0, 2, d)
    upper = np.maximum(lower, rng.uniform(0.5, 1, d))
    passes = np.maximum(lower, rng.uniform(1.2 / d, 1.5, d))
    return PhaseBounds(lower, upper, passes, (0.05, draw(st.sampled_from([0.05, 0.5, 1.0])))), d, rng


@settings(max_examples=100, deadline=None)
@given(bounded())
def test_every_point_is_within_the_bounds(case):
    bounds, d, rng = case
    centre = bounds.within(np.concatenate([rng.dirichlet(np.ones(d)), np.full(d, 1 / d), [0.1]])[None])[0, :d]
    points = phase_design(16, bounds, centre=centre, seed=1)
    further = refining_points(points[rng.integers(16)], points, bounds, count=4, seed=2)
    for rows in (points, further):
        stable, annealing, share = split_points(rows)
        total = (1 - share)[:, None] * stable + share[:, None] * annealing
        for mixture in (stable, annealing):
            np.testing.assert_allclose(mixture.sum(1), 1, atol=1e-6)
            assert (mixture >= bounds.lower - 1e-6).all() and (mixture <= bounds.upper + 1e-6).all()
        assert (total <= bounds.passes + 1e-5).all()
        assert (share >= bounds.shares[0] - 1e-9).all() and (share <= bounds.shares[1] + 1e-9).all()


def test_a_share_at_the_edge_moves_outward():
    points = phase_design(
        16, PhaseBounds(np.zeros(D), np.ones(D), np.ones(D), (0.1, 0.4)), centre=np.full(D, 1 / D), seed=0
    )
    best = points[points[:, -1].argmax()]
    further = refining_points(best, points, FREE, count=3, seed=0)
    assert (np.diff(further[:, -1]) > 0).all() and further[0, -1] > best[-1]


def test_bad_input_is_refused():
    points, _ = fitted(16)
    with pytest.raises(UsageError, match="11 runs given; a law of two phases needs 12"):
        PhaseLaw().fit(points[:11], losses(points[:11]))
    with pytest.raises(UsageError, match="give 12 or more"):
        phase_design(8, FREE, centre=np.full(D, 1 / D), seed=0)

"""Chinchilla's law: recovers what it should, covers as often as it says, knows how far it goes."""

import numpy as np
import pytest

from armillary.laws import SCALING_FORMS, ExtrapolationError, ExtrapolationWarning, ScalingLaw
from armillary.recipe import UsageError

pytestmark = pytest.mark.filterwarnings("ignore::armillary.laws.ExtrapolationWarning")

TRUE = {"E": 1.7, "A": 400.0, "B": 1500.0, "alpha": 0.35, "beta": 0.37}


def loss(points, p=TRUE):
    return p["E"] + p["A"] / points[:, 0] ** p["alpha"] + p["B"] / points[:, 1] ** p["beta"]


def grid(sizes, tokens):
    return np.array([(n, d) for n in sizes for d in tokens])


def test_recovers_parameters_from_a_wide_ladder_with_outliers():
    rng = np.random.default_rng(0)
    points = grid(np.geomspace(1e7, 1e10, 12), np.geomspace(1e9, 1e12, 12))
    y = loss(points) * np.exp(0.002 * rng.standard_normal(len(points)))
    y[::20] *= 1.05
    law = ScalingLaw(form="chinchilla", bootstraps=40).fit(points, y)
    assert law.parameters_["E"] == pytest.approx(TRUE["E"], rel=0.02)
    assert law.parameters_["alpha"] == pytest.approx(TRUE["alpha"], rel=0.05)
    assert law.parameters_["beta"] == pytest.approx(TRUE["beta"], rel=0.05)
    for name, value in law.parameters_.items():
        assert law.draws_[name].shape == (40,)
        assert abs(value - TRUE[name]) < 6 * law.draws_[name].std()


@pytest.mark.parametrize(
    ("sizes", "tokens", "further"),
    [
        pytest.param(3, 2, 1.0, marks=pytest.mark.slow),
        pytest.param(3, 3, 2.0, marks=pytest.mark.slow),
        pytest.param(4, 4, 4.0, marks=pytest.mark.slow),
        pytest.param(4, 4, 12.0, marks=pytest.mark.slow),
    ],
)
def test_intervals_cover_a_new_run_of_a_small_ladder(sizes, tokens, further):
    """Ladders of a laptop, noise 0.3 %, laws drawn anew each time; the target lies inside, or beyond in N and D."""
    rng = np.random.default_rng(1)
    inside, errors, widths = [], [], []
    for _ in range(25):
        alpha, beta = rng.uniform(0.25, 0.6, 2)
        p = {
            "E": rng.uniform(0.8, 3.0),
            "A": rng.uniform(0.2, 2.5) * 3e5**alpha,
            "B": rng.uniform(0.2, 2.5) * 2e6**beta,
            "alpha": alpha,
            "beta": beta,
        }
        points = grid(np.geomspace(1e5, 8e5, sizes), np.geomspace(1e6, 4e6, tokens))
        y = loss(points, p) * np.exp(0.003 * rng.standard_normal(len(points)))
        target = np.array([[8e5 * further, 4e6 * further]])
        measured = loss(target, p) * np.exp(0.003 * rng.standard_normal(1))
        predicted = ScalingLaw(bootstraps=40).fit(points, y).predict(target)
        inside.append(predicted.low <= measured <= predicted.high)
        errors.append(abs(predicted.mean / measured - 1))
        widths.append((predicted.high - predicted.low) / predicted.mean)
    assert np.mean(inside) >= 0.82
    # A normal error whose scale is known has an interval 4.1 times as wide as its mean size.
    assert np.mean(widths) < 7.5 * np.mean(errors)
    assert np.mean(errors) < 0.02


def test_a_wrong_form_widens_the_interval_far_out_but_not_inside():
    points = grid(np.geomspace(1e6, 1e8, 6), np.geomspace(1e8, 1e10, 6))
    bend = 1 + 0.01 * (np.log(points[:, 0] / 1e7) / 2) ** 3
    right = ScalingLaw(bootstraps=40).fit(points, loss(points), noise=0.002)
    wrong = ScalingLaw(bootstraps=40).fit(points, loss(points) * bend, noise=0.002)
    assert wrong.miss_per_efold_["N"] > 1.5 * right.miss_per_efold_["N"]
    far = np.array([[1e9, 1e11]])

    def width(law, at):
        predicted = law.predict(at)
        return ((predicted.high - predicted.low) / predicted.mean)[0]

    assert width(wrong, far) > 1.5 * width(right, far)
    assert width(right, points[:1]) < 0.3 * width(wrong, far)


def test_runs_that_scatter_much_do_not_widen_the_interval_of_those_that_do_not():
    """The shortest runs go wrong by tens of per cent, as in IsoFLOP grids; the largest sizes are among them."""
    rng = np.random.default_rng(0)
    points = grid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 3e10, 5))
    short = grid(np.geomspace(3e8, 1e9, 4), [2e7, 4e7])
    quiet = loss(points) * np.exp(0.002 * rng.standard_normal(len(points)))
    wild = loss(short) * np.exp(0.3 * rng.standard_normal(len(short)))
    target = np.array([[2e9, 1e11]])
    alone = ScalingLaw(bootstraps=40).fit(points, quiet).predict(target)
    beside = ScalingLaw(bootstraps=40).fit(np.vstack([points, short]), np.append(quiet, wild)).predict(target)
    assert beside.low[0] < loss(target)[0] < beside.high[0]
    assert beside.high[0] - beside.low[0] < 2 * (alone.high[0] - alone.low[0])


def test_held_out_record_names_the_largest_runs_and_the_factor():
    points = grid([1e6, 3e6, 1e7], [1e8, 2e8, 4e8])
    law = ScalingLaw(bootstraps=10).fit(points, loss(points))
    by_size = next(left for left in law.holdout_error_ if left.what.startswith("params"))
    np.testing.assert_array_equal(points[by_size.rows, 0], 1e7)
    np.testing.assert_allclose(by_size.measured, loss(points)[by_size.rows])
    np.testing.assert_allclose(by_size.extrapolation, [1e15 / 1.2e15, 2e15 / 1.2e15, 4e15 / 1.2e15])
    assert {left.what.split()[0] for left in law.holdout_error_} == {"params", "tokens", "compute"}
    np.testing.assert_allclose(law.extrapolation([[1e7, 4e8], [1e8, 4e8]]), [1.0, 10.0])


def test_known_noise_is_used_for_a_new_run():
    points = grid([1e6, 3e6, 1e7], [1e8, 4e8])
    quiet = ScalingLaw(bootstraps=30).fit(points, loss(points), noise=0.001).predict(points)
    loud = ScalingLaw(bootstraps=30).fit(points, loss(points), noise=0.02).predict(points)
    assert ((loud.high - loud.low) > 5 * (quiet.high - quiet.low)).all()


def ratio_loss(points):
    return 1.6 + (300 + 900 * (points[:, 1] / points[:, 0]) ** -0.45) / points[:, 0] ** 0.33


def test_the_form_that_holds_out_there_gets_the_weight():
    rng = np.random.default_rng(0)
    points = grid(np.geomspace(1e8, 1e9, 5), np.geomspace(2e9, 1e11, 6))
    y = ratio_loss(points) * np.exp(0.001 * rng.standard_normal(len(points)))
    auto, plain = ScalingLaw(bootstraps=40).fit(points, y), ScalingLaw(form="chinchilla", bootstraps=40).fit(points, y)
    assert auto.weights_.get("ratio", 0) + auto.weights_.get("interaction", 0) > 0.8
    assert set(auto.held_out_) == {name for name, f in SCALING_FORMS.items() if f.features == ("params", "tokens")}
    far = np.array([[5e9, 1e12], [1e10, 3e11]])
    truth = ratio_loss(far)
    assert np.abs(auto.predict(far).mean / truth - 1).max() < 0.5 * np.abs(plain.predict(far).mean / truth - 1).max()


def test_targets_of_the_same_runs_share_strength_and_keep_their_own_law():
    """A noisy corpus whose exponents are those of four quiet ones is foretold better beside them than alone."""
    points = grid(np.geomspace(1e8, 8e8, 4), np.geomspace(2e9, 3e10, 3))
    far = np.array([[8e9, 3e11]])
    alone, together = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scales, noise = np.array([1.0, 0.8, 1.2, 0.9, 1.1]), np.array([0.02, 0.001, 0.001, 0.001, 0.001])
        true = scales * loss(points)[:, None]
        y = true * np.exp(noise * rng.standard_normal(true.shape))
        said = ScalingLaw(bootstraps=2).fit(points, y).predict(far)
        assert said.mean.shape == (1, 5)
        together.append(said.mean[0, 0] / loss(far)[0] - 1)
        alone.append(ScalingLaw(bootstraps=2).fit(points, y[:, 0]).predict(far).mean[0] / loss(far)[0] - 1)
    assert np.sqrt(np.mean(np.square(together))) < 0.9 * np.sqrt(np.mean(np.square(alone)))


def test_one_column_of_targets_is_a_table_and_equals_the_plain_vector():
    points = grid([1e7, 3e7, 1e8], [1e9, 4e9, 8e9])
    y = loss(points)
    vector, table = ScalingLaw(bootstraps=10).fit(points, y), ScalingLaw(bootstraps=10).fit(points, y[:, None])
    for a, b in zip(vector.predict(points), table.predict(points), strict=True):
        assert b.shape == (len(points), 1)
        np.testing.assert_array_equal(a, b[:, 0])
    assert table.parameters_["E"].shape == (1,)


def test_repeated_seeds_tell_the_noise_of_a_run():
    rng = np.random.default_rng(0)
    points = grid(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 4))
    quiet = np.vstack([points, points])
    y = loss(quiet) * np.exp(0.0003 * rng.standard_normal(len(quiet)))
    law = ScalingLaw(form="chinchilla", bootstraps=20).fit(quiet, y)
    assert 0.0002 < law.noise_ < 0.0005
    single = ScalingLaw(form="chinchilla", bootstraps=20).fit(points, y[: len(points)])
    assert law.noise_ < 0.5 * single.noise_


def test_a_hundred_times_the_compute_is_answered_and_too_far_is_refused_with_what_it_needs():
    points = grid(np.geomspace(2e8, 1.3e9, 4), np.geomspace(2e9, 2.5e11, 5))
    law = ScalingLaw(bootstraps=20).fit(points, loss(points))
    with pytest.warns(ExtrapolationWarning, match="10 times the largest N, 10 times the largest D, 100 times"):
        said = law.predict([[1.3e10, 2.5e12]])
    assert said.low[0] < loss(np.array([[1.3e10, 2.5e12]]))[0] < said.high[0]
    with pytest.raises(
        ExtrapolationError, match=r"row 1 of X lies at 100 .* largest N.* 1e\+04 .* compute.*add runs up to"
    ):
        law.predict([[1e9, 1e11], [1.3e11, 2.5e13]])
    assert issubclass(ExtrapolationError, UsageError)
    factors = law.extrapolation_factors([[1.3e10, 2.5e11]])
    assert {name: v[0] for name, v in factors.items()} == pytest.approx({"N": 10, "D": 1, "compute": 10})
    wider = ScalingLaw(bootstraps=20, max_extrapolation=1e6).fit(points, loss(points))
    assert wider.predict([[1.3e11, 2.5e13]]).mean[0] > 1.6


def test_runs_that_leave_a_far_loss_open_are_refused_for_it():
    rng = np.random.default_rng(0)
    points = grid([1e6, 2e6, 3e6], [1e8, 1.5e8])
    y = loss(points) * np.exp(0.3 * rng.standard_normal(6))
    law = ScalingLaw(bootstraps=40).fit(points, y)
    with pytest.raises(ExtrapolationError, match=r"determine its loss only within a factor of .* either way; add runs"):
        law.predict([[5e7, 5e9]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "cubic"}, "unknown scaling form 'cubic'; give auto or one of chinchilla"),
        ({"features": ("params", "epochs")}, "must include params"),
        ({"features": ("params", "tokens", "colour")}, "reads feature 'colour'"),
    ],
)
def test_unknown_forms_and_features_are_refused(arguments, message):
    points = grid([1e7, 3e7, 1e8], [1e9, 4e9])
    X = np.column_stack([points, np.ones(6)])[:, : len(arguments.get("features", "ND"))]
    with pytest.raises(UsageError, match=message):
        ScalingLaw(**arguments).fit(X, loss(points))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_units_of_sizes_hardly_matter(scale):
    """Only the prior of the irreducible loss depends on them."""
    points = grid([1e7, 3e7, 1e8], [1e9, 4e9, 1e10])
    law = ScalingLaw(bootstraps=10).fit(points, loss(points))
    other = ScalingLaw(bootstraps=10).fit(points * scale, loss(points))
    mean, low, high = law.predict(points * 2)
    assert (np.abs(other.predict(points * 2 * scale).mean - mean) < (high - low) / 8).all()


def test_duplicated_and_hardly_varying_runs_end_in_an_interval_or_in_words():
    few = np.array([[1e7, 1e9], [1e7, 1e9], [1e7, 2e9], [2e7, 1e9], [2e7, 1e9], [2e7, 1e9]])
    law = ScalingLaw(bootstraps=10).fit(few, np.full(6, 3.0))
    said = law.predict(few)
    assert (said.low < said.mean).all() and (said.mean < said.high).all()
    with pytest.raises(UsageError, match="all runs have params"):
        ScalingLaw().fit(np.column_stack([np.full(6, 1e7), np.geomspace(1e8, 1e9, 6)]), np.full(6, 3.0))

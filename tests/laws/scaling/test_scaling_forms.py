"""Every form: derivatives against differences, what it is nested in, and its own parameters from its own data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.laws import SCALING_FORMS, ScalingLaw

RANGES = {
    "params": (1e7, 3e9),
    "tokens": (1e9, 1e11),
    "unique_tokens": (5e8, 2e10),
    "active_params": (1e7, 1e9),
    "total_params": (1e9, 3e10),
    "experts": (1, 64),
    "context": (512, 32768),
    "width": (256, 4096),
    "depth": (4, 64),
}


def runs(form, count, rng):
    low, high = np.log(np.array([RANGES[feature] for feature in form.features])).T
    return rng.uniform(low, high, (count, len(low)))


def around_priors(form, count, rng, width):
    middle = np.array([p.mean for p in form.parameters])
    return middle + width * rng.standard_normal((count, len(middle))) * [p.std for p in form.parameters]


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(SCALING_FORMS)), seed=st.integers(0, 10_000))
def test_derivatives_are_those_of_the_law(name, seed):
    form, rng = SCALING_FORMS[name], np.random.default_rng(seed)
    points, theta = runs(form, 6, rng), around_priors(form, 3, rng, 0.5)
    law, jacobian = form.evaluate(theta, points, points.mean(0))
    assert np.isfinite(law).all()
    for k in range(theta.shape[1]):
        step = np.zeros(theta.shape[1])
        step[k] = 1e-6
        above, below = (form.evaluate(theta + s * step, points, points.mean(0))[0] for s in (1, -1))
        np.testing.assert_allclose(jacobian[:, :, k], (above - below) / 2e-6, atol=2e-6)


@pytest.mark.parametrize("name", sorted(SCALING_FORMS))
def test_natural_parameters_do_not_depend_on_where_the_form_is_centred(name):
    """The same law written at another centre has other terms there but the same A, B, ... in its formula."""
    form, rng = SCALING_FORMS[name], np.random.default_rng(0)
    points, theta = runs(form, 5, rng), around_priors(form, 1, rng, 0.2)
    here = form.natural(theta, points.mean(0))
    assert list(here) == [p.name for p in form.parameters]
    at_one = theta.copy()
    for k, parameter in enumerate(form.parameters):
        if parameter.kind == "term":
            at_one[:, k] = np.log(here[parameter.name])
    np.testing.assert_allclose(
        form.evaluate(at_one, points, np.zeros(points.shape[1]))[0],
        form.evaluate(theta, points, points.mean(0))[0],
        rtol=1e-9,
    )


def test_ratio_is_written_out_as_published_forms_are():
    form, rng = SCALING_FORMS["ratio"], np.random.default_rng(1)
    points, theta = runs(form, 5, rng), around_priors(form, 1, rng, 0.3)
    p = {name: v[0] for name, v in form.natural(theta, points.mean(0)).items()}
    N, D = np.exp(points).T
    expected = p["E"] + (p["A"] + p["B"] * (D / N) ** -p["beta"]) / N ** p["alpha"]
    np.testing.assert_allclose(np.exp(form.evaluate(theta, points, points.mean(0))[0][0]), expected)


def test_wider_forms_contain_the_narrower():
    rng = np.random.default_rng(2)
    chinchilla, kaplan = SCALING_FORMS["chinchilla"], SCALING_FORMS["kaplan"]
    ratio, interaction = SCALING_FORMS["ratio"], SCALING_FORMS["interaction"]
    points, theta = runs(chinchilla, 7, rng), around_priors(chinchilla, 4, rng, 0.3)
    centre, zero = points.mean(0), np.zeros((4, 1))
    law = chinchilla.evaluate(theta, points, centre)[0]
    np.testing.assert_allclose(kaplan.evaluate(np.hstack([theta, zero]), points, centre)[0], law)
    np.testing.assert_allclose(
        interaction.evaluate(np.hstack([theta, zero]), points, centre)[0], ratio.evaluate(theta, points, centre)[0]
    )
    # Fresh tokens are worth what they are, and so are parameters that lose nothing by being many.
    fresh = points[:, [0, 1, 1]]
    more = np.hstack([theta, zero, zero + 20])
    for base, joint in (("chinchilla", ""), ("ratio", "-ratio")):
        repeated, overfitting = SCALING_FORMS[f"data-constrained{joint}"], SCALING_FORMS[f"overfitting{joint}"]
        said = repeated.evaluate(more, fresh, fresh.mean(0))[0]
        np.testing.assert_allclose(said, SCALING_FORMS[base].evaluate(theta, points, centre)[0], rtol=1e-6)
        none = np.hstack([more, zero - 60, zero, zero, zero, zero])
        np.testing.assert_allclose(overfitting.evaluate(none, fresh, fresh.mean(0))[0], said)


@pytest.mark.parametrize(
    "name",
    [
        "active",
        "idle",
        "moe",
        "context",
        "context-factor",
        "width-depth",
        "data-constrained",
        "overfitting",
        "overfitting-ratio",
    ],
)
def test_a_form_foretells_larger_runs_of_its_own_kind(name):
    form, rng = SCALING_FORMS[name], np.random.default_rng(3)
    points, theta = runs(form, 120, rng), around_priors(form, 1, rng, 0.0)
    terms = [k for k, p in enumerate(form.parameters) if p.kind in ("floor", "term")]
    theta[:, terms] += np.log(3.0)
    losses = np.exp(form.evaluate(theta, points, points.mean(0))[0][0])
    size = points[:, [form.features.index(f) for f in form.features if f in ("params", "active_params", "tokens")]]
    large = size.sum(1) > np.quantile(size.sum(1), 0.85)
    seen = losses * np.exp(0.003 * rng.standard_normal(len(losses)))
    law = ScalingLaw(form=name, bootstraps=20).fit(np.exp(points[~large]), seen[~large])
    said = law.predict(np.exp(points[large]))
    assert np.abs(said.mean / losses[large] - 1).mean() < 0.01
    assert np.mean((said.low <= seen[large]) & (seen[large] <= said.high)) > 0.7


def test_features_decide_which_forms_are_weighed():
    rng = np.random.default_rng(4)
    form = SCALING_FORMS["context"]
    points = runs(form, 60, rng)
    theta = around_priors(form, 1, rng, 0.0)
    theta[:, 3] = np.log(1.0)  # the context's term
    losses = np.exp(form.evaluate(theta, points, points.mean(0))[0][0])
    law = ScalingLaw(features=form.features, bootstraps=10).fit(np.exp(points), losses)
    assert set(law.held_out_) == {
        name for name, f in SCALING_FORMS.items() if set(f.features) <= {"params", "tokens", "context"}
    }
    assert law.form_ == "context"
    assert law.weights_["context"] > 0.8


def test_a_loss_that_rises_with_context_is_forecast():
    rng = np.random.default_rng(5)
    sizes = np.array([(n, d, c) for c in (2048, 8192) for n in (5e7, 1e8, 2e8, 4e8) for d in (1e9, 4e9, 1.6e10)])

    def loss(n, d, c):
        return 1.8 + (0.5 * (n / 1e8) ** -0.35 + 0.7 * (d / 1e9) ** -0.3) * (c / 2048) ** 0.03

    seen = loss(*sizes.T) * np.exp(0.002 * rng.standard_normal(len(sizes)))
    far = np.array([[1e9, 3e10, 16384], [1e9, 3e10, 2048]])
    law = ScalingLaw(features=("params", "tokens", "context"), bootstraps=40).fit(sizes, seen)
    said, true = law.predict(far), loss(*far.T)
    assert law.weights_["context-factor"] > law.weights_.get("context", 0)
    assert np.abs(said.mean / true - 1).max() < 0.01
    assert said.mean[0] > said.mean[1]


@pytest.mark.parametrize("helped", [0.0, 0.06])
def test_experts_that_help_little_do_not_spoil_a_forecast(helped):
    rng = np.random.default_rng(6)
    rows = [(n, n * (1 + 0.6 * e), e, 20 * n) for n in (3e7, 6e7, 1.2e8, 2.4e8) for e in (1, 8, 64)]
    rows += [(n, n * (1 + 0.6 * e), e, 60 * n) for n in (3e7, 6e7, 1.2e8) for e in (8,)]
    points = np.array(rows)

    def loss(active, total, _, tokens):
        return 1.8 + 0.5 * (active / 1e8) ** -0.35 * (total / active) ** -helped + 0.6 * (tokens / 2e9) ** -0.3

    seen = loss(*points.T) * np.exp(0.002 * rng.standard_normal(len(points)))
    law = ScalingLaw(features=("active_params", "total_params", "experts", "tokens"), bootstraps=40).fit(points, seen)
    far = np.array([[1e9, 3.94e10, 64, 2e10], [1e9, 1.6e9, 1, 2e10]])
    said = law.predict(far)
    assert np.abs(said.mean / loss(*far.T) - 1).max() < 0.015

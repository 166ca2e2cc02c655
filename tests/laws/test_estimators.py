"""The contract that every law keeps, and how wrong input is refused.

``CASES`` holds a row for each law: its class, the arguments that keep it small, and a function that gives (X, y). A new
law adds a row.
"""

import inspect
import json

import numpy as np
import pytest

from armillary.laws import (
    AnnealLaw,
    Curve,
    ExaminationLaw,
    GainLaw,
    HyperparameterLaw,
    MixtureLaw,
    Prediction,
    ScalingLaw,
    optimise_mixture,
    simplex_design,
)
from armillary.laws.estimator import Estimator
from armillary.laws.files import LAWS, LawFile, read_law, write_law
from armillary.laws.values import attributes_of
from armillary.recipe import UsageError

SMALL = {"bootstraps": 10}


def ladder():
    points = np.array([(n, d) for n in (1e5, 3e5, 1e6) for d in (1e6, 4e6)])
    return points, 1.5 + 20 / points[:, 0] ** 0.3 + 60 / points[:, 1] ** 0.3


def mixtures():
    design = simplex_design(16, np.zeros(3), np.ones(3), centre=[0.5, 0.3, 0.2], seed=0)
    return design, 2 + 0.3 * (0.1 + design) ** -0.5


def corpora():
    points, losses = ladder()
    return points, np.stack([losses, 0.9 * losses, 1.0 + 0.5 * losses], axis=1)


def experts():
    shapes = [(a, 4 * a, e, d) for a in (1e5, 3e5, 1e6) for e in (4, 8) for d in (1e6, 4e6)]
    points = np.array(shapes)
    return points, 1.5 + 20 / points[:, 0] ** 0.3 + 60 / points[:, 3] ** 0.3


def grids():
    grid = [(n, d, lr, bs) for n in (1e5, 4e5) for d in (1e6, 4e6) for lr in (1e-3, 2e-3, 4e-3) for bs in (32, 64)]
    X = np.array(grid)
    basin = 0.01 * np.log(X[:, 2] / 2e-3) ** 2 + 0.004 * np.log(X[:, 3] / 50) ** 2
    return X, (1.5 + 20 / X[:, 0] ** 0.3 + 60 / X[:, 1] ** 0.3) * (1 + basin)


def curves():
    step = np.arange(50.0, 2001.0, 50.0)
    rates = {"constant": np.ones_like(step), "decay": np.clip((2000 - step) / 800, 0.05, 1.0)}
    return [
        Curve(name, 1e6, step, 1e-3 * rate, 2.5 + 4 * (np.cumsum(rate) + 1) ** -0.5 - 0.1 * (1 - rate))
        for name, rate in rates.items()
    ]


def examined():
    losses = np.linspace(3.6, 2.9, 8)
    task = 0.6 * losses - 0.7 + 0.01 * np.cos(9 * losses)
    return losses[:, None], np.stack([task, 0.25 + 0.65 / (1 + np.exp(8 * (task - 1.2)))], axis=1)


def parts():
    sizes = np.repeat([125.0, 250.0, 500.0], 2)
    return sizes[:, None], 0.9 - 3 * sizes**-0.4 + 0.005 * np.cos(9 * np.arange(6))


CASES = {
    "scaling": (ScalingLaw, SMALL, ladder),
    "scaling of several targets": (ScalingLaw, SMALL, corpora),
    "chinchilla": (ScalingLaw, SMALL | {"form": "chinchilla"}, ladder),
    "mixture of experts": (ScalingLaw, SMALL | {"form": "moe"}, experts),
    "mixture": (MixtureLaw, SMALL, mixtures),
    "learning rate and batch size": (HyperparameterLaw, SMALL, grids),
}


@pytest.mark.filterwarnings("ignore::armillary.laws.ExtrapolationWarning")
@pytest.mark.parametrize(("law", "small", "data"), CASES.values(), ids=CASES.keys())
class TestContract:
    def test_constructor_only_stores_its_arguments(self, law, small, data):
        for name, parameter in inspect.signature(law).parameters.items():
            given = object()
            assert getattr(law(**{name: given}), name) is given
            assert getattr(law(), name) is parameter.default
        assert set(vars(law())) == set(inspect.signature(law).parameters)

    def test_fit_returns_self_keeps_arguments_and_input(self, law, small, data):
        X, y = data()
        before = X.copy(), y.copy()
        estimator = law(**small)
        assert estimator.fit(X, y) is estimator
        assert all(getattr(estimator, name) == value for name, value in small.items())
        np.testing.assert_array_equal(X, before[0])
        np.testing.assert_array_equal(y, before[1])
        fitted = set(vars(estimator)) - set(inspect.signature(law).parameters)
        assert any(name.endswith("_") for name in fitted)
        assert all(name.startswith("_") or name.endswith("_") for name in fitted)

    def test_predict_gives_ordered_arrays_that_widen_with_the_interval(self, law, small, data):
        X, y = data()
        estimator = law(**small).fit(X, y)
        narrow, wide = estimator.predict(X[:4], interval=0.5), estimator.predict(X[:4])
        assert isinstance(wide, Prediction)
        assert wide.mean.shape == y[:4].shape
        np.testing.assert_array_equal(narrow.mean, wide.mean)
        assert (wide.low < narrow.low).all() and (narrow.low < narrow.mean).all()
        assert (narrow.mean < narrow.high).all() and (narrow.high < wide.high).all()

    def test_refit_is_equal_and_another_seed_is_not(self, law, small, data):
        X, y = data()
        first, again = law(**small).fit(X, y), law(**small).fit(X[::-1], y[::-1]).fit(X, y)
        for a, b in zip(first.predict(X), again.predict(X), strict=True):
            np.testing.assert_array_equal(a, b)
        other = law(**small, seed=1).fit(X, y)
        assert (other.predict(X).low != first.predict(X).low).any()

    def test_scaled_losses_scale_the_prediction(self, law, small, data):
        X, y = data()
        nats, bits = law(**small).fit(X, y), law(**small).fit(X, y / np.log(2))
        for a, b in zip(nats.predict(X), bits.predict(X), strict=True):
            np.testing.assert_allclose(a / np.log(2), b, rtol=1e-4)

    def test_predict_before_fit_is_refused(self, law, small, data):
        with pytest.raises(UsageError, match="call fit first"):
            law().predict(data()[0])

    def test_wrong_input_is_refused_by_row_and_column(self, law, small, data):
        X, y = data()
        for value in (np.nan, np.inf, -1.0):
            broken = X.copy()
            broken[3, 1] = value
            with pytest.raises(UsageError, match=r"row 3, column 1.* of X"):
                law(**small).fit(broken, y)
            with pytest.raises(UsageError, match=r"row 3, column 1.* of X"):
                law(**small).fit(X, y).predict(broken)
            broken = y.copy()
            broken.reshape(len(y), -1)[2, -1] = value
            with pytest.raises(UsageError, match=rf"row 2, column {broken.reshape(len(y), -1).shape[1] - 1}"):
                law(**small).fit(X, broken)
        with pytest.raises(UsageError, match="at least"):
            law(**small).fit(X[:3], y[:3])
        with pytest.raises(UsageError, match="rows"):
            law(**small).fit(X, y[:-1])
        with pytest.raises(UsageError, match="interval"):
            law(**small).fit(X, y).predict(X, interval=90)
        with pytest.raises(UsageError, match="shape"):
            law(**small).fit(X[:, :1].ravel(), y)


def test_a_row_that_does_not_sum_to_one_is_named():
    X, Y = mixtures()
    X[5] *= 0.9
    with pytest.raises(UsageError, match=r"row 5 of X .* sums to 0\.9"):
        MixtureLaw(**SMALL).fit(X, Y)


def test_unknown_form_and_repeats_of_few_mixtures_are_refused():
    X, Y = mixtures()
    with pytest.raises(UsageError, match="unknown mixture model forest"):
        MixtureLaw(models=("forest",)).fit(X, Y)
    with pytest.raises(UsageError, match="4 different mixtures"):
        MixtureLaw(**SMALL).fit(np.tile(X[:4], (4, 1)), np.tile(Y[:4], (4, 1)))


def test_a_ladder_of_one_size_is_refused():
    X, y = ladder()
    X[:, 0] = 1e6
    with pytest.raises(UsageError, match="at least two values"):
        ScalingLaw(**SMALL).fit(X, y)


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        ([0.5, 0.5, 0.5], [1, 1, 1], "lower bounds sum to 1.5"),
        ([0, 0, 0], [0.2, 0.3, 0.3], "upper bounds sum to 0.8"),
        ([0, 0.4, 0], [1, 0.3, 1], "weight 1: lower 0.4, upper 0.3"),
        ([0, 0], [1, 1], "lower has shape"),
        ([0, np.nan, 0], [1, 1, 1], r"lower\[1\]"),
    ],
)
def test_bounds_that_no_mixture_fulfils_are_refused(lower, upper, message):
    X, Y = mixtures()
    law = MixtureLaw(**SMALL).fit(X, Y)
    with pytest.raises(UsageError, match=message):
        optimise_mixture(law, [1, 0, 0], upper=upper, lower=lower, support=X, references={}, candidates=1, seed=0)
    with pytest.raises(UsageError, match=message):
        simplex_design(8, lower, upper, centre=X[0], seed=0)


def test_a_law_of_curves_keeps_the_same_contract():
    """As ``TestContract``; its X are curves rather than rows."""
    for name, parameter in inspect.signature(AnnealLaw).parameters.items():
        given = object()
        assert getattr(AnnealLaw(**{name: given}), name) is given
        assert getattr(AnnealLaw(), name) is parameter.default
    with pytest.raises(UsageError, match="call fit first"):
        AnnealLaw().predict(curves()[0])
    law = AnnealLaw(**SMALL)
    assert law.fit(curves()) is law and law.bootstraps == SMALL["bootstraps"]
    fitted = set(vars(law)) - set(inspect.signature(AnnealLaw).parameters)
    assert any(name.endswith("_") for name in fitted)
    assert all(name.startswith("_") or name.endswith("_") for name in fitted)
    narrow, wide = law.predict(curves()[1], interval=0.5), law.predict(curves()[1])
    assert isinstance(wide, Prediction) and wide.mean.shape == curves()[1].step.shape
    np.testing.assert_array_equal(narrow.mean, wide.mean)
    assert (wide.low < narrow.low).all() and (narrow.high < wide.high).all()
    again = AnnealLaw(**SMALL).fit(curves()[::-1]).predict(curves()[1])
    for a, b in zip(wide, again, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UsageError, match="interval"):
        law.predict(curves()[0], interval=90)


# For each registered law: how to make one that is quick to fit, what to fit it to, and what to predict.
REGISTERED = {
    "scaling": (lambda: ScalingLaw(**SMALL), ladder, lambda: ladder()[0]),
    "hyperparameters": (lambda: HyperparameterLaw(**SMALL), grids, lambda: grids()[0]),
    "mixture": (lambda: MixtureLaw(**SMALL), mixtures, lambda: mixtures()[0]),
    "anneal": (lambda: AnnealLaw(**SMALL), lambda: (curves(), None), lambda: curves()[0]),
    "examination": (lambda: ExaminationLaw(chance=0.25, items=1000, **SMALL), examined, lambda: examined()[0]),
    "gain": (lambda: GainLaw(items=300, **SMALL), parts, lambda: parts()[0]),
}


@pytest.mark.filterwarnings("ignore::armillary.laws.ExtrapolationWarning")
@pytest.mark.parametrize("kind", LAWS)
class TestRegistered:
    """The contract of scikit-learn's estimators, and of law files."""

    def test_a_file_gives_the_same_predictions_and_intervals_to_the_last_bit(self, kind, tmp_path):
        make, data, at = REGISTERED[kind]
        law = make().fit(*data())
        targets = ["x", "y", "z"][: np.shape(data()[1])[1]] if np.ndim(data()[1]) == 2 else ["loss"]
        write_law(tmp_path / "law.json", LawFile(kind, law, ["f"], targets, None, []), {})
        read = read_law(tmp_path / "law.json").law
        assert type(read) is LAWS[kind] is type(law)
        assert read.get_params() == law.get_params() and repr(read) == repr(law)
        for interval in (0.5, 0.9):
            for before, after in zip(law.predict(at(), interval), read.predict(at(), interval), strict=True):
                np.testing.assert_array_equal(before, after)
        assert vars(read).keys() == vars(law).keys() or kind == "mixture"
        assert read.to_json() == law.to_json()
        # A law that was read can be fitted again.
        again = read.fit(*data()).predict(at())
        for before, after in zip(law.predict(at()), again, strict=True):
            np.testing.assert_array_equal(before, after)

    def test_declarations_match_the_constructor_and_what_fit_sets(self, kind):
        make, data, _ = REGISTERED[kind]
        assert list(LAWS[kind].PARAMS) == list(inspect.signature(LAWS[kind]).parameters)
        law = make().fit(*data())
        for name, (attribute, _) in attributes_of(law.FITTED).items():
            assert not name.startswith("_") and not name.endswith("_")
            assert hasattr(law, attribute)

    def test_params_are_got_set_and_cloned(self, kind):
        make, data, _ = REGISTERED[kind]
        law = make().fit(*data())
        params = law.get_params()
        assert params["bootstraps"] == SMALL["bootstraps"] and params == law.get_params(deep=False)
        copy = law.clone()
        assert type(copy) is type(law) and copy.get_params() == params and set(vars(copy)) == set(params)
        assert copy.set_params(seed=3, bootstraps=4) is copy
        assert copy.get_params() == params | {"seed": 3, "bootstraps": 4} and law.get_params() == params
        assert copy.set_params() is copy

    def test_clone_copies_parameters_that_can_be_changed(self, kind):
        name = {"mixture": "models", "scaling": "features"}.get(kind, "form")
        value = ["linear"]
        law = LAWS[kind](**{name: value})
        copy = law.clone()
        value.append("more")
        assert getattr(copy, name) == ["linear"] and law.get_params()[name] is value

    def test_an_unknown_param_is_refused_and_nothing_is_set(self, kind):
        law = REGISTERED[kind][0]()
        with pytest.raises(UsageError, match=f"{type(law).__name__} has no parameter 'sead'; did you mean 'seed'"):
            law.set_params(bootstraps=4, sead=1)
        with pytest.raises(UsageError, match=r"no parameter 'fit'; it takes .*bootstraps, seed"):
            law.set_params(fit=1)
        assert law.bootstraps == SMALL["bootstraps"] and not hasattr(law, "sead")

    def test_repr_shows_what_is_not_the_default(self, kind):
        name = LAWS[kind].__name__
        assert repr(LAWS[kind]()) == f"{name}()"
        assert repr(LAWS[kind](seed=7, bootstraps=9)) == f"{name}(bootstraps=9, seed=7)"
        law = REGISTERED[kind][0]()
        assert eval(repr(law), {name: LAWS[kind]}).get_params() == law.get_params()

    def test_every_method_of_an_unfitted_law_says_so(self, kind):
        _, _, at = REGISTERED[kind]
        given = {
            "N": 1e6,
            "D": 1e7,
            "size": 1e6,
            "peak_lr": 1e-3,
            "weights": [1, 1],
            "name": "X",
            "run": None,
            "other": 1e-3,
        }
        given |= {"schedule": curves()[0], "given": curves()[0], "at": np.zeros((1, 2)), "X": at()}
        general = {"fit", "get_params", "set_params", "clone", "from_json"}
        checked = 0
        for name, method in inspect.getmembers(LAWS[kind](), inspect.ismethod):
            if not name.startswith("_") and name not in general:
                wanted = inspect.signature(method).parameters.values()
                arguments = {p.name: given[p.name] for p in wanted if p.default is p.empty}
                with pytest.raises(UsageError, match=f"this {LAWS[kind].__name__} is not fitted yet; call fit first"):
                    method(**arguments)
                checked += 1
        assert checked >= 4

    def test_a_fit_that_fails_leaves_no_mixture_of_two(self, kind):
        make, data, at = REGISTERED[kind]
        law = make().fit(*data())
        with pytest.raises(UsageError):
            law.set_params(bootstraps=1).fit(*data())
        with pytest.raises(UsageError, match="call fit first"):
            law.predict(at())

    def test_params_set_after_a_fit_change_no_prediction(self, kind, tmp_path):
        make, data, at = REGISTERED[kind]
        law = make().fit(*data())
        before = law.predict(at())
        changed = {"mixture": {"models": ("linear",)}}.get(kind, {"form": "other"})
        law.set_params(bootstraps=3, seed=5, **changed)
        for one, other in zip(before, law.predict(at()), strict=True):
            np.testing.assert_array_equal(one, other)
        read = type(law).from_json(json.loads(json.dumps(law.to_json())))
        assert read.get_params() == law.get_params()
        for one, other in zip(before, read.predict(at()), strict=True):
            np.testing.assert_array_equal(one, other)


def test_every_registered_law_is_under_the_contract():
    assert REGISTERED.keys() == LAWS.keys()
    assert set(Estimator.__subclasses__()) == set(LAWS.values())

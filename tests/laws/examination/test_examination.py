"""Forecasts of examinations: cover what generated ladders reach, and refuse where the ladder holds no answer."""

import json
import warnings

import numpy as np
import pytest
from scipy.special import expit

from armillary.laws import AtChanceError, ExaminationLaw, ExtrapolationError, ExtrapolationWarning, workbench
from armillary.recipe import UsageError


def ladder(seed, form="linear", runs=8, chance=0.25, items=1000):
    """Losses, task losses and accuracies of ``runs`` models and, last, of a target beyond them."""
    rng = np.random.default_rng(seed)
    losses = np.append(np.sort(rng.uniform(2.9, 3.6, runs))[::-1], 2.65)
    task = 0.6 * losses - 0.7 if form == "linear" else 0.16 * losses**1.7
    middle, steep, top = np.quantile(task, rng.uniform(0, 0.5)), rng.uniform(5, 12), rng.uniform(0.7, 0.98)
    task = task * np.exp(0.005 * rng.standard_normal(runs + 1))
    share = chance + (top - chance) * expit(steep * (middle - task)) + 0.008 * rng.standard_normal(runs + 1)
    return losses[:, None], task, rng.binomial(items, np.clip(share, 0, 1)) / items


def forecast(seed, form, two_steps=True):
    X, task, accuracy = ladder(seed, form)
    y = np.column_stack([task, accuracy]) if two_steps else accuracy
    law = ExaminationLaw(chance=0.25, items=1000).fit(X[:-1], y[:-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        found = law.predict(X[-1:])
    return [float(np.ravel(part)[-1]) for part in found], accuracy[-1]


@pytest.mark.slow
@pytest.mark.parametrize("two_steps", [True, False])
@pytest.mark.parametrize("form", ["linear", "power"])
def test_intervals_cover_the_target(form, two_steps):
    inside, widths = [], []
    for seed in range(60):
        (_, low, high), measured = forecast(seed, form, two_steps)
        inside.append(low <= measured <= high)
        widths.append(high - low)
    assert np.mean(inside) >= 0.83  # of 90 % intervals; one standard error is 0.04
    assert np.mean(widths) < 0.3


def test_a_clear_ladder_is_foretold():
    for seed in (0, 1):
        (mean, low, high), measured = forecast(seed, "linear")
        assert low <= measured <= high
        assert abs(mean - measured) < 0.12


def test_an_uncertain_loss_widens_the_interval():
    X, task, accuracy = ladder(0)
    law = ExaminationLaw(chance=0.25, items=1000).fit(X[:-1], np.column_stack([task, accuracy])[:-1])
    sure, unsure = law.predict([[2.9]]), law.predict([[2.9, 2.7, 3.1]])
    assert ((unsure.high - unsure.low) > 1.5 * (sure.high - sure.low)).all()


def test_a_forecast_does_not_depend_on_the_rows_beside_it():
    X, task, accuracy = ladder(0)
    law = ExaminationLaw(chance=0.25, items=1000).fit(X, np.column_stack([task, accuracy]))
    for alone, beside in zip(law.predict(X[3:4]), law.predict(X), strict=True):
        np.testing.assert_allclose(alone[0], beside[3], rtol=1e-12)


def test_a_ladder_at_chance_is_refused():
    X, task, _ = ladder(3)
    accuracy = np.random.default_rng(0).binomial(1000, 0.25, len(X)) / 1000
    with pytest.raises(AtChanceError, match=r"cannot be predicted: none of the 9 runs answers .* better than chance"):
        ExaminationLaw(chance=0.25, items=1000).fit(X, np.column_stack([task, accuracy]))
    # The same shares without options to guess from are a score.
    assert ExaminationLaw(items=1000).fit(X, np.column_stack([task, accuracy])).above_chance_ == 9


def test_lucky_answers_to_free_questions_are_no_score():
    X, _, _ = ladder(4)
    with pytest.raises(AtChanceError):
        ExaminationLaw(items=1319).fit(X, np.array([0, 0, 1, 0, 2, 1, 0, 3, 2]) / 1319)


def test_false_hopes_are_rare():
    rng = np.random.default_rng(1)
    X, _, _ = ladder(0)
    fitted = 0
    for _ in range(20):
        try:
            ExaminationLaw(chance=0.25, items=500, bootstraps=4).fit(X, rng.binomial(500, 0.25, 9) / 500)
            fitted += 1
        except AtChanceError:
            pass
    assert fitted <= 3


def test_the_better_form_gets_the_weight():
    X, task, accuracy = ladder(1, "power", runs=12)
    task = 0.02 * X[:, 0] ** 3.5
    law = ExaminationLaw(chance=0.25, items=1000).fit(X, np.column_stack([task, accuracy]))
    assert law.weights_["power"] > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X, np.column_stack([y[:, 0], 100 * y[:, 1]])), "row 0, column 1 of y .* between 0 and 1"),
        (lambda X, y: (X, np.column_stack([-y[:, 0], y[:, 1]])), "row 0, column 0 of y .* above 0"),
        (lambda X, y: (-X, y), r"row 0, column 0 \(loss\) of X"),
        (lambda X, y: (X[:4], y[:4]), "at least 5"),
        (lambda X, y: (np.full_like(X, 3.0), y), "all losses are 3"),
        (lambda X, y: (X, np.column_stack([y[:, 0], 1 - y[:, 1]])), "falls as the task losses fall"),
        (lambda X, y: (X, np.column_stack([y, y])), "4 columns"),
        (lambda X, y: (X, y[:-1]), "9 rows and y has 8"),
        (lambda X, y: (np.column_stack([X, X]), y), "shape"),
    ],
)
def test_silly_input_is_refused(change, message):
    X, task, accuracy = ladder(0)
    with pytest.raises(UsageError, match=message):
        ExaminationLaw(chance=0.25, items=1000).fit(*change(X, np.column_stack([task, accuracy])))


@pytest.mark.parametrize(
    ("params", "message"),
    [({"items": 0}, "items is 0"), ({"chance": 1.0}, "chance is 1.0"), ({"form": "cubic"}, "form is 'cubic'")],
)
def test_silly_parameters_are_refused(params, message):
    X, _, accuracy = ladder(0)
    with pytest.raises(UsageError, match=message):
        ExaminationLaw(**{"items": 1000, **params}).fit(X, accuracy)


def test_far_below_the_ladder_there_is_no_answer():
    X, _, accuracy = ladder(0)
    law = ExaminationLaw(chance=0.25, items=1000).fit(X, accuracy)
    with pytest.warns(ExtrapolationWarning, match="a loss of 2"):
        law.predict([[2.0]])
    with pytest.raises(ExtrapolationError, match="add runs with lower losses"):
        law.predict([[1.0]])
    with pytest.raises(UsageError, match="enclose the loss"):
        law.predict([[3.0, 3.1, 3.2]])


def _table(path, rows, names="run,val_loss,task_loss,accuracy"):
    path.write_text("\n".join([names, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture
def points(tmp_path):
    X, task, accuracy = ladder(0)
    return _table(tmp_path / "runs.csv", [[f"r{i}", X[i, 0], task[i], accuracy[i]] for i in range(len(X) - 1)])


COLUMNS = ["val_loss", "task_loss", "accuracy"]


@pytest.mark.filterwarnings("ignore::armillary.laws.ExtrapolationWarning")
def test_from_a_table_through_a_file_to_a_verdict(points, tmp_path):
    summary = workbench.save(tmp_path / "law.json", workbench.fit_examination(points, COLUMNS, 0.25, 1000))
    assert summary["runs_above_chance"] == 6
    json.dumps(summary)
    _, task, accuracy = ladder(0)
    names = "index,val_loss,val_loss_low,val_loss_high"
    at = _table(tmp_path / "at.csv", [["target", 2.65, 2.62, 2.68]], names)
    rows = workbench.predict(tmp_path / "law.json", at)
    assert rows.columns == [
        *("index", "task_loss", "task_loss_low", "task_loss_high", "accuracy", "accuracy_low", "accuracy_high"),
        "extrapolation",
    ]
    measured = _table(tmp_path / "m.csv", [["target", task[-1], accuracy[-1]]], "index,task_loss,accuracy")
    judged = workbench.measured_against(tmp_path / "law.json", at, rows, measured)
    assert [row["inside"] for row in judged["rows"]] == [True, True]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([["x", 2.8, 0.9, 45.2]], COLUMNS, "line 10, column 'accuracy' is '45.2'.*divide percentages by 100"),
        ([["x", 2.8, 0.9, -0.1]], COLUMNS, "line 10, column 'accuracy' is '-0.1'"),
        ([["x", 0, 0.9, 0.5]], COLUMNS, "line 10, column 'val_loss' is '0'"),
        ([["x", 2.8, "nan", 0.5]], COLUMNS, "line 10, column 'task_loss' is 'nan'"),
        ([], ["val_loss"], "has 1 name;"),
        ([], ["val_loss", "accuracy", "accuracy"], "has 'accuracy' twice"),
        ([], ["val_loss", "f1"], "f1"),
        ([], ["val_loss", "accuracy", "task_loss"], "line 2, column 'task_loss'|falls as"),
    ],
)
def test_a_bad_entry_is_named_with_its_line(points, rows, columns, message):
    with open(points, "a") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)
    with pytest.raises(UsageError, match=message):
        workbench.fit_examination(points, columns, 0.25, 1000)


def test_a_damaged_file_says_how_to_fit_it_again(points, tmp_path):
    path = tmp_path / "law.json"
    workbench.save(path, workbench.fit_examination(points, COLUMNS, 0.25, 1000))
    path.write_text(path.read_text().replace('"items": 1000', '"items": 9000'))
    with pytest.raises(UsageError, match=r"fit examination --points runs.csv --columns val_loss,task_loss,accuracy"):
        workbench.predict(path, points)

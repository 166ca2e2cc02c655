"""The gain of fine-tuning on more data: intervals cover generated learning curves, and chance is refused."""

import numpy as np
import pytest
from scipy.special import expit

from armillary.laws import AtChanceError, ExtrapolationError, ExtrapolationWarning, GainLaw, workbench
from armillary.recipe import UsageError

PARTS = (1 / 8, 1 / 4, 1 / 2)


def scored(seed, items=300, seeds=1, chance=0.0):
    """Scores [runs, items] of runs on parts of the data and, last, on all of it. Items differ in difficulty."""
    rng = np.random.default_rng(seed)
    exponent, gain, noise = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.8), np.exp(rng.normal(np.log(0.1), 0.4))
    sizes = np.append(np.repeat(PARTS, seeds), 1.0)
    level = rng.normal(-0.5, 1.0) - gain * ((2 * sizes) ** -exponent - 1) / (2**exponent - 1)
    level = level + noise * rng.standard_normal(len(sizes))
    difficulty = rng.normal(0, rng.uniform(0.5, 2.5), items)
    right = chance + (1 - chance) * expit(level[:, None] - difficulty)
    return sizes[:, None], (rng.random(right.shape) < right).astype(float)


def lost(seed, seeds=1):
    """Losses of such runs: a power law with a floor."""
    rng = np.random.default_rng(seed)
    sizes = np.append(np.repeat(PARTS, seeds), 1.0)
    losses = rng.uniform(0.3, 2.0) + rng.uniform(0.02, 0.5) * sizes ** -rng.uniform(0.1, 0.9)
    return sizes[:, None], losses * np.exp(0.01 * rng.standard_normal(len(sizes)))


def covered(worlds, law, **world):
    inside, widths, errors = [], [], []
    for seed in range(worlds):
        X, y = scored(seed, **world)
        try:
            found = law().fit(X[:-1], y[:-1]).predict(X[-1:])
        except AtChanceError:
            continue
        score = y[-1].mean()
        inside.append(found.low[0] <= score <= found.high[0])
        widths.append(found.high[0] - found.low[0])
        errors.append(found.mean[0] - score)
    assert len(inside) > 0.9 * worlds
    return np.mean(inside), np.mean(widths), np.mean(errors)


@pytest.mark.parametrize("worlds", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_intervals_cover_the_full_run(worlds):
    cases = {
        "one seed": ({}, {}),
        "three seeds": ({}, {"seeds": 3}),
        "few items": ({}, {"items": 60}),
        "four options": ({"chance": 0.25}, {"chance": 0.25}),
    }
    for name, (options, world) in cases.items():
        count = worlds if worlds > 100 or not world else 20
        share, width, bias = covered(count, lambda o=options: GainLaw(**o), **world)
        assert share >= (0.86 if worlds > 100 else 0.8), name  # of 90 % intervals
        assert width < (0.4 if name == "few items" else 0.25), name
        assert abs(bias) < 0.03, name


@pytest.mark.parametrize(
    ("scores", "whole"),
    [
        ([0.0, 0.23, 0.49], 0.92),
        ([0.035, 0.205, 0.605], 0.95),
        ([0.0, 0.655, 0.935], 0.95),
        ([0.285, 0.94, 0.995], 1.0),
        ([0.02, 0.23, 0.675], 0.84),
    ],
)
def test_a_skill_that_appears_between_the_parts_is_covered(scores, whole):
    # A model of 1.3 M parameters, fine-tuned on up to 3,000 questions of one or two families, 200 held out.
    found = GainLaw(items=200, chance=1 / 120).fit([[1], [2], [4]], scores).predict([[8]])
    assert found.low[0] <= whole <= found.high[0]
    assert found.high[0] - found.low[0] < 0.45


@pytest.mark.parametrize("seeds", [1, 2])
def test_intervals_cover_the_full_loss(seeds):
    inside, widths = [], []
    for seed in range(60):
        X, losses = lost(seed, seeds)
        found = GainLaw(form="loss").fit(X[:-1], losses[:-1]).predict(X[-1:])
        inside.append(found.low[0] <= losses[-1] <= found.high[0])
        widths.append((found.high[0] - found.low[0]) / losses[-1])
    assert np.mean(inside) >= 0.82
    assert np.mean(widths) < 0.2


def test_more_seeds_and_items_narrow_the_interval():
    def width(items, seeds):
        laws = [(GainLaw(), *scored(seed, items, seeds)) for seed in range(8)]
        found = [law.fit(X[:-1], y[:-1]).predict(X[-1:]) for law, X, y in laws]
        return np.mean([one.high[0] - one.low[0] for one in found])

    assert width(1000, 3) < 0.85 * width(200, 3)
    assert width(1000, 4) < 0.9 * width(1000, 1)


def test_scores_of_items_say_more_than_their_means():
    X, y = scored(3, seeds=3)
    items, means = GainLaw().fit(X, y), GainLaw(items=300).fit(X, y.mean(axis=1))
    assert items.flips_ < 0.95 and means.flips_ == 1.0
    narrow, wide = items.predict([[2.0]]), means.predict([[2.0]])
    assert narrow.high[0] - narrow.low[0] < wide.high[0] - wide.low[0]
    assert narrow.mean[0] == pytest.approx(wide.mean[0], abs=0.03)


@pytest.mark.parametrize("chance", [0.0, 0.25])
def test_runs_at_chance_cannot_be_predicted(chance):
    scores = chance + np.array([0.0, 0.002, 0.004])
    with pytest.raises(AtChanceError, match="cannot be predicted: the runs on the largest part"):
        GainLaw(chance=chance, items=500).fit([[1], [2], [4]], scores)


def test_a_curve_at_its_end_stays_between_chance_and_one():
    for scores in ([0.97, 0.99, 1.0], [0.02, 0.02, 0.03]):
        found = GainLaw(items=500).fit([[1], [2], [4]], scores).predict([[8]])
        assert 0 <= found.low[0] <= found.mean[0] <= found.high[0] <= 1


def test_a_falling_score_is_predicted_to_fall_no_further_than_it_may():
    found = GainLaw(items=2000).fit([[1], [2], [4]], [0.6, 0.5, 0.42]).predict([[8]])
    assert found.mean[0] < 0.45 and found.low[0] < found.mean[0]


def test_the_unit_of_the_data_does_not_matter():
    _, y = scored(1)
    laws = [GainLaw().fit(np.array([[1.0], [2.0], [4.0]]) * unit, y[:3]) for unit in (1.0, 1e6)]
    for one, other in zip(laws[0].predict([[8.0]]), laws[1].predict([[8e6]]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_far_beyond_the_parts_is_refused_and_one_step_is_not_warned_of(recwarn):
    law = GainLaw(items=300).fit([[1], [2], [4]], [0.2, 0.3, 0.4])
    law.predict([[8]])
    assert not recwarn.list
    with pytest.warns(ExtrapolationWarning, match="4 times beyond"):
        law.predict([[16]])
    with pytest.raises(ExtrapolationError, match="train on a larger part"):
        law.predict([[100]])


@pytest.mark.parametrize(
    ("options", "X", "y", "said"),
    [
        ({}, [[1], [2], [2]], [0.1, 0.2, 0.3], "2 sizes of data"),
        ({}, [[1], [2], [3]], [0.1, 0.2, 1.3], r"row 2, column 0 of y is 1\.3"),
        ({}, [[1], [2], [0]], [0.1, 0.2, 0.3], r"row 2, column 0 \(data\) of X is 0"),
        ({}, [[1], [2], [3]], [0.1, 0.2], "one row for each run"),
        ({"items": 0}, [[1], [2], [3]], [0.1, 0.2, 0.3], "number of held-out items"),
        ({"form": "points"}, [[1], [2], [3]], [0.1, 0.2, 0.3], "score or loss"),
        ({"form": "loss"}, [[1], [2], [3]], [0.1, 0.2, 0.0], "a loss is above 0"),
        ({"chance": 1.0}, [[1], [2], [3]], [0.1, 0.2, 0.3], "chance is 1.0"),
    ],
)
def test_wrong_input_is_refused(options, X, y, said):
    with pytest.raises(UsageError, match=said):
        GainLaw(**{"items": 100} | options).fit(X, y)


def test_tables_are_fitted_and_predicted_by_the_workbench(tmp_path):
    rows = [f"{size},{score}" for size, score in ((100, 0.2), (100, 0.21), ("0.2K", 0.3), (400, 0.4))]
    (tmp_path / "parts.csv").write_text("\n".join(["examples,acc", *rows]) + "\n")
    (tmp_path / "all.csv").write_text("examples\n0.8k\n")
    file = workbench.fit_gain(tmp_path / "parts.csv", ["examples", "acc"], GainLaw(items=400))
    workbench.save(tmp_path / "gain.json", file)
    rows = workbench.predict(tmp_path / "gain.json", tmp_path / "all.csv")
    assert rows.columns == ["examples", "acc", "acc_low", "acc_high", "extrapolation"]
    assert 0.4 < rows.rows[0][1] < 0.6 and rows.rows[0][-1] == 2
    with pytest.raises(UsageError, match="has 1 names"):
        workbench.fit_gain(tmp_path / "parts.csv", ["acc"], GainLaw(items=400))
    (tmp_path / "parts.csv").write_text("examples,acc\n100,20\n200,30\n400,40\n")
    with pytest.raises(UsageError, match=r"parts\.csv, line 2.*divide percentages"):
        workbench.fit_gain(tmp_path / "parts.csv", ["examples", "acc"], GainLaw(items=400))

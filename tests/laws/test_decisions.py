"""Decisions from law files: which family, which run next, which schedule, which learning rate."""

import numpy as np
import pytest

from armillary.laws import decisions, workbench
from armillary.recipe import UsageError


def losses(n, d, gain=1.0):
    return 1.7 + gain * (400 / n**0.34 + 1500 / d**0.35)


@pytest.fixture(scope="module")
def families(tmp_path_factory, write):
    """Two families over one grid; the second needs a good deal less compute."""
    rng = np.random.default_rng(4)
    grid = [(n, d) for n in (1e7, 3e7, 1e8, 3e8) for d in (1e9, 3e9, 1e10, 3e10)]
    rows = [
        [name, n, d, losses(n, d, gain) * np.exp(0.001 * rng.normal())]
        for name, gain in (("dense", 1.0), ("sparse", 0.93))
        for n, d in grid
    ]
    return write(tmp_path_factory.mktemp("families") / "P.csv", ["family", "params", "tokens", "loss"], rows)


def test_the_better_family_is_found_with_its_multiplier(families):
    said = decisions.compare(families, ["params", "tokens", "loss"], "family", ["1B", "1e11"])
    (versus,) = said["against"]
    assert (versus["family"], versus["reference"]) == ("sparse", "dense")
    assert versus["probability_better"] > 0.95
    # Compute at which the dense family reaches what the sparse one reaches, N and D growing alike.
    factors = np.geomspace(1, 10, 4001)
    reached = losses(1e9 * factors**0.5, 1e11 * factors**0.5)
    truth = factors[np.abs(reached - losses(1e9, 1e11, 0.93)).argmin()]
    assert versus["low"] < truth < versus["high"]
    better = losses(1e9, 1e11, 0.93) / losses(1e9, 1e11) - 1
    assert versus["difference_low"] < better < versus["difference_high"]
    assert [row["runs"] for row in said["expected_loss"]] == [16, 16]


@pytest.mark.parametrize(
    ("columns", "family", "at", "said"),
    [
        (["params", "tokens"], "family", ["1B", "1B"], "--columns params,tokens: give three"),
        (["params", "tokens", "loss"], "family", ["1B"], "--at 1B: give parameters and tokens"),
        (["params", "tokens", "loss"], "family", ["1B", "many"], "'many' is not"),
        (["params", "tokens", "loss"], "kind", ["1B", "1B"], "has no column 'kind'"),
        (
            ["params", "tokens", "loss"],
            "family",
            ["7e30", "1e30"],
            "times beyond the fitted runs, more than 1000; give a nearer target",
        ),
        (["params", "tokens", "loss"], "params", ["1B", "1B"], "no family has runs of two sizes"),
    ],
)
def test_bad_comparisons(families, columns, family, at, said):
    with pytest.raises(UsageError, match=said):
        decisions.compare(families, columns, family, at)


def test_the_next_run_narrows_the_prediction(families, tmp_path, write):
    path = tmp_path / "law.json"
    workbench.save(path, workbench.fit_scaling(families, ["params", "tokens", "loss"], "chinchilla"))
    target = write(tmp_path / "target.csv", ["params", "tokens"], [[3e9, 3e11]])
    said = decisions.next_run(path, target, 1e21)
    widths = [run["width_after"] for run in said["runs"]]
    assert widths == sorted(widths) and widths[0] < said["width_now"]
    assert all(run["flops"] <= 1e21 for run in said["runs"])
    with pytest.raises(UsageError, match="budget"):
        decisions.next_run(path, target, 1.0)
    for act, wanted in (
        (lambda: decisions.schedule(path, "1B", 1000), "anneal"),
        (lambda: decisions.hyperparameters(path, "1B", "1B"), "scaling --columns N,D,lr,bs,loss"),
    ):
        with pytest.raises(UsageError, match=f"is a law of kind 'scaling'; give one that 'armillary fit {wanted}"):
            act()


def test_the_best_learning_rate_lies_where_the_basin_was_put(tmp_path, write):
    rng = np.random.default_rng(5)
    rows = [
        [n, d, lr, bs, losses(n, d) * (1 + 0.004 * np.log(lr / 2e-3) ** 2 + 0.002 * np.log(bs / 128) ** 2)]
        for n in (5e7, 2e8)
        for d in (2e9, 8e9)
        for lr in 2e-3 * 2.0 ** np.arange(-2, 3)
        for bs in (64, 128, 256)
    ]
    noisy = [[*row[:4], row[4] * np.exp(0.0005 * rng.normal())] for row in rows]
    points = write(tmp_path / "P.csv", ["N", "D", "lr", "bs", "loss"], noisy)
    path = tmp_path / "law.json"
    law = workbench.fit_scaling(points, ["N", "D", "lr", "bs", "loss"])
    assert law.kind == "hyperparameters"
    workbench.save(path, law)
    said = decisions.hyperparameters(path, "200M", "8B")
    lr, bs = said["best"]
    assert lr["mean"] == pytest.approx(2e-3, rel=0.3) and bs["mean"] == pytest.approx(128, rel=0.4)
    assert lr["flat_from"] < lr["mean"] < lr["flat_to"]
    assert "law's column 'N'" in said["meaning"]


def test_the_best_schedule_ends_with_a_decay(tmp_path, write):
    steps = np.arange(100.0, 4001.0, 50.0)
    area = {}
    for name, start in (("constant", 5000), ("late", 3200), ("early", 2000)):
        lr = 1e-3 * np.where(steps < start, 1.0, np.clip((4000 - steps) / (4000 - start), 0.02, 1.0))
        area[name] = np.cumsum(lr) * 50
        # Progress by the area under the rate, and what the decay gives.
        loss = 2.5 + 1.2 * (area[name] + 0.05) ** -0.35 - 0.15 * (1 - lr / 1e-3)
        (tmp_path / "curves/20M").mkdir(parents=True, exist_ok=True)
        write(
            tmp_path / f"curves/20M/{name}.csv",
            ["step", "lr", "loss"],
            np.stack([steps, lr, loss], axis=1).tolist(),
        )
    path = tmp_path / "law.json"
    workbench.save(path, workbench.fit_anneal(tmp_path / "curves", 100))
    said = decisions.schedule(path, "20M", 4000, out=tmp_path / "schedule.csv")
    rows = workbench.predict(path, tmp_path / "schedule.csv", size="20M")
    assert rows.columns == ["step", "lr", "loss", "loss_low", "loss_high", "extrapolation"]
    assert rows.rows[-1][2] == pytest.approx(said["loss"], rel=1e-6)
    assert said["end_lr"] == pytest.approx(said["end"] * said["peak_lr"]) and said["peak_lr"] == pytest.approx(1e-3)
    assert 0 < said["share"] < 1 and said["low"] < said["loss"] < said["high"]
    assert said["loss"] < 2.5 + 1.2 * (area["constant"][-1] + 0.05) ** -0.35 - 0.05
    assert all(end["lost"] > 0 for end in said["other_ends"] if end["steps"] < 4000)
    with pytest.raises(UsageError, match="times"):
        decisions.schedule(path, "20M", 400_000)


def test_a_next_run_is_one_that_could_be_made(tmp_path, write):
    rows = [[n, n * 4, 4, d, losses(n, d)] for n in (1e7, 3e7, 1e8) for d in (1e9, 3e9, 1e10)]
    columns = ["active_params", "total_params", "experts", "tokens", "loss"]
    points, path = write(tmp_path / "P.csv", columns, rows), tmp_path / "law.json"
    workbench.save(path, workbench.fit_scaling(points, columns))
    target = write(tmp_path / "target.csv", columns[:-1], [[5e8, 4e9, 8, 5e10]])
    for run in decisions.next_run(path, target, 1e21)["runs"]:
        assert run["total_params"] == pytest.approx(8 * run["active_params"]) and run["experts"] == pytest.approx(8)


def test_learning_rates_of_experts_are_fitted_to_all_parameters(tmp_path, write):
    rows = [
        [n / 4, n, d, lr, bs, losses(n, d) * (1 + 0.02 * np.log(lr / 2e-3) ** 2 + 0.01 * np.log(bs / 128) ** 2)]
        for n in (1e8, 4e8)
        for d in (2e9, 8e9)
        for lr in (1e-3, 2e-3, 4e-3)
        for bs in (64, 256)
    ]
    columns = ["active_params", "total_params", "tokens", "lr", "bs", "loss"]
    table = write(tmp_path / "experts.csv", columns, rows)
    law = workbench.fit_scaling(table, columns)
    assert (law.kind, law.features, law.targets) == (
        "hyperparameters",
        ["total_params", "tokens", "lr", "bs"],
        ["loss"],
    )
    workbench.save(tmp_path / "law.json", law)
    said = decisions.hyperparameters(tmp_path / "law.json", "400M", "8e9")
    assert "the law's column 'total_params'" in said["meaning"]

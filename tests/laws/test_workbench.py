"""From tables to law files to tables: names and rows stay together, and a bad row is told by file, line and column."""

import csv

import numpy as np
import pytest
import yaml

from armillary.laws import ExtrapolationError, decisions, workbench
from armillary.laws.table import read_table
from armillary.recipe import UsageError

DOMAINS, TARGETS = ["web", "code", "books"], ["val web", "val code"]


def losses_of(mixtures, size=1e6):
    """[n, 2] losses that fall with a domain's own weight, and with size."""
    own = mixtures @ np.array([[1.0, 0.1], [0.1, 1.0], [0.3, 0.1]])
    return (1.5 + 2.0 * (0.05 + own) ** -0.3) * (size / 1e6) ** -0.05


@pytest.fixture(scope="module")
def runs(tmp_path_factory, write):
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    mixtures = rng.dirichlet(np.ones(3), 40)
    losses = losses_of(mixtures) * np.exp(0.003 * rng.normal(size=(40, 2)))
    labels = [f"run{i}" for i in range(40)]
    M = write(
        folder / "M.csv", ["index", *DOMAINS], [[i, *np.round(m, 4)] for i, m in zip(labels, mixtures, strict=True)]
    )
    shuffled = rng.permutation(40)
    L = write(folder / "L.csv", ["index", *TARGETS], [[labels[i], *losses[i]] for i in shuffled])
    return folder, M, L


@pytest.fixture(scope="module")
def mixture_law(runs):
    folder, M, L = runs
    path = folder / "law.json"
    law = workbench.fit_mixture(M, L)
    workbench.save(path, law)
    return path


def test_mixture_rows_are_matched_by_index_and_columns_by_name(runs, mixture_law, write):
    folder, M, _ = runs
    read = read_table(M)
    order = np.arange(40)[::-1]
    at = write(
        folder / "at.csv",
        ["code", "books", "index", "web"],
        [[read.rows[i][2], read.rows[i][3], read.rows[i][0], read.rows[i][1]] for i in order],
    )
    rows = workbench.predict(mixture_law, at)
    assert rows.columns == [
        "index",
        *(name + end for name in TARGETS for end in ("", "_low", "_high")),
        "extrapolation",
    ]
    assert [row[0] for row in rows.rows] == [f"run{i}" for i in order]
    mixtures = read.numbers(DOMAINS)[order]
    truth = losses_of(mixtures / mixtures.sum(1, keepdims=True))
    said = np.array([row[1:] for row in rows.rows], float)
    assert np.abs(said[:, [0, 3]] / truth - 1).max() < 0.03
    assert (said[:, [1, 4]] < said[:, [0, 3]]).all() and (said[:, [0, 3]] < said[:, [2, 5]]).all()


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        ("M", ("run3", 1, "0.9"), r"M\.csv, line 5: the weights of columns 'web' to 'books' sum to"),
        ("M", ("run3", 1, "nan"), r"M\.csv, line 5, column 'web' is 'nan'; give a finite number"),
        ("M", ("run3", 1, "-0.1"), r"M\.csv, line 5, column 'web' is '-0.1'; it must be at least 0"),
        ("M", ("run3", 0, "run4"), r"M\.csv, line 6, column 'index' is 'run4'; line 5 has the same"),
        ("M", ("run3", 0, "other"), r"M\.csv, line 5, column 'index' is 'other'; .*L\.csv has no such index"),
        ("L", ("run3", 1, "-2.5"), r"L\.csv, line \d+, column 'val web' is '-2.5'; it must be above 0"),
        ("L", ("run3", 2, ""), r"L\.csv, line \d+, column 'val code' is ''; it is empty"),
        ("L", ("index", 0, "run"), r"L\.csv has no column 'index'; its columns are run, val web, val code"),
    ],
)
def test_bad_mixture_rows(runs, tmp_path, table, change, said, write):
    paths = {"M": runs[1], "L": runs[2]}
    label, column, entry = change
    rows = list(csv.reader(paths[table].open()))
    next(row for row in rows if row[0] == label)[column] = entry
    paths[table] = write(tmp_path / f"{table}.csv", rows[0], rows[1:])
    with pytest.raises(UsageError, match=said):
        workbench.fit_mixture(paths["M"], paths["L"])


def test_what_the_law_does_not_know_is_refused(runs, mixture_law, tmp_path, write):
    at = write(tmp_path / "new.csv", ["index", *DOMAINS, "poems"], [[1, 0.2, 0.3, 0.4, 0.1]])
    with pytest.raises(UsageError, match=r"new\.csv: the law knows no column 'poems'; it was fitted to web, code, boo"):
        workbench.predict(mixture_law, at)
    at = write(tmp_path / "new.csv", ["index", "web", "code"], [[1, 0.5, 0.5]])
    with pytest.raises(UsageError, match=r"new\.csv has no column 'books'"):
        workbench.predict(mixture_law, at)
    for options, said in [
        ({"given": at}, "--given is for annealing laws"),
        ({"size": "many"}, "'many' is not the size"),
    ]:
        with pytest.raises(UsageError, match=said):
            workbench.predict(mixture_law, at, **options)


def test_sizes_of_mixture_runs(tmp_path, write):
    rng = np.random.default_rng(1)
    mixtures = rng.dirichlet(np.ones(3), 60)
    sizes = np.where(np.arange(60) < 40, 1e6, 6e7)
    losses = losses_of(mixtures, sizes[:, None])
    M = write(
        tmp_path / "M.csv",
        ["index", *DOMAINS, "params"],
        [[i, *m, s] for i, (m, s) in enumerate(zip(mixtures, sizes, strict=True))],
    )
    L = write(tmp_path / "L.csv", ["index", *TARGETS], [[i, *row] for i, row in enumerate(losses)])
    law = workbench.fit_mixture(M, L, "params")
    assert law.features == DOMAINS and law.targets == TARGETS
    words = write(
        tmp_path / "W.csv",
        ["index", *DOMAINS, "params"],
        [[i, *m, "1M" if s == 1e6 else "60M"] for i, (m, s) in enumerate(zip(mixtures, sizes, strict=True))],
    )
    assert np.array_equal(workbench.fit_mixture(words, L, "params").law.run_sizes_, sizes)
    (tmp_path / "W.csv").write_text((tmp_path / "W.csv").read_text().replace("60M", "big"))
    with pytest.raises(UsageError, match=r"W\.csv, line 42, column 'params' is 'big'; write a model's parameters"):
        workbench.fit_mixture(words, L, "params")
    new = rng.dirichlet(np.ones(3), 10)
    at = write(tmp_path / "new.csv", ["index", "params", *DOMAINS], [[i, 6e8, *m] for i, m in enumerate(new)])
    rows = workbench.predict_mixture(law, at, 0.9, None)
    said = np.array([row[1:] for row in rows.rows], float)
    assert np.allclose(said[:, -1], 10)
    assert np.abs(said[:, [0, 3]] / losses_of(new, 6e8) - 1).max() < 0.05
    plain = write(tmp_path / "plain.csv", ["index", *DOMAINS], [[i, *m] for i, m in enumerate(new)])
    assert workbench.predict_mixture(law, plain, 0.9, 6e8).rows == rows.rows
    with pytest.raises(UsageError, match=r"new\.csv has the sizes in column 'params'; leave out --size"):
        workbench.predict_mixture(law, at, 0.9, 6e8)
    with pytest.raises(ExtrapolationError, match="times beyond the fitted runs, more than 100000"):
        workbench.predict_mixture(law, plain, 0.9, 1e20)


def test_the_optimum_keeps_the_limits(runs, mixture_law, tmp_path):
    target, limits = tmp_path / "t.yaml", tmp_path / "l.yaml"
    target.write_text("val web: 1\nval code: 1\n")
    limits.write_text(
        "floors: {books: 0.1}\nceilings: {code: 0.4}\nbudget_tokens: 1.0e+9\n"
        "domain_tokens: {web: 2.0e+8, code: 9.0e+8, books: 9.0e+8}\nmax_epochs: 2\n"
    )
    law = mixture_law
    found = decisions.optimise(law, target, limits, None, 2)
    decisions.write_yaml(tmp_path / "mixture.yaml", found)
    weights = yaml.safe_load((tmp_path / "mixture.yaml").read_text())["weights"]
    assert list(weights) == DOMAINS and sum(weights.values()) == pytest.approx(1, abs=1e-9)
    assert weights["books"] >= 0.1 and weights["code"] <= 0.4 and weights["web"] <= 0.4
    assert set(found["better_than"]) == {"natural", "uniform"}
    for text in ("weights: {val web: 1, val code: 1}\n", "target: {val web: 2, val code: 2}\n"):
        target.write_text(text)
        assert decisions.optimise(law, target, limits, None, 2) == found
    target.write_text("val web: 1\nval code: 0\n")
    limits.write_text("limits:\n  floors: {books: 0.3}\n")
    assert decisions.optimise(law, target, limits, None, 1)["weights"]["books"] >= 0.3
    for text, said in [
        ("val web: 0\n", r"t\.yaml:1: weights: no domain has a weight above 0"),
        ("val web: 1\nval cod: 1\n", r"t\.yaml: weights\.val cod: the law knows no validation domain of that name"),
        ("val web: -1\n", r"t\.yaml:1: weights\.val web: Input should be greater than or equal to 0"),
        ("weights: {}\n", r"t\.yaml:1: weights: "),
    ]:
        target.write_text(text)
        with pytest.raises(UsageError, match=said):
            decisions.optimise(law, target, limits, None, 2)
    target.write_text("val web: 1\n")
    for text, said in [
        ("floors: {poems: 0.1}\n", r"l\.yaml: floors\.poems: the law knows no training domain"),
        ("ceilings: {web: 0.1, code: 0.1, books: 0.1}\n", "upper bounds sum to 0.3"),
        ("domain_tokens: {web: 5}\n", r"l\.yaml:1: budget_tokens: the limit on epochs needs the tokens"),
    ]:
        limits.write_text(text)
        with pytest.raises(UsageError, match=said):
            decisions.optimise(law, target, limits, None, 2)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory, write):
    rng = np.random.default_rng(2)
    rows = [
        [
            f"r{i}",
            n,
            d,
            1.7 + 400 / n**0.34 + 1500 / d**0.35 + 0.003 * rng.normal(),
            1.2 + 300 / n**0.34 + 900 / d**0.35,
        ]
        for i, (n, d) in enumerate((n, d) for n in (1e7, 3e7, 1e8, 3e8) for d in (1e9, 3e9, 1e10, 3e10))
    ]
    return write(tmp_path_factory.mktemp("ladder") / "P.csv", ["run", "params", "tokens", "loss", "other"], rows)


def test_scaling_columns(ladder, tmp_path, write):
    law = workbench.fit_scaling(ladder, ["params", "tokens", "loss", "other"])
    assert (law.kind, law.features, law.targets) == ("scaling", ["params", "tokens"], ["loss", "other"])
    at = write(tmp_path / "new.csv", ["tokens", "params"], [[6e10, 6e8]])
    rows = workbench.predict_points(law, at, 0.9)
    assert rows.columns[:2] == ["tokens", "params"] and rows.columns[2:5] == ["loss", "loss_low", "loss_high"]
    said = dict(zip(rows.columns, rows.rows[0], strict=True))
    truth = 1.7 + 400 / 6e8**0.34 + 1500 / 6e10**0.35
    assert said["loss_low"] < truth < said["loss_high"] and said["loss"] == pytest.approx(truth, rel=0.01)
    assert said["extrapolation"] == pytest.approx(4)
    # The same under other names, by place, with a named form.
    plain = read_table(ladder)
    other = write(tmp_path / "O.csv", ["size", "seen", "y"], [[r[1], r[2], r[3]] for r in plain.rows])
    named = workbench.fit_scaling(other, ["size", "seen", "y"], "chinchilla")
    assert named.features == ["size", "seen"] and named.targets == ["y"]


@pytest.mark.parametrize(
    ("columns", "form", "said"),
    [
        (["params", "tokens", "lost"], "auto", r"P\.csv has no column 'lost'"),
        (["params", "tokens"], "auto", "names no loss"),
        (["params", "loss"], "auto", r"none is known as tokens \(names such as tokens, d,"),
        (["params", "tokens", "loss"], "cubic", "no form 'cubic'; take one of auto, chinchilla"),
        (
            ["params", "tokens", "loss"],
            "data-constrained",
            "--form data-constrained takes params, tokens, unique_tokens",
        ),
        (["params", "params", "loss"], "auto", "names 'params' twice"),
    ],
)
def test_bad_scaling_columns(ladder, columns, form, said):
    with pytest.raises(UsageError, match=said):
        workbench.fit_scaling(ladder, columns, form)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["params", "total_params", "tokens", "loss"], "'params' and 'total_params' are both known as params"),
        (["params", "lrate", "tokens", "loss"], "'lrate' stands among what the law takes and is known as none"),
    ],
)
def test_no_column_becomes_a_loss_by_accident(tmp_path, write, columns, said):
    points = write(tmp_path / "P.csv", columns, [[1e7, 2e7, 1e9, 3.0]])
    with pytest.raises(UsageError, match=said):
        workbench.fit_scaling(points, columns)


def test_mixture_of_experts_by_name(tmp_path, write):
    rows = [
        [n, n * e, e, d, 1.7 + 400 / n**0.34 / e**0.05 + 1500 / d**0.35]
        for n in (1e7, 3e7, 1e8)
        for e in (2, 8)
        for d in (1e9, 4e9)
    ]
    columns = ["active_params", "total_params", "experts", "tokens", "loss"]
    law = workbench.fit_scaling(write(tmp_path / "P.csv", columns, rows), columns)
    assert sorted(law.features) == sorted(columns[:-1]) and law.targets == ["loss"]


def test_an_index_as_other_programs_write_it(runs, tmp_path, write):
    _, M, L = runs
    mixtures, losses = (list(csv.reader(path.open())) for path in (M, L))
    for row in mixtures[1:]:
        row[0] = row[0].removeprefix("run")
    for row in losses[1:]:
        row[0] = row[0].removeprefix("run") + ".0"
    mine = workbench.fit_mixture(
        write(tmp_path / "M.csv", mixtures[0], mixtures[1:]), write(tmp_path / "L.csv", losses[0], losses[1:])
    )
    assert np.array_equal(mine.law.held_out_.measured, workbench.fit_mixture(M, L).law.held_out_.measured)

"""From tables to law files to tables: names and rows stay together, and a bad row is told by file, line and column."""

import csv
import json
import re

import numpy as np
import pytest
import yaml

from armillary.laws import (
    ExtrapolationError,
    ExtrapolationWarning,
    SetAsideWarning,
    decisions,
    read_curve,
    read_curves,
    workbench,
)
from armillary.laws.columns import is_loss
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
    ("header", "columns", "said"),
    [
        ("parms,tokens,loss", None, "'parms' is close to 'params'"),
        ("params,tokns,loss", None, "'tokns' is close to 'tokens'"),
        ("params (M),tokens,loss", None, "'params (M)' may be params in millions: give the sizes as 10M or 10000000"),
        ("params,tokens_in_billions,loss", None, "'tokens_in_billions' may be tokens in billions"),
        ("Parameter,Tokens,Loss", None, "'Parameter' is close to 'parameters'"),
        ("params,tokens,los", None, "'los' is close to 'loss'"),
        ("params,tokens,valid_los", None, "'valid_los' is close to 'valid_loss'"),
        ("params,tokens,loss", ["params", "tokens", "los"], "has no column 'los'; did you mean 'loss'?"),
        ("params,tokens,Loss", ["parms", "tokens", "Loss"], "has no column 'parms'; did you mean 'params'?"),
    ],
)
def test_a_header_that_is_nearly_right_names_the_nearest_known_column(header, columns, said, tmp_path):
    file = tmp_path / "P.csv"
    file.write_text("\n".join([header, *(f"{10**i},{10**i}0,{9 - i}" for i in range(1, 8))]))
    with pytest.raises(UsageError, match=re.escape(said)):
        workbench.fit_scaling(file, columns)


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        ("M", ("run3", 1, "0.9"), r"M\.csv, line 5: the weights of columns 'web' to 'books' sum to"),
        ("M", ("run3", 1, "nan"), r"M\.csv, line 5, column 'web' is 'nan'; give a finite number"),
        ("M", ("run3", 1, "-0.1"), r"M\.csv, line 5, column 'web' is '-0.1'; it must be at least 0"),
        ("M", ("run3", 0, "run4"), r"M\.csv, line 6, column 'index' is 'run4'; line 5 has the same"),
        ("M", ("run3", 0, "other"), r"M\.csv, line 5, column 'index' is 'other'; .*L\.csv has no such index"),
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
    with pytest.raises(UsageError, match=r"new\.csv: the law has no column 'poems'; it was fitted to web, code, boo"):
        workbench.predict(mixture_law, at)
    at = write(tmp_path / "new.csv", ["index", "web", "code"], [[1, 0.5, 0.5]])
    with pytest.raises(UsageError, match=r"new\.csv has no column 'books'"):
        workbench.predict(mixture_law, at)
    for options, said in [
        ({"given": at}, "--given is for annealing laws"),
        ({"size": "many"}, "'many' is not a model size"),
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
    with pytest.raises(UsageError, match=r"W\.csv, line 42, column 'params' is 'big'; give a number such as 10M"):
        workbench.fit_mixture(words, L, "params")
    new = rng.dirichlet(np.ones(3), 10)
    at = write(tmp_path / "new.csv", ["index", "params", *DOMAINS], [[i, 6e8, *m] for i, m in enumerate(new)])
    rows = workbench.predict_mixture(law, at, 0.9, None)
    said = np.array([row[1:] for row in rows.rows], float)
    assert np.allclose(said[:, -1], 10)
    assert np.abs(said[:, [0, 3]] / losses_of(new, 6e8) - 1).max() < 0.05
    plain = write(tmp_path / "plain.csv", ["index", *DOMAINS], [[i, *m] for i, m in enumerate(new)])
    assert workbench.predict_mixture(law, plain, 0.9, 6e8).rows == rows.rows
    # Nothing says how many tokens those models see: ranks, and no interval.
    assert (said[:, [1, 4]] == 0).all() and np.isinf(said[:, [2, 5]]).all()
    seen = write(
        tmp_path / "T.csv",
        ["index", *DOMAINS, "n_params", "n_tokens"],
        [[i, *m, s, "1B"] for i, (m, s) in enumerate(zip(mixtures, sizes, strict=True))],
    )
    both = workbench.fit_mixture(seen, L)
    assert (both.features, both.size_column, both.tokens_column) == (DOMAINS, "n_params", "n_tokens")
    workbench.save(tmp_path / "law.json", both)
    rows = workbench.predict(tmp_path / "law.json", plain, size="600M", tokens="1B")
    assert np.isfinite(np.array([row[1:] for row in rows.rows], float)).all()
    with pytest.warns(ExtrapolationWarning, match="the level of the losses is unknown"):
        rows = workbench.predict(tmp_path / "law.json", plain, size="600M", tokens="15B")
    assert rows.rows[0][3] == np.inf
    target = tmp_path / "t.yaml"
    target.write_text("val web: 1\n")
    found = decisions.optimise(tmp_path / "law.json", target, None, "600M", 1, "15B")
    assert found["level_known"] is False and found["predicted"]["high"] == np.inf
    with pytest.raises(UsageError, match=r"new\.csv has the size in column 'params'; leave out --size"):
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
    target.write_text("target: {val web: 2, val code: 2}\n")
    assert decisions.optimise(law, target, limits, None, 2) == found
    target.write_text("weights: {val web: 1, val code: 0}\n")
    limits.write_text("limits:\n  floors: {books: 0.3}\n")
    assert decisions.optimise(law, target, limits, None, 1)["weights"]["books"] >= 0.3
    for text, said in [
        ("val web: 0\n", r"t\.yaml:1: weights: no domain has a weight above 0"),
        ("val web: 1\nval cod: 1\n", r"t\.yaml: weights\.val cod: the law has no validation domain of that name"),
        ("val web: -1\n", r"t\.yaml:1: weights\.val web: must be at least 0"),
        ("weights: {}\n", r"t\.yaml:1: weights: "),
    ]:
        target.write_text(text)
        with pytest.raises(UsageError, match=said):
            decisions.optimise(law, target, limits, None, 2)
    target.write_text("val web: 1\n")
    for text, said in [
        ("floors: {poems: 0.1}\n", r"l\.yaml: floors\.poems: the law has no training domain"),
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
        (["params", "tokens"], "auto", "has no loss"),
        (["params", "loss"], "auto", r"none is known as tokens \(names such as tokens, d,"),
        (["params", "tokens", "loss"], "cubic", "unknown form 'cubic'; choose one of auto, chinchilla"),
        (
            ["params", "tokens", "loss"],
            "data-constrained",
            "--form data-constrained needs params, tokens, unique_tokens",
        ),
        (["params", "params", "loss"], "auto", "has 'params' twice"),
    ],
)
def test_bad_scaling_columns(ladder, columns, form, said):
    with pytest.raises(UsageError, match=said):
        workbench.fit_scaling(ladder, columns, form)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["params", "total_params", "tokens", "loss"], "'params' and 'total_params' are both known as params"),
        (["params", "lrate", "tokens", "loss"], "'lrate' is listed as an input of the law, but is not a known name"),
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


def ladder_rows(seed=0, noise=0.003):
    rng = np.random.default_rng(seed)
    sizes = [(n, d) for n in (1e7, 3e7, 1e8, 3e8) for d in (1e9, 3e9, 1e10, 3e10)]
    return [[n, d, (1.7 + 400 / n**0.34 + 1500 / d**0.35) * np.exp(noise * rng.normal())] for n, d in sizes]


@pytest.mark.parametrize(
    "columns",
    [
        ["params", "tokens", "loss"],
        ["n_params", "n_tokens", "val_loss"],
        ["Params", "Tokens", "Loss"],
        ["N", "D", "bpb"],
        ["parameter_count", "tokens_seen", "validation/c4"],
        ["num_params", "trainTokens", "eval/loss"],
        ["non_embedding_params", "total_tokens", "bits per byte"],
        ["N", "D", "L"],
        ["trainable_params", "train/total_tokens", "log_perplexity"],
    ],
)
def test_columns_are_known_by_the_names_people_use(tmp_path, write, columns):
    rows = ladder_rows()
    law = workbench.fit_scaling(write(tmp_path / "P.csv", columns, rows))
    assert (law.features, law.targets) == (columns[:2], columns[2:])
    # The three words of the docs find them, too.
    assert workbench.fit_scaling(tmp_path / "P.csv", ["params", "tokens", "loss"]).targets == columns[2:]
    at = write(tmp_path / "at.csv", ["tokens", "params"], [["60B", "600M"]])
    assert workbench.predict_points(law, at, 0.9).rows[0][2] == pytest.approx(2.36, rel=0.01)


def test_no_unknown_column_is_a_loss_and_each_is_reported(tmp_path, write):
    rows = [[f"m{i}", *row, 0.3 + 0.01 * i, 1e-3, 7.0] for i, row in enumerate(ladder_rows())]
    points = write(tmp_path / "P.csv", ["model", "params", "tokens", "val_loss", "mmlu", "lr", "train_hours"], rows)
    law = workbench.fit_scaling(points)
    assert law.targets == ["val_loss"]
    summary = workbench.save(tmp_path / "law.json", law)
    roles = {one["column"]: one["role"] for one in summary["columns"]}
    assert roles == {
        "model": "ignored", "params": "params", "tokens": "tokens", "val_loss": "loss", "mmlu": "ignored",
        "lr": "ignored", "train_hours": "ignored",
    }  # fmt: skip
    read, ignored = workbench.columns_read(summary)
    assert read == "columns read: params, tokens, val_loss = loss"
    assert "model (text)" in ignored and "mmlu (if it is a loss: --columns params,tokens,val_loss,mmlu)" in ignored
    assert "lr (known as lr; include it with --columns)" in ignored


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("loss", True), ("Val Loss", True), ("loss_c4_en", True), ("validation/pile", True), ("bpb", True),
        ("metric/the_pile_arxiv_val_loss", True), ("nats", True), ("cross_entropy", True),
        ("dolma_bits_per_byte", True),
        ("accuracy", False), ("eval/acc", False), ("loss_std", False), ("val_ppl", False), ("z_loss", False),
        ("test/samples_per_second", False), ("step", False), ("score", False), ("aux_loss", False), ("d", False),
        ("val_log_ppl", True), ("l", False), ("layers", False),
    ],
)  # fmt: skip
def test_names_of_losses(name, loss):
    assert is_loss(name) is loss


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["N", "params", "tokens", "loss"], r"P\.csv: columns 'N' and 'params' are both known as params; list"),
        (["params", "D", "tokens_seen", "loss"], r"P\.csv: columns 'D' and 'tokens_seen' are both known as tokens"),
        (["params", "tokens", "quality", "x"], r"P\.csv: no column is known as a loss .*--columns params,tokens,NAME"),
        (["params", "seen", "loss", "x"], r"P\.csv: no column is known as tokens \(names such as tokens, d"),
    ],
)
def test_what_only_the_user_knows_is_asked(tmp_path, write, columns, said):
    points = write(tmp_path / "P.csv", columns, [[1e7, 1e7, 1e9, 3.0]] * 2)
    with pytest.raises(UsageError, match=said):
        workbench.fit_scaling(points)


@pytest.mark.parametrize(
    ("entry", "column"), [("10MM", "params"), ("10^7", "params"), ("8 billion", "tokens"), ("3.1%", "loss")]
)
def test_a_known_column_without_numbers_names_the_first_entry(tmp_path, write, entry, column):
    columns = ["params", "tokens", "loss"]
    points = write(tmp_path / "P.csv", columns, [[entry if c == column else 1e9 for c in columns]] * 6)
    with pytest.raises(UsageError, match=re.escape(f"P.csv, line 2, column '{column}' is '{entry}'; give a number")):
        workbench.fit_scaling(points)


def test_a_loss_that_rises_with_size_is_refused_by_name(tmp_path, write):
    rows = [[*row, 1 - row[2] / 8] for row in ladder_rows()]
    points = write(tmp_path / "P.csv", ["params", "tokens", "loss", "hellaswag"], rows)
    with pytest.raises(UsageError, match=r"P\.csv: column 'hellaswag' rises with parameters and tokens \(\d+ of \d+"):
        workbench.fit_scaling(points, ["params", "tokens", "loss", "hellaswag"])
    grid = [[*row[:2], lr, 64, 1 - row[2] / 8] for row in rows for lr in (1e-3, 2e-3)]
    points = write(tmp_path / "H.csv", ["params", "tokens", "lr", "gbsz", "loss"], grid)
    with pytest.raises(UsageError, match=r"H\.csv: column 'loss' rises"):
        workbench.fit_scaling(points, ["params", "tokens", "lr", "gbsz", "loss"])
    families = write(
        tmp_path / "F.csv", ["family", "params", "tokens", "loss"], [[f, *r[:2], r[3]] for f in "ab" for r in rows]
    )
    with pytest.raises(UsageError, match=r"F\.csv: column 'loss' rises"):
        decisions.compare(families, None, "family", ["7B", "4T"])


@pytest.mark.parametrize("entry", ["nan", "inf", "-2", "", "diverged", "0", "#N/A"])
def test_one_bad_loss_takes_nothing_from_the_other_losses(tmp_path, write, entry):
    rows = [[*row, 1.1 * row[2]] for row in ladder_rows()]
    good = workbench.fit_scaling(write(tmp_path / "G.csv", ["params", "tokens", "loss", "pile_loss"], rows))
    rows[5][2] = entry
    points = write(tmp_path / "P.csv", ["params", "tokens", "loss", "pile_loss"], rows)
    with pytest.warns(SetAsideWarning, match=r"P\.csv: 1 left out: line 7, column 'loss' is "):
        law = workbench.fit_scaling(points)
    assert law.targets == ["loss", "pile_loss"]
    (aside,) = workbench.save(tmp_path / "law.json", law)["set_aside"]
    assert (aside["file"], aside["line"], aside["column"], aside["value"]) == ("P.csv", 7, "loss", entry)
    at = [[6e8, 6e10]]
    before, after = good.law.predict(at), law.law.predict(at)
    np.testing.assert_allclose(after.mean, before.mean, rtol=0.004)
    width = [(p.high - p.low)[0] for p in (before, after)]
    assert (width[1] < 1.5 * width[0]).all()


def test_a_loss_with_too_few_values_is_dropped_and_named(tmp_path, write):
    rows = [[*row, 2.0 if i < 3 else "nan"] for i, row in enumerate(ladder_rows())]
    points = write(tmp_path / "P.csv", ["params", "tokens", "loss", "code_loss"], rows)
    with pytest.warns(SetAsideWarning, match=r"P\.csv: column 'code_loss' is left out: 3 of its entries are losses"):
        assert workbench.fit_scaling(points).targets == ["loss"]
    points = write(tmp_path / "P.csv", ["params", "tokens", "loss"], [[*r[:2], "nan"] for r in rows])
    with pytest.raises(UsageError, match=r"with 0 of 'loss' that can be fitted; .*line 2, column 'loss' is 'nan'"):
        workbench.fit_scaling(points)


def test_a_diverged_row_is_named_by_its_line(tmp_path, write):
    rows = ladder_rows()
    rows[15][2] = 10.5
    points = write(tmp_path / "P.csv", ["params", "tokens", "loss"], rows)
    with pytest.warns(SetAsideWarning, match=r"P\.csv, line 17: 'loss' is 10.5, but the other runs predict about 2\."):
        law = workbench.fit_scaling(points)
    (aside,) = law.set_aside
    assert aside["line"] == 17 and aside["why"].startswith("the other runs predict about 2.")
    # A line of a table of families, too.
    families = write(tmp_path / "F.csv", ["family", "N", "D", "loss"], [[f, *row] for f in "ab" for row in rows])
    with pytest.warns(SetAsideWarning, match=r"F\.csv, line 33: 'loss' is 10.5"):
        decisions.compare(families, None, "family", ["1B", "100B"])


def test_copied_rows_count_once(tmp_path, write):
    rows = ladder_rows()
    once = workbench.fit_scaling(write(tmp_path / "P.csv", ["params", "tokens", "loss"], rows))
    with pytest.warns(SetAsideWarning, match=r"16 left out: line 18, .*a copy of line 2"):
        twice = workbench.fit_scaling(write(tmp_path / "P.csv", ["params", "tokens", "loss"], rows + rows))
    np.testing.assert_array_equal(once.law.predict([[1e9, 1e11]]).low, twice.law.predict([[1e9, 1e11]]).low)


def test_far_predictions_speak_of_lines(tmp_path, write):
    law = workbench.fit_scaling(write(tmp_path / "P.csv", ["params", "tokens", "loss"], ladder_rows()))
    at = write(tmp_path / "at.csv", ["params", "tokens"], [["300M", "30B"], ["3B", "300B"]])
    with pytest.warns(ExtrapolationWarning, match=r"at\.csv, line 3 lies at 10 times the largest N"):
        workbench.predict_points(law, at, 0.9)
    at = write(tmp_path / "at.csv", ["params", "tokens"], [["300M", "30B"], ["1T", "100T"]])
    with pytest.raises(ExtrapolationError, match=r"at\.csv, line 3 lies at 3.33e\+03 times the largest N"):
        workbench.predict_points(law, at, 0.9)


def test_a_loss_that_is_left_open_does_not_hide_the_others(tmp_path, write):
    rng = np.random.default_rng(0)
    rows = [[*row, 3 * np.exp(0.5 * rng.normal() - 0.02 * i)] for i, row in enumerate(ladder_rows())]
    law = workbench.fit_scaling(write(tmp_path / "P.csv", ["params", "tokens", "loss", "wild_loss"], rows))
    at = write(tmp_path / "at.csv", ["params", "tokens"], [["3B", "300B"]])
    with pytest.warns(
        ExtrapolationWarning, match="the runs do not determine 'wild_loss': the intervals are 0 to infinity"
    ):
        (row,) = workbench.predict_points(law, at, 0.9).rows
    assert 0 < row[3] < row[2] < row[4] < 3 and (row[6], row[7]) == (0.0, np.inf)
    with pytest.raises(ExtrapolationError, match="determine its loss only"):
        law.law.predict([[3e9, 3e11]])


def test_predictions_beside_measurements(tmp_path, write):
    workbench.save(
        tmp_path / "law.json",
        workbench.fit_scaling(write(tmp_path / "P.csv", ["params", "tokens", "loss"], ladder_rows())),
    )
    sizes = [[2e8, 2e10], [3e8, 3e10], [5e7, 5e9]]
    true = [1.7 + 400 / n**0.34 + 1500 / d**0.35 for n, d in sizes]
    at = write(tmp_path / "at.csv", ["params", "tokens"], sizes)
    # Another order, other names, a repeat, one that was not predicted, one wrong by half.
    measured = write(
        tmp_path / "M.csv",
        ["D", "N", "val_loss"],
        [["30B", "300M", true[1]], ["20B", "200M", 1.5 * true[0]], [3e10, 3e8, true[1]], [1e9, 1e9, 3.0]],
    )
    rows = workbench.predict(tmp_path / "law.json", at)
    found = workbench.measured_against(tmp_path / "law.json", at, rows, measured)
    assert json.loads(json.dumps(found)) == found  # what --json prints
    (loss,) = found["losses"]
    assert (loss["compared"], loss["inside"], found["not_measured"], found["not_predicted"]) == (3, 2, 1, 1)
    assert [row["inside"] for row in found["rows"]] == [True, False, True]
    assert [row["line"] for row in found["rows"]] == [2, 3, 4]
    assert found["rows"][1]["relative_error"] == pytest.approx(-1 / 3, abs=0.01)
    assert loss["mean_relative_error"] == pytest.approx(-1 / 9, abs=0.01)
    assert loss["mean_absolute_relative_error"] == pytest.approx(1 / 9, abs=0.01)
    assert loss["mean_absolute_error"] == pytest.approx(0.5 * true[0] / 3, abs=0.01)  # in the unit of the loss
    other = write(tmp_path / "O.csv", ["N", "D", "loss"], [[1e9, 1e9, 3.0]])
    with pytest.raises(UsageError, match=r"O\.csv has no row in common with .*at\.csv by params, tokens"):
        workbench.measured_against(tmp_path / "law.json", at, rows, other)
    bad = write(tmp_path / "bad.csv", ["N", "D", "loss"], [[2e8, 2e10, "nan"], [3e8, 3e10, "n/a"]])
    with (
        pytest.warns(UserWarning, match="2 left out"),
        pytest.raises(UsageError, match=r"no row in common .* has a measured loss: .*line 2, column 'loss' is 'nan'"),
    ):
        workbench.measured_against(tmp_path / "law.json", at, rows, bad)


def test_mixture_predictions_are_matched_by_index_or_by_weights(runs, mixture_law, tmp_path, write):
    _, M, L = runs
    rows = workbench.predict(mixture_law, M)
    found = workbench.measured_against(mixture_law, M, rows, L)
    assert found["matched_by"] == ["index"] and found["not_measured"] == found["not_predicted"] == 0
    assert [loss["compared"] for loss in found["losses"]] == [40, 40]
    assert all(loss["share_inside"] > 0.8 and loss["mean_absolute_error"] < 0.01 for loss in found["losses"])
    mixtures, losses = (list(csv.reader(path.open())) for path in (M, L))
    by_index = {row[0]: row[1:] for row in losses[1:]}
    both = write(
        tmp_path / "B.csv", [*mixtures[0][1:], *TARGETS], [[*row[1:], *by_index[row[0]]] for row in mixtures[1:]]
    )
    again = workbench.measured_against(mixture_law, both, workbench.predict(mixture_law, both), both)
    assert again["matched_by"] == DOMAINS and again["losses"] == found["losses"]


def test_an_index_as_other_programs_write_it(runs, tmp_path, write):
    _, M, L = runs
    mixtures, losses = (list(csv.reader(path.open())) for path in (M, L))
    for row in mixtures[1:]:
        row[0] = row[0].removeprefix("run")
    for row in losses[1:]:
        row[0] = row[0].removeprefix("run") + ".0"
    mixtures[0][0] = "Index"
    mine = workbench.fit_mixture(
        write(tmp_path / "M.csv", mixtures[0], mixtures[1:]), write(tmp_path / "L.csv", losses[0], losses[1:])
    )
    assert np.array_equal(mine.law.held_out_.measured, workbench.fit_mixture(M, L).law.held_out_.measured)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (("Step", "LR", "Loss"), None),
        (("global_step", "learning_rate", "val_loss"), None),
        (("train/global_step", "train/learning_rate", "train/loss"), None),
        (("iter", "Learning Rate", "loss"), None),
        (("time", "lr", "loss"), "no column 'step'"),
        (("step", "iteration", "loss"), "no column 'lr'"),
    ],
)
def test_columns_of_curves_are_known_by_the_names_people_use(tmp_path, write, header, said):
    (tmp_path / "25M").mkdir()
    rows = [(step, 1e-3, 2 + 4 * step**-0.5) for step in range(10, 60, 10)]
    path = write(tmp_path / "25M" / "constant.csv", [*header], rows)
    if said is not None:
        with pytest.raises(UsageError, match=said):
            read_curve(path, 25e6)
        return
    (curve,) = read_curves(tmp_path)
    assert [curve.step.tolist(), curve.lr.tolist(), curve.loss.tolist()] == [list(c) for c in zip(*rows, strict=True)]
    assert np.array_equal(read_curve(path, 25e6, need_loss=False).loss, curve.loss)


def test_a_curve_with_two_losses_says_which_and_a_schedule_does_not_need_one(tmp_path, write):
    rows = [(step, 1e-3, 3.0, 4.0) for step in (10, 20)]
    path = write(tmp_path / "c.csv", ["step", "lr", "train_loss", "val_loss"], rows)
    with pytest.raises(UsageError, match="'train_loss' or 'val_loss'; keep only one of them in the file"):
        read_curve(path, 25e6)
    assert read_curve(path, 25e6, need_loss=False).loss is None


def ladder_table(write, path, columns=("params", "tokens", "loss"), change=lambda loss: loss):
    """Four sizes on three budgets; the columns may be called otherwise, and the losses changed."""
    points = [(n, d) for n in (1e7, 3e7, 1e8, 3e8) for d in (2e9, 8e9, 3e10)]
    return write(path, columns, [(n, d, change(1.7 + 400 / n**0.34 + 1500 / d**0.35)) for n, d in points])


def unlikely(recorded):
    return [str(one.message) for one in recorded if one.category is workbench.UnlikelyColumnWarning]


def test_swapped_columns_of_parameters_and_tokens_are_noticed(tmp_path, write, recwarn):
    workbench.fit_scaling(ladder_table(write, tmp_path / "good.csv"))
    assert unlikely(recwarn) == []
    swapped = ladder_table(write, tmp_path / "swapped.csv", ("tokens", "params", "loss"))
    with pytest.warns(workbench.UnlikelyColumnWarning) as caught:
        workbench.fit_scaling(swapped)
    (said,) = unlikely(caught)
    assert said.startswith(f"{swapped}: 12 of 12 runs have more parameters (column 'params') than training tokens")
    assert "swap their names" in said
    with pytest.warns(workbench.UnlikelyColumnWarning, match=r"column 'a'.*column 'b'"):
        workbench.fit_scaling(ladder_table(write, tmp_path / "x.csv", ("b", "a", "l")), ["a", "b", "l"], "chinchilla")


def test_sizes_in_millions_are_noticed(tmp_path, write):
    points = [
        (n, d, 1.7 + 400 / (1e6 * n) ** 0.34 + 1500 / (1e9 * d) ** 0.35) for n in (10, 30, 100) for d in (2, 8, 30)
    ]
    with pytest.warns(workbench.UnlikelyColumnWarning) as caught:
        workbench.fit_scaling(write(tmp_path / "P.csv", ["params", "tokens", "loss"], points))
    said = [str(one.message) for one in caught if "millions or billions" in str(one.message)]
    assert len(said) == 2 and "P.csv: the largest value of column 'params' is 100; it looks like" in said[0]


def test_perplexities_called_a_loss_are_noticed(tmp_path, write):
    table = ladder_table(write, tmp_path / "ppl.csv", change=np.exp)
    with pytest.warns(workbench.UnlikelyColumnWarning) as caught:
        workbench.fit_scaling(table)
    (said,) = unlikely(caught)
    assert "values of column 'loss' are above 12.5" in said and "give their logarithms" in said


def test_perplexities_of_mixtures_and_curves_are_noticed(tmp_path, write):
    mixtures = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    runs = write(tmp_path / "M.csv", ["index", *DOMAINS], [(i, *row) for i, row in enumerate(mixtures.tolist())])
    perplexities = np.exp(1.0 + losses_of(mixtures)).tolist()
    losses = write(tmp_path / "L.csv", ["index", "loss"], [(i, row[0]) for i, row in enumerate(perplexities)])
    with pytest.warns(workbench.UnlikelyColumnWarning, match="perplexities"):
        workbench.fit_mixture(runs, losses)
    (tmp_path / "curves" / "1M").mkdir(parents=True)
    rows = [(step, 1e-3, 20 + 400 * step**-0.5) for step in range(50, 1001, 50)]
    write(tmp_path / "curves" / "1M" / "constant.csv", ["Step", "lr", "Loss"], rows)
    with pytest.warns(workbench.UnlikelyColumnWarning, match="perplexities"):
        workbench.fit_anneal(tmp_path / "curves")


def test_swapped_columns_beside_mixtures_are_noticed(tmp_path, write):
    mixtures = np.random.default_rng(0).dirichlet(np.ones(3), 16)
    columns = ["index", *DOMAINS, "params", "tokens"]
    sizes = [(4e9, 1e6) if i % 2 else (1e9, 4e6) for i in range(16)]
    rows = [(i, *row, *sizes[i]) for i, row in enumerate(mixtures.tolist())]
    runs = write(tmp_path / "M.csv", columns, rows)
    losses = write(
        tmp_path / "L.csv", ["index", "loss"], [(i, float(row[0])) for i, row in enumerate(losses_of(mixtures))]
    )
    with pytest.warns(workbench.UnlikelyColumnWarning, match="16 of 16 runs have more parameters"):
        workbench.fit_mixture(runs, losses)


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        ("", True),
        ('{"format": "armillary-law", "version": 3, "kind"', True),
        ('{"format": "armillary-law", "version": 2}', True),
        ('{"format": "armillary-law", "version": 99}', False),
        ("params,tokens,loss\n", False),
        ('{"name": "package"}', False),
        ("[1, 2]", False),
    ],
)
def test_a_law_is_written_over_laws_alone(content, taken, tmp_path):
    path = tmp_path / "out.json"
    workbench.check_law_out(path)
    path.write_text(content)
    if taken:
        workbench.check_law_out(path)
    else:
        with pytest.raises(UsageError, match=r"out\.json: this file is not a law"):
            workbench.check_law_out(path)
    assert path.read_text() == content

"""Laws from files to files: what the command line's verbs on laws do.

Tables come in as CSV, laws as the files of ``file``, limits and targets as YAML. All checks that can name a line are
made here, before a law sees numbers. Which columns are what is read from their names (``columns``), unless the user
names them; a form that is named takes its features from the first columns, whatever they are called.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from armillary.files import write_file
from armillary.laws.anneal import AnnealLaw
from armillary.laws.columns import (
    ALIASES,
    ColumnReading,
    default_columns,
    described,
    feature_of,
    find_column,
    is_loss,
    known_features,
    readings,
)
from armillary.laws.curves import read_curve, read_curves
from armillary.laws.estimator import SHOWN, SUM_TOLERANCE, Array, Prediction, SetAsideWarning, rows_named
from armillary.laws.files import LawFile, read_law, source_of, write_law
from armillary.laws.hyperparameters import HyperparameterLaw
from armillary.laws.mixture import MixtureLaw
from armillary.laws.scaling import SCALING_FORMS, ScalingLaw
from armillary.laws.table import INDEX, Table, parse_size, read_table
from armillary.recipe import UsageError

HYPERPARAMETER_FORMS = ("step-law", "basin")
FORMS = ("auto", *SCALING_FORMS, *HYPERPARAMETER_FORMS)


# A loss rises in more than this share of at least so many pairs of a run and a larger one: it is none.
RISING, RISING_PAIRS = 2 / 3, 6


@dataclass(frozen=True)
class Rows:
    """A table to be written: column names, and rows of text and numbers."""

    columns: list[str]
    rows: list[list[str | float]]

    def write(self, path: Path) -> None:
        """Write as CSV; numbers with all their digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        write_file(path, text.getvalue().encode())


def fit_mixture(
    runs: Path,
    losses: Path,
    size_column: str | None = None,
    tokens_column: str | None = None,
    columns: Sequence[str] | None = None,
) -> LawFile:
    """Fit a mixture law to two tables that share an ``index`` column.

    Args:
        runs: one column per training domain, rows that sum to 1; and sizes and tokens if they are not in ``losses``.
        losses: one column per validation domain.
        size_column: column of the models' sizes in parameters, for runs at several sizes; None for one that is known
            by its name.
        tokens_column: column of the tokens that each run was trained on, likewise.
        columns: the losses; None for all that are known as losses, or where none is, for all that are numbers.

    Raises:
        UsageError: a bad entry, with file, line and column; rows that do not match.
    """
    inputs, outputs = read_table(runs), read_table(losses)
    order = _matched(inputs, outputs)
    scale: dict[str, tuple[str, Array]] = {}
    for feature, given in (("params", size_column), ("tokens", tokens_column)):
        for table, rows in ((inputs, np.arange(len(order))), (outputs, order)):
            name = given if given in table.columns else _scale_column(table, feature) if given is None else None
            if name is not None and feature not in scale:
                scale[feature] = name, table.sizes([name])[:, 0][rows]
        if given is not None and feature not in scale:
            inputs.position(given)  # raises
    if "tokens" in scale and "params" not in scale:
        raise UsageError(
            f"{runs}: column '{scale['tokens'][0]}' holds tokens, and no column the models' parameters; add it"
        )
    taken = {INDEX, *(name for name, _ in scale.values())}
    domains = [name for name in inputs.columns if name not in taken and inputs.numeric(name)]
    targets = _targets(outputs, taken) if columns is None else [find_column(outputs, name) for name in columns]
    weights = _mixtures(inputs, domains)
    Y, targets, bad = _losses(outputs, targets, least=8)
    _report(losses, bad)
    arranged = outputs.taking(order.tolist())

    def named(name: str, i: int) -> str | None:
        return (arranged if name == "Y" else inputs).where(i)

    sizes, tokens = (scale[name][1] if name in scale else None for name in ("params", "tokens"))
    Y = Y[order]
    with about(runs), rows_named(named, targets):
        law = MixtureLaw().fit(weights, np.nan_to_num(Y, nan=1.0), sizes, tokens, missing=np.isnan(Y))
    sources = [source_of(runs, len(inputs.rows)), source_of(losses, len(outputs.rows))]
    read = [ColumnReading(name, "domain") for name in domains] + [
        ColumnReading(name, feature) for feature, (name, _) in scale.items()
    ]
    read += [ColumnReading(name, "loss") for name in targets]
    known = {INDEX, *(reading.column for reading in read)}
    read += [
        ColumnReading(name, "ignored", "name losses with --columns" if table.numeric(name) else "text")
        for table in (inputs, outputs)
        for name in table.columns
        if name not in known
    ]
    contradicted = [
        _aside(arranged, one.row, targets[one.target], f"the other runs expect about {one.expected:.4g}")
        for one in law.set_aside_
    ]
    columns_of = {feature: name for feature, (name, _) in scale.items()}
    return LawFile(
        "mixture",
        law,
        domains,
        targets,
        columns_of.get("params"),
        sources,
        read,
        [*bad, *contradicted],
        columns_of.get("tokens"),
    )


def _scale_column(table: Table, feature: str) -> str | None:
    """The column of sizes or tokens, known by its name and by values above 1, which no weight has."""
    for name in table.columns:
        if feature_of(name) == feature and table.numeric(name) and table.sizes([name]).min() > 1:
            return name
    return None


def _targets(table: Table, taken: set[str]) -> list[str]:
    """Columns of losses of a table that holds one for each validation domain."""
    numbers = [name for name in table.columns if name not in taken and table.numeric(name)]
    known = [name for name in numbers if is_loss(name)]
    if not known and not numbers:
        raise UsageError(f"{table.path} has no column of losses beside '{INDEX}'; add one per validation domain")
    return known or numbers


def fit_scaling(points: Path, columns: Sequence[str] | None = None, form: str = "auto") -> LawFile:
    """Fit a scaling law, or a law of learning rate and batch size, to a table of runs.

    A loss that is missing or no number above 0 is set aside, and so is a row that is an exact copy of another.

    Args:
        points: one row per run.
        columns: what the law takes, then the losses it predicts; None for parameters, tokens and all losses that are
            known by their names.
        form: one of ``FORMS``. ``auto`` takes what the columns' names allow.

    Raises:
        UsageError: an unknown form or column; columns that do not fit the form; a bad entry; a loss that rises with
            parameters and tokens.
    """
    if form not in FORMS:
        raise UsageError(f"no form '{form}'; take one of {', '.join(FORMS)}")
    whole = read_table(points)
    named = default_columns(whole) if columns is None else [find_column(whole, name) for name in columns]
    for name in named:
        if named.count(name) > 1:
            raise UsageError(f"--columns names '{name}' twice")
    kind, wanted, features = _features(named, form)
    targets = [name for name in named if name not in features]
    if not targets:
        raise UsageError(f"--columns {','.join(named)} names no loss; name it last")
    if kind == "hyperparameters" and len(targets) > 1:
        raise UsageError(
            f"{points}: a law of learning rate and batch size predicts one loss, not {', '.join(targets)}; name it: "
            f"--columns {','.join(features)},LOSS"
        )
    table, aside = _without_copies(whole)
    X = table.sizes(features)
    Y, targets, bad = _losses(table, targets, least=6)
    _report(points, [*aside, *bad])
    refuse_rising(table, X[:, _size_places(wanted)], Y, targets)
    law: ScalingLaw | HyperparameterLaw
    with about(table, targets):
        if kind == "hyperparameters":
            rows = np.flatnonzero(np.isfinite(Y[:, 0]))
            with about(table.taking(rows.tolist()), targets):
                law = HyperparameterLaw(form=form).fit(X[rows], Y[rows, 0])
            contradicted = [
                _aside(table, int(rows[i]), targets[0], "contradicted by other runs") for i in law.diverged_
            ]
            _report(points, contradicted)
        else:
            law = ScalingLaw(form=form, features=tuple(wanted)).fit(X, np.nan_to_num(Y, nan=1.0), missing=np.isnan(Y))
            contradicted = [
                _aside(table, one.row, targets[one.target], f"the other runs expect about {one.expected:.4g}")
                for one in law.set_aside_
            ]
    return LawFile(
        kind,
        law,
        features,
        targets,
        None,
        [source_of(points, len(whole.rows))],
        readings(whole, dict(zip(features, wanted, strict=True)), targets),
        [*aside, *bad, *contradicted],
    )


def _features(named: list[str], form: str) -> tuple[str, Sequence[str], list[str]]:
    """Kind of law, features it takes, and which of the ``named`` columns are these."""
    known = known_features(named)
    if form != "auto":
        kind = "hyperparameters" if form in HYPERPARAMETER_FORMS else "scaling"
        wanted = HyperparameterLaw.features if kind == "hyperparameters" else SCALING_FORMS[form].features
        return kind, wanted, _in_order(named, known, wanted, form)
    roles = {feature: name for name, feature in known.items()}
    last = max((named.index(name) for name in known), default=0)
    for name in named[:last]:
        if name not in known:
            raise UsageError(
                f"--columns {','.join(named)}: '{name}' stands among what the law takes and is known as none of "
                f"{', '.join(ALIASES)}; rename it, name the losses last, or name a --form"
            )
    kind = "hyperparameters" if {"lr", "bs"} <= roles.keys() else "scaling"
    size = "active_params" if "active_params" in roles else "params"
    wanted = HyperparameterLaw.features if kind == "hyperparameters" else (size, "tokens")
    missing = [feature for feature in wanted if feature not in roles]
    if missing:
        raise UsageError(
            f"--columns {','.join(named)}: none is known as {' or '.join(missing)} (names such as "
            f"{', '.join(ALIASES[missing[0]][:6])}); rename it, or name a --form, which takes its columns in order"
        )
    if kind == "scaling":
        wanted = (*wanted, *(feature for feature in roles if feature not in wanted))
    return kind, wanted, [roles[feature] for feature in wanted]


def _size_places(wanted: Sequence[str]) -> list[int]:
    """Which of the features are parameters and tokens."""
    size = "active_params" if "active_params" in wanted else "params"
    return [list(wanted).index(size), list(wanted).index("tokens")]


def _aside(table: Table, row: int, column: str, why: str) -> dict[str, Any]:
    """The record of an entry that was left out of a fit."""
    entry = table.text(column)[row]
    return {"file": table.path.name, "line": table.lines[row], "column": column, "value": entry, "why": why}


def _report(path: Path, aside: Sequence[dict[str, Any]]) -> None:
    """Warn of entries that were left out, in one line."""
    if aside:
        said = [f"line {a['line']}, column '{a['column']}' is '{a['value']}' ({a['why']})" for a in aside[:SHOWN]]
        more = f" and {len(aside) - SHOWN} more" if len(aside) > SHOWN else ""
        warnings.warn(f"{path}: {len(aside)} left out: {'; '.join(said)}{more}", SetAsideWarning, stacklevel=3)


def _without_copies(table: Table) -> tuple[Table, list[dict[str, Any]]]:
    """The table without rows that equal an earlier one in every column, and the record of these."""
    first: dict[tuple[str, ...], int] = {}
    kept, aside = [], []
    for i, row in enumerate(table.rows):
        entries = tuple(row[1:] if table.unnamed_index else row)
        if entries in first:
            why = f"a copy of line {table.lines[first[entries]]}"
            aside.append(_aside(table, i, table.columns[0], why))
        else:
            first[entries] = i
            kept.append(i)
    return table.taking(kept), aside


def _losses(table: Table, targets: Sequence[str], least: int) -> tuple[Array, list[str], list[dict[str, Any]]]:
    """Losses [n, t], not a number where one is missing; the targets that ``least`` runs have; what was set aside.

    Raises:
        UsageError: no target is left.
    """
    values, bad = table.losses(targets)
    aside = [_aside(table, entry.row, entry.column, entry.remedy) for entry in bad]
    left = [t for t in range(len(targets)) if np.isfinite(values[:, t]).sum() >= least]
    if not left:
        first = f"; {table.entry(bad[0].row, bad[0].column)}; {bad[0].remedy}" if bad else ""
        counts = ", ".join(f"{np.isfinite(values[:, t]).sum()} of '{name}'" for t, name in enumerate(targets))
        raise UsageError(
            f"{table.path} has {len(table.rows)} rows and holds {counts} that can be fitted; at least {least} are "
            f"needed{first}"
        )
    for t in range(len(targets)):
        if t not in left:
            count = int(np.isfinite(values[:, t]).sum())
            warnings.warn(
                f"{table.path}: column '{targets[t]}' is left out: {count} of its entries are losses, and at least "
                f"{least} are needed",
                SetAsideWarning,
                stacklevel=2,
            )
    return values[:, left], [targets[t] for t in left], aside


def refuse_rising(table: Table, sizes: Array, losses: Array, targets: Sequence[str]) -> None:
    """Refuse a column of losses [n, t] that rises with both parameters and tokens (sizes [n, 2]): it is no loss.

    Pairs of runs of which one is larger in both are compared; a law of losses that two thirds of them contradict is
    none.

    Raises:
        UsageError: such a column.
    """
    larger = (sizes[:, None] >= sizes[None]).all(2) & (sizes[:, None] > sizes[None]).any(2)
    for t, name in enumerate(targets):
        change = losses[:, None, t] - losses[None, :, t]
        pairs = larger & np.isfinite(change)
        rises, count = int((pairs & (change > 0)).sum()), int(pairs.sum())
        if count >= RISING_PAIRS and rises > RISING * count:
            raise UsageError(
                f"{table.path}: column '{name}' rises with parameters and tokens ({rises} of {count} pairs of runs): "
                "it is not a loss (an accuracy?); name a column of losses with --columns"
            )


def fit_anneal(curves: Path, warmup_steps: int = 0) -> LawFile:
    """Fit an annealing law to curves DIR/SIZE/SCHEDULE.csv of ``step,lr,loss``.

    Raises:
        UsageError: no curves there, or a bad entry, with file, line and column.
    """
    found = read_curves(curves)
    paths = sorted(path for path in curves.glob("*/*.csv") if not path.parent.name.startswith("."))
    files = {(parse_size(path.parent.name), path.stem): path for path in paths}
    names = {f"curve '{name}' at size {size:g}": str(path) for (size, name), path in files.items()}
    with about(curves), rows_named(lambda name, _: names.get(name)):
        law = AnnealLaw(warmup_steps=warmup_steps).fit(found)
    tables = {path: read_table(path) for path in paths}
    aside: list[dict[str, Any]] = []
    for one in law.set_aside_:
        table = tables[files[one.size, one.name]]
        where: dict[str, Any] = {"file": f"{table.path.parent.name}/{table.path.name}", "why": one.why}
        if one.step is None:
            aside.append(where | {"line": None, "column": "loss", "value": None})
        else:
            row = int(np.flatnonzero(table.numbers(["step"])[:, 0] == one.step)[0])
            aside.append(_aside(table, row, "loss", one.why) | where)
    for table in tables.values():
        for bad in table.losses(["loss"])[1]:
            aside.append(
                _aside(table, bad.row, "loss", bad.remedy) | {"file": f"{table.path.parent.name}/{table.path.name}"}
            )
    sources = [source_of(path, len(table.rows)) for path, table in tables.items()]
    read = [ColumnReading(name, name) for name in ("step", "lr", "loss")]
    return LawFile("anneal", law, ["step", "lr"], ["loss"], None, sources, read, aside)


def predict_mixture(law: LawFile, at: Path, interval: float, size: float | None, tokens: float | None = None) -> Rows:
    """Losses of the mixtures in table ``at``, at the size and tokens in its columns, else at ``size`` and ``tokens``.

    Raises:
        UsageError: columns that the law does not know or misses, a bad entry.
    """
    table = read_table(at)
    allowed = {INDEX, law.size_column, law.tokens_column, *law.features, *law.targets}
    for name in table.columns:
        if name not in allowed and table.numeric(name):
            raise UsageError(
                f"{at}: the law knows no column '{name}'; it was fitted to {', '.join(law.features)}"
                + (f" and {law.size_column}" if law.size_column else "")
            )
    weights = _mixtures(table, law.features)
    asked: dict[str, Array | float | None] = {}
    for option, given, column in (("size", size, law.size_column), ("tokens", tokens, law.tokens_column)):
        here = column is not None and column in table.columns
        if given is not None and here:
            raise UsageError(f"{at} has the {option} in column '{column}'; leave out --{option}, or that column")
        asked[option] = table.sizes([column])[:, 0] if column is not None and here else given
    with about(table, law.targets):
        prediction = law.law.predict(weights, interval, sizes=asked["size"], tokens=asked["tokens"])
        factor = np.broadcast_to(law.law.extrapolation(asked["size"], asked["tokens"]), len(weights))
    return _with_predictions(table, law.targets, prediction, factor)


def predict_points(law: LawFile, at: Path, interval: float) -> Rows:
    """Losses of the runs in table ``at``, by a scaling law or one of learning rate and batch size.

    Raises:
        UsageError: a missing column, a bad entry.
        ExtrapolationError: a run that the fitted runs do not support.
    """
    table = read_table(at)
    X = table.sizes([find_column(table, name) for name in law.features])
    with about(table, law.targets):
        known = law.law.predict_known if law.kind == "scaling" else law.law.predict
        prediction = known(X, interval)
    return _with_predictions(table, law.targets, prediction, law.law.extrapolation(X))


def predict_curve(
    law: LawFile, at: Path, interval: float, size: float | None, given: Path | None, warmup_steps: int | None
) -> Rows:
    """Losses along the schedule ``step,lr`` in table ``at`` for a model of ``size`` parameters.

    Args:
        law: an annealing law.
        at: the schedule.
        interval: probability that each interval covers.
        size: of the model; needed unless the law was fitted to one size.
        given: a measured curve ``step,lr,loss`` at that size.
        warmup_steps: of the linear warm-up before the first row of both; None for the law's.

    Raises:
        UsageError: no size where several were fitted, a bad entry.
    """
    if size is None:
        if len(law.law.sizes_) > 1:
            known = ", ".join(f"{s:g}" for s in law.law.sizes_)
            raise UsageError(f"the law was fitted to models of {known} parameters; say which with --size, such as 400M")
        size = float(law.law.sizes_[0])
    schedule = replace(read_curve(at, size, need_loss=False), warmup_steps=warmup_steps)
    known_curve = None if given is None else replace(read_curve(given, size), warmup_steps=warmup_steps)
    with about(at):
        prediction = law.law.predict(schedule, interval, given=known_curve)
    factor = (law.law if known_curve is None else law.law.including(known_curve)).extrapolation(schedule)
    return _with_predictions(read_table(at), law.targets, prediction, factor)


def predict(
    path: Path,
    at: Path,
    interval: float = 0.9,
    *,
    size: str | None = None,
    tokens: str | None = None,
    given: Path | None = None,
    warmup_steps: int | None = None,
) -> Rows:
    """Predictions of any law file for the rows of table ``at``; ``size`` and ``tokens`` as in ``parse_size``.

    Raises:
        UsageError: as the functions above; an option that a law of this kind does not take.
    """
    law = read_law(path)
    for option, value in (("--given", given), ("--warmup-steps", warmup_steps)):
        if value is not None and law.kind != "anneal":
            raise UsageError(f"{option} is for annealing laws; {path} holds a law of kind '{law.kind}'")
    if size is not None and law.kind not in ("anneal", "mixture"):
        raise UsageError(
            f"--size is for annealing and mixture laws; sizes of this one stand in column {law.features[0]}"
        )
    if tokens is not None and law.kind != "mixture":
        raise UsageError(f"--tokens is for mixture laws; {path} holds a law of kind '{law.kind}'")
    parameters = None if size is None else parse_size(size)
    if law.kind == "mixture":
        return predict_mixture(law, at, interval, parameters, None if tokens is None else parse_size(tokens))
    if law.kind == "anneal":
        return predict_curve(law, at, interval, parameters, given, warmup_steps)
    return predict_points(law, at, interval)


def measured_against(path: Path, at: Path, predicted: Rows, measured: Path, size: str | None = None) -> dict[str, Any]:
    """Predictions beside measurements: errors, and how many intervals cover.

    Rows belong together by ``index`` where both tables have it, else by the columns that the law takes (``step`` for an
    annealing law).

    Args:
        path: the law file.
        at: the table that was predicted.
        predicted: what ``predict`` gave for it.
        measured: table of the same columns with the losses.
        size: as for ``predict``; one size for all rows.

    Returns:
        Plain values: ``losses`` with counts and errors for each, ``rows`` with every comparison, and what was left out.

    Raises:
        UsageError: a missing column, a bad entry, or no row in common.
    """
    law = read_law(path)
    asked, found = read_table(at), read_table(measured)
    keys: list[list[tuple[str, ...]]]
    if INDEX in asked.columns and INDEX in found.columns:
        names, keys = [INDEX], [[(_label(entry),) for entry in table.text(INDEX)] for table in (asked, found)]
    else:
        names = ["step"] if law.kind == "anneal" else list(law.features)
        if law.size_column is not None and size is None and law.size_column in asked.columns:
            names.append(law.size_column)
        keys = []
        for table in (asked, found):
            columns = [find_column(table, name) for name in names]
            numbers = table.numbers(columns, least=0) if law.kind in ("mixture", "anneal") else table.sizes(columns)
            keys.append([tuple(f"{value:.6g}" for value in row) for row in numbers])
    columns = [find_column(found, name) for name in law.targets]
    values, bad = found.losses(columns)
    if bad:
        _report(measured, [_aside(found, entry.row, entry.column, entry.remedy) for entry in bad])
    first = len(predicted.columns) - 3 * len(law.targets) - 1
    place = {key: i for i, key in enumerate(keys[0])}
    rows: list[dict[str, Any]] = []
    for i, key in enumerate(keys[1]):
        if key not in place:
            continue
        for t, target in enumerate(law.targets):
            mean, low, high = (float(v) for v in predicted.rows[place[key]][first + 3 * t : first + 3 * t + 3])
            if np.isfinite(values[i, t]):
                what = {"line": found.lines[i], **dict(zip(names, key, strict=True)), "loss": target}
                said = {"predicted": mean, "low": low, "high": high, "measured": float(values[i, t])}
                error = mean / float(values[i, t]) - 1
                rows.append(what | said | {"error": error, "inside": bool(low <= values[i, t] <= high)})
    if not rows:
        raise UsageError(
            f"{measured} has no row in common with {at} by {', '.join(names)}; give measurements of what was predicted"
        )
    losses = []
    for target in law.targets:
        mine = [row for row in rows if row["loss"] == target]
        if mine:
            losses.append(
                {
                    "loss": target,
                    "compared": len(mine),
                    "inside": sum(row["inside"] for row in mine),
                    "share_inside": sum(row["inside"] for row in mine) / len(mine),
                    "mean_absolute_error": float(np.mean([abs(row["error"]) for row in mine])),
                    "mean_error": float(np.mean([row["error"] for row in mine])),
                }
            )
    return {
        "file": str(measured),
        "matched_by": names,
        "losses": losses,
        "not_measured": len(set(keys[0]) - set(keys[1])),
        "not_predicted": len([key for key in keys[1] if key not in place]),
        "rows": rows,
    }


def check_out(path: Path) -> None:
    """See that ``path`` can be written before work is done for it.

    Raises:
        UsageError: it is a folder, or lies where nothing can be written.
    """
    if path.is_dir() or not path.name:
        raise UsageError(f"--out {path} is a folder; give the name of a file in it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"--out {path}: nothing can be written in {folder}; give another place")


@contextlib.contextmanager
def about(table: Table | Path, targets: Sequence[str] = ()) -> Iterator[None]:
    """Make errors and warnings of a law speak of a table's lines, and name the file where they do not."""

    def row(_: str, i: int) -> str | None:
        return table.where(i) if isinstance(table, Table) and i < len(table.lines) else None

    path = table.path if isinstance(table, Table) else table
    try:
        with rows_named(row, targets):
            yield
    except UsageError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def save(path: Path, law: LawFile) -> dict[str, Any]:
    """Write a law file, and return its summary for people: JSON values, tables as lists of rows."""
    summary = {
        "columns": [asdict(reading) for reading in law.columns],
        "set_aside": law.set_aside,
        **_SUMMARIES[law.kind](law),
    }
    write_law(path, law, summary)
    return summary


def tables(summary: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The tables of a summary: titles and rows."""
    return [
        (key.replace("_", " "), value)
        for key, value in summary.items()
        if isinstance(value, list) and value and key not in ("columns", "set_aside")
    ]


def columns_read(summary: dict[str, Any]) -> list[str]:
    """The lines for people on which column was read as what."""
    return described([ColumnReading(**reading) for reading in summary["columns"]])


def names(columns: str | None) -> list[str] | None:
    """Column names from a comma-separated list."""
    return None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]


def _in_order(columns: Sequence[str], known: dict[str, str], wanted: Sequence[str], form: str) -> list[str]:
    """Columns that are ``wanted`` by a form: by name where all are known by name, else the first ones."""
    by_name = {feature: name for name, feature in known.items()}
    if all(feature in by_name for feature in wanted):
        return [by_name[feature] for feature in wanted]
    if len(columns) <= len(wanted):
        raise UsageError(
            f"--form {form} takes {', '.join(wanted)} and then one loss or more; --columns {','.join(columns)} has "
            f"{len(columns)} names"
        )
    return list(columns[: len(wanted)])


def _mixtures(table: Table, domains: Sequence[str]) -> Array:
    """Mixtures [n, d], each row scaled to a sum of 1."""
    if len(domains) < 2:
        raise UsageError(f"{table.path} has {len(domains)} columns of training domains; a mixture needs at least 2")
    weights = table.numbers(domains, least=0)
    total = weights.sum(1)
    for row in np.flatnonzero(np.abs(total - 1) > SUM_TOLERANCE):
        raise UsageError(
            f"{table.path}, line {table.lines[row]}: the weights of columns '{domains[0]}' to '{domains[-1]}' sum to "
            f"{total[row]:.6g}, not to 1; give the share of each domain in the tokens"
        )
    return np.asarray(weights / total[:, None])


def _matched(inputs: Table, outputs: Table) -> np.ndarray:
    """For each row of ``inputs`` the row of ``outputs`` with the same index."""
    places: list[dict[str, int]] = []
    for table in (inputs, outputs):
        place: dict[str, int] = {}
        for row, entry in enumerate(table.text(INDEX)):
            label = _label(entry)
            if label in place:
                raise table.error(row, INDEX, f"line {table.lines[place[label]]} has the same; an index stands once")
            place[label] = row
        places.append(place)
    for k, (table, other) in enumerate(((inputs, outputs), (outputs, inputs))):
        for label, row in places[k].items():
            if label not in places[1 - k]:
                raise table.error(row, INDEX, f"{other.path} has no such index; give both tables the same runs")
    return np.array([places[1][label] for label in places[0]])


def _label(entry: str) -> str:
    """An index as programs may write it: 7, 7.0 and 007 are one; other text is itself."""
    try:
        number = float(entry)
    except ValueError:
        return entry.strip()
    return str(int(number)) if number.is_integer() else repr(number)


def _with_predictions(table: Table, targets: Sequence[str], prediction: Prediction, factor: Array) -> Rows:
    """The index of ``table``, or where it has none all its columns but the targets, and the predictions."""
    said = [*(name + end for name in targets for end in ("", "_low", "_high")), "extrapolation"]
    kept = [INDEX] if INDEX in table.columns else [name for name in table.columns if name not in said]
    values = [np.reshape(part, (len(table.rows), len(targets))) for part in prediction]
    columns = [*kept, *said]
    texts = [table.text(name) for name in kept]
    rows: list[list[str | float]] = []
    for i in range(len(table.rows)):
        numbers = [float(value[i, t]) for t in range(len(targets)) for value in values]
        rows.append([*(text[i] for text in texts), *numbers, float(factor[i])])
    return Rows(columns, rows)


def _scaling_summary(file: LawFile) -> dict[str, Any]:
    law: ScalingLaw = file.law
    per = {name: np.broadcast_to(value, len(file.targets)) for name, value in law.parameters_.items()}
    return {
        "parameters_of_form": law.form_,
        "weights_of_forms": [{"form": name, "weight": float(weight)} for name, weight in law.weights_.items()],
        "parameters": [
            {"loss": target, **{name: float(value[t]) for name, value in per.items()}}
            for t, target in enumerate(file.targets)
        ],
        "largest_runs_left_out": [
            {
                "left_out": left.what,
                "runs": len(left.rows),
                "times_the_compute": float(left.extrapolation.max()),
                "mean_error": float(np.nanmean(np.abs(left.predicted / left.measured - 1))),
            }
            for left in law.holdout_error_
        ],
    }


def _hyperparameter_summary(file: LawFile) -> dict[str, Any]:
    law: HyperparameterLaw = file.law
    return {
        "parameters_of_form": law.form_,
        "diverged_runs": len(law.diverged_),
        "parameters": [
            {"parameter": name, "value": value, "share_told_by_the_runs": law.identified_.get(name)}
            for name, value in law.parameters_.items()
        ],
        "largest_runs_left_out": [
            {
                "left_out": left.what,
                "form": left.form,
                "runs": len(left.rows),
                "times_the_compute": float(left.extrapolation.max()),
                "mean_regret": float(left.regret.mean()) if len(left.regret) else None,
            }
            for left in law.held_out_
        ],
    }


def _mixture_summary(file: LawFile) -> dict[str, Any]:
    law: MixtureLaw = file.law
    held = law.held_out_
    return {
        "runs": len(law.mixtures_),
        "sizes": ", ".join(f"{size:g}" for size in law.sizes_),
        "tokens": ", ".join(f"{tokens:g}" for tokens in np.unique(law.run_tokens_)),
        "held_out": [
            {
                "loss": target,
                "rank_correlation": float(held.spearman[t]),
                "rmse": float(held.rmse[t]),
                "noise": float(law.noise_[t]),
                **{form: float(weight[t]) for form, weight in law.chosen_.items()},
            }
            for t, target in enumerate(file.targets)
        ],
    }


def _anneal_summary(file: LawFile) -> dict[str, Any]:
    law: AnnealLaw = file.law
    return {
        "weights_of_forms": [{"form": name, "weight": weight} for name, weight in law.weights_.items()],
        "parameters": [
            {"form": form, "size": size, **values}
            for form, sizes in law.parameters_.items()
            if law.weights_[form] == max(law.weights_.values())
            for size, values in sizes.items()
        ],
        "held_out": [
            {
                "schedule": held.name,
                "size": f"{held.size:g}",
                "left_out": "size and schedule" if held.new_size else "schedule",
                "mean_error": held.error,
            }
            for held in law.held_out_
        ],
    }


_SUMMARIES = {
    "scaling": _scaling_summary,
    "hyperparameters": _hyperparameter_summary,
    "mixture": _mixture_summary,
    "anneal": _anneal_summary,
}

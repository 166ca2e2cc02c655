"""Fits laws to tables. All checks that can name a line are made here, before a law gets the numbers.

The roles of columns follow from their names (``columns``), unless the user names the columns. A named form takes its
features from the first columns, under any name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from armillary.laws.anneal.curves import curve_columns, read_curves
from armillary.laws.anneal.law import AnnealLaw
from armillary.laws.columns import (
    ALIASES,
    ColumnReading,
    default_columns,
    feature_of,
    find_column,
    is_loss,
    known_features,
    readings,
)
from armillary.laws.estimator import Array, rows_named
from armillary.laws.examination.gain import GainLaw
from armillary.laws.examination.law import LEAST_RUNS, ExaminationLaw
from armillary.laws.files import LawFile, source_of
from armillary.laws.hyperparameters.law import HyperparameterLaw
from armillary.laws.mixture.law import MixtureLaw
from armillary.laws.scaling.law import SCALING_FORMS, ScalingLaw
from armillary.laws.table import INDEX, Table, parse_size, read_table
from armillary.laws.workbench.doubts import refuse_rising, warn_of_perplexities, warn_of_swapped, warn_of_units
from armillary.laws.workbench.entries import (
    about,
    entry_aside,
    label_of,
    losses_of,
    mixtures_of,
    report_aside,
    without_copies,
)
from armillary.recipe import UsageError, counted

HYPERPARAMETER_FORMS = ("step-law", "basin")
FORMS = ("auto", *SCALING_FORMS, *HYPERPARAMETER_FORMS)


def fit_mixture(
    runs: Path,
    losses: Path,
    size_column: str | None = None,
    tokens_column: str | None = None,
    columns: Sequence[str] | None = None,
) -> LawFile:
    """Fit a mixture law to two tables that share an ``index`` column.

    Args:
        runs: one column per training domain, with rows that sum to 1, and sizes and tokens if they are not in
            ``losses``.
        losses: one column per validation domain.
        size_column: column of the models' sizes in parameters, for runs at several sizes; None to recognise it by name.
        tokens_column: column of the tokens that each run was trained on, likewise.
        columns: the losses. None takes all columns with a known name of a loss, or if there are none, all numeric
            columns.

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
            f"{runs}: column '{scale['tokens'][0]}' has tokens, but no column has the models' parameters; add one"
        )
    taken = {INDEX, *(name for name, _ in scale.values())}
    domains = [name for name in inputs.columns if name not in taken and inputs.numeric(name)]
    targets = _targets(outputs, taken) if columns is None else [find_column(outputs, name) for name in columns]
    weights = mixtures_of(inputs, domains)
    Y, targets, bad = losses_of(outputs, targets, least=8)
    report_aside(losses, bad)
    warn_of_perplexities(losses, Y, targets)
    arranged = outputs.taking(order.tolist())

    def named(name: str, i: int) -> str | None:
        return (arranged if name == "Y" else inputs).where(i)

    sizes, tokens = (scale[name][1] if name in scale else None for name in ("params", "tokens"))
    if sizes is not None and tokens is not None:
        warn_of_swapped(inputs, np.column_stack([sizes, tokens]), [scale[name][0] for name in ("params", "tokens")])
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
        entry_aside(arranged, one.row, targets[one.target], f"the other runs predict about {one.expected:.4g}")
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
    """The column of sizes or tokens, recognised by its name and by values above 1, which a weight cannot have."""
    for name in table.columns:
        if feature_of(name) == feature and table.numeric(name) and table.sizes([name]).min() > 1:
            return name
    return None


def _targets(table: Table, taken: set[str]) -> list[str]:
    """Columns of losses of a table that holds one for each validation domain."""
    numbers = [name for name in table.columns if name not in taken and table.numeric(name)]
    known = [name for name in numbers if is_loss(name)]
    if not known and not numbers:
        raise UsageError(f"{table.path} has no loss columns besides '{INDEX}'; add one per validation domain")
    return known or numbers


def _matched(inputs: Table, outputs: Table) -> np.ndarray:
    """For each row of ``inputs`` the row of ``outputs`` with the same index."""
    places: list[dict[str, int]] = []
    for table in (inputs, outputs):
        place: dict[str, int] = {}
        for row, entry in enumerate(table.text(INDEX)):
            label = label_of(entry)
            if label in place:
                raise table.error(
                    row, INDEX, f"line {table.lines[place[label]]} has the same index; each index must be unique"
                )
            place[label] = row
        places.append(place)
    for k, (table, other) in enumerate(((inputs, outputs), (outputs, inputs))):
        for label, row in places[k].items():
            if label not in places[1 - k]:
                raise table.error(row, INDEX, f"{other.path} has no such index; give both tables the same runs")
    return np.array([places[1][label] for label in places[0]])


def fit_scaling(points: Path, columns: Sequence[str] | None = None, form: str = "auto") -> LawFile:
    """Fit a scaling law, or a law of learning rate and batch size, to a table of runs.

    A loss that is missing or not above 0 is set aside, and so is an exact copy of another row.

    Args:
        points: one row per run.
        columns: the features of the law, then the losses; None for parameters, tokens and all losses recognised by
        name. form: one of ``FORMS``. ``auto`` chooses by the names of the columns.

    Raises:
        UsageError: an unknown form or column; columns that do not fit the form; a bad entry; a loss that rises with
            parameters and tokens.
    """
    if form not in FORMS:
        raise UsageError(f"unknown form '{form}'; choose one of {', '.join(FORMS)}")
    whole = read_table(points)
    named = default_columns(whole) if columns is None else [find_column(whole, name) for name in columns]
    for name in named:
        if named.count(name) > 1:
            raise UsageError(f"--columns has '{name}' twice")
    kind, wanted, features = _features(named, form)
    # A law of learning rates reads one count of parameters; another one beside it is not a loss.
    sizes = known_features(named) if kind == "hyperparameters" else {}
    targets = [name for name in named if name not in features and name not in sizes]
    if not targets:
        raise UsageError(f"--columns {','.join(named)} has no loss; give it last")
    if kind == "hyperparameters" and len(targets) > 1:
        raise UsageError(
            f"{points}: a law of learning rate and batch size predicts one loss, not {', '.join(targets)}; choose one: "
            f"--columns {','.join(features)},LOSS"
        )
    table, aside = without_copies(whole)
    X = table.sizes(features)
    Y, targets, bad = losses_of(table, targets, least=6)
    report_aside(points, [*aside, *bad])
    places = _size_places(wanted)
    refuse_rising(table, X[:, places], Y, targets)
    warn_of_swapped(table, X[:, places], [features[place] for place in places])
    warn_of_units(table, X[:, places], [features[place] for place in places])
    warn_of_perplexities(points, Y, targets)
    law: ScalingLaw | HyperparameterLaw
    with about(table, targets):
        if kind == "hyperparameters":
            rows = np.flatnonzero(np.isfinite(Y[:, 0]))
            with about(table.taking(rows.tolist()), targets):
                law = HyperparameterLaw(form=form).fit(X[rows], Y[rows, 0])
            contradicted = [
                entry_aside(table, int(rows[i]), targets[0], "contradicted by other runs") for i in law.diverged_
            ]
            report_aside(points, contradicted)
        else:
            law = ScalingLaw(form=form, features=tuple(wanted)).fit(X, np.nan_to_num(Y, nan=1.0), missing=np.isnan(Y))
            contradicted = [
                entry_aside(table, one.row, targets[one.target], f"the other runs predict about {one.expected:.4g}")
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
    """The kind of law, its features, and their columns among the ``named`` ones."""
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
                f"--columns {','.join(named)}: '{name}' is listed as an input of the law, but is not a known name ("
                f"{', '.join(ALIASES)}); rename it, give the losses last, or give a --form"
            )
    kind = "hyperparameters" if {"lr", "bs"} <= roles.keys() else "scaling"
    size = "active_params" if "active_params" in roles else "params"
    if kind == "hyperparameters" and "params" not in roles:
        # The best rates of models with experts follow all parameters more closely than the active ones.
        counted_as = next((feature for feature in ("total_params", "active_params") if feature in roles), None)
        if counted_as is not None:
            roles["params"] = roles.pop(counted_as)
    wanted = HyperparameterLaw.features if kind == "hyperparameters" else (size, "tokens")
    missing = [feature for feature in wanted if feature not in roles]
    if missing:
        raise UsageError(
            f"--columns {','.join(named)}: none is known as {' or '.join(missing)} (names such as "
            f"{', '.join(ALIASES[missing[0]][:6])}); rename it, or give a --form, which reads its columns in order"
        )
    if kind == "scaling":
        wanted = (*wanted, *(feature for feature in roles if feature not in wanted))
    return kind, wanted, [roles[feature] for feature in wanted]


def _in_order(columns: Sequence[str], known: dict[str, str], wanted: Sequence[str], form: str) -> list[str]:
    """The columns for the ``wanted`` features: by name if all are recognised, else the first columns."""
    by_name = {feature: name for name, feature in known.items()}
    if all(feature in by_name for feature in wanted):
        return [by_name[feature] for feature in wanted]
    if len(columns) <= len(wanted):
        raise UsageError(
            f"--form {form} needs {', '.join(wanted)} and then one loss or more; --columns {','.join(columns)} has "
            f"{counted(len(columns), 'name')}"
        )
    return list(columns[: len(wanted)])


def _size_places(wanted: Sequence[str]) -> list[int]:
    """The indices of parameters and tokens among the features."""
    size = "active_params" if "active_params" in wanted else "params"
    return [list(wanted).index(size), list(wanted).index("tokens")]


def fit_examination(points: Path, columns: Sequence[str], chance: float, items: int) -> LawFile:
    """Fit a law of an examination to a table of runs.

    Args:
        points: one row per run; an exact copy of another row is set aside.
        columns: the validation loss, the task loss if there is one, and the accuracy, in this order.
        chance: accuracy of a guess.
        items: number of items of the task.

    Raises:
        UsageError: not two or three columns, a duplicate column, a bad entry, or as ``ExaminationLaw.fit``.
    """
    whole = read_table(points)
    if len(columns) not in (2, 3):
        raise UsageError(
            f"--columns {','.join(columns)} has {counted(len(columns), 'name')}; give the validation loss, the "
            f"task loss where "
            "there is one, and the accuracy, such as --columns loss,task_loss,accuracy"
        )
    loss, *targets = [find_column(whole, name) for name in columns]
    for name in (loss, *targets):
        if (loss, *targets).count(name) > 1:
            raise UsageError(f"--columns has '{name}' twice")
    table, aside = without_copies(whole)
    report_aside(points, aside)
    if len(table.rows) < LEAST_RUNS:
        raise UsageError(f"{points} has {len(table.rows)} different runs; at least {LEAST_RUNS} are needed")
    X = table.numbers([loss], above=0.0)
    y = np.column_stack([table.numbers(targets[:-1], above=0.0), table.numbers(targets[-1:], least=0.0)])
    for row in np.flatnonzero(y[:, -1] > 1):
        raise table.error(int(row), targets[-1], "an accuracy must be between 0 and 1; divide percentages by 100")
    warn_of_perplexities(points, X, [loss])
    with about(table, targets):
        law = ExaminationLaw(chance=chance, items=items).fit(X, y)
    read = [
        ColumnReading(loss, "loss"),
        *(ColumnReading(name, "task loss") for name in targets[:-1]),
        ColumnReading(targets[-1], "accuracy"),
        *(
            ColumnReading(name, "ignored", "" if table.numeric(name) else "text")
            for name in whole.columns
            if name not in (loss, *targets)
        ),
    ]
    return LawFile("examination", law, [loss], targets, None, [source_of(points, len(whole.rows))], read, aside)


def fit_gain(points: Path, columns: Sequence[str], law: GainLaw) -> LawFile:
    """Fit the unfitted ``law`` to a table of fine-tuning runs on parts of the data.

    Args:
        points: one row per run; rows of equal size are seeds, which may be equal in all columns.
        columns: the size of the data, and the score (a share between 0 and 1) or the loss.
        law: with its form, chance and items.

    Raises:
        UsageError: not two columns, a bad entry, or as ``GainLaw.fit``.
    """
    table = read_table(points)
    if len(columns) != 2:
        raise UsageError(
            f"--columns {','.join(columns)} has {len(columns)} names; give the size of the data and the score or "
            "loss, such as --columns examples,accuracy"
        )
    data, target = (find_column(table, name) for name in columns)
    if data == target:
        raise UsageError(f"--columns has '{data}' twice")
    X = table.sizes([data])
    y = table.numbers([target], least=0.0)
    if law.form == "score":
        for row in np.flatnonzero(y[:, 0] > 1):
            raise table.error(int(row), target, "a score must be between 0 and 1; divide percentages by 100")
    with about(table, [target]):
        law.fit(X, y)
    read = [ColumnReading(data, "data"), ColumnReading(target, law.form)]
    read += [ColumnReading(name, "ignored") for name in table.columns if name not in (data, target)]
    return LawFile("gain", law, [data], [target], None, [source_of(points, len(table.rows))], read)


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
        steps, _, loss = curve_columns(table)
        where: dict[str, Any] = {"file": f"{table.path.parent.name}/{table.path.name}", "why": one.why}
        if one.step is None:
            aside.append(where | {"line": None, "column": loss, "value": None})
        else:
            row = int(np.flatnonzero(table.numbers([steps])[:, 0] == one.step)[0])
            aside.append(entry_aside(table, row, loss, one.why) | where)
    measured = []
    for table in tables.values():
        losses, bad = table.losses([curve_columns(table)[2]])
        measured.append(losses)
        file = f"{table.path.parent.name}/{table.path.name}"
        aside += [entry_aside(table, entry.row, entry.column, entry.remedy) | {"file": file} for entry in bad]
    warn_of_perplexities(curves, np.concatenate(measured), ["loss"])
    sources = [source_of(path, len(table.rows)) for path, table in tables.items()]
    read = [ColumnReading(name, name) for name in ("step", "lr", "loss")]
    return LawFile("anneal", law, ["step", "lr"], ["loss"], None, sources, read, aside)

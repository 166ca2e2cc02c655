"""Predictions of law files for the rows of tables, and their comparison with measurements."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from armillary.files import write_file
from armillary.laws.anneal.curves import read_curve
from armillary.laws.columns import find_column
from armillary.laws.estimator import Array, Prediction
from armillary.laws.files import LawFile, read_law
from armillary.laws.table import INDEX, Table, parse_size, read_table
from armillary.laws.workbench.entries import about, entry_aside, label_of, mixtures_of, report_aside
from armillary.recipe import UsageError


@dataclass(frozen=True)
class Rows:
    """A table for output: column names, and rows of text and numbers."""

    columns: list[str]
    rows: list[list[str | float]]

    def write(self, path: Path) -> None:
        """Write as CSV, with all digits of the numbers."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        write_file(path, text.getvalue().encode())


def predict_mixture(law: LawFile, at: Path, interval: float, size: float | None, tokens: float | None = None) -> Rows:
    """Losses of the mixtures in table ``at``, at the sizes and tokens in its columns, else at ``size`` and ``tokens``.

    Raises:
        UsageError: columns that are unknown to the law or missing, a bad entry.
    """
    table = read_table(at)
    allowed = {INDEX, law.size_column, law.tokens_column, *law.features, *law.targets}
    for name in table.columns:
        if name not in allowed and table.numeric(name):
            raise UsageError(
                f"{at}: the law has no column '{name}'; it was fitted to {', '.join(law.features)}"
                + (f" and {law.size_column}" if law.size_column else "")
            )
    weights = mixtures_of(table, law.features)
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
        UsageError: no size although several were fitted, a bad entry.
    """
    if size is None:
        if len(law.law.sizes_) > 1:
            known = ", ".join(f"{s:g}" for s in law.law.sizes_)
            raise UsageError(
                f"the law was fitted to models of {known} parameters; choose one with --size, such as 400M"
            )
        size = float(law.law.sizes_[0])
    schedule = replace(read_curve(at, size, need_loss=False), warmup_steps=warmup_steps)
    known_curve = None if given is None else replace(read_curve(given, size), warmup_steps=warmup_steps)
    with about(at):
        prediction = law.law.predict(schedule, interval, given=known_curve)
    factor = (law.law if known_curve is None else law.law.including(known_curve)).extrapolation(schedule)
    return _with_predictions(read_table(at), law.targets, prediction, factor)


def predict_examination(law: LawFile, at: Path, interval: float) -> Rows:
    """Scores of the runs in table ``at`` from their losses.

    If the table has the columns ``LOSS_low`` and ``LOSS_high``, as predictions of other laws do, the losses are
    predictions, and the intervals of the scores include those of the losses. Both must have the same coverage
    probability.

    Raises:
        UsageError: a missing column, a bad entry.
        ExtrapolationError: a loss that the fitted runs do not support.
    """
    table = read_table(at)
    loss = find_column(table, law.features[0])
    ends = [f"{loss}_low", f"{loss}_high"]
    X = table.numbers([loss, *ends] if set(ends) <= set(table.columns) else [loss], above=0.0)
    with about(table, law.targets):
        prediction = law.law.predict(X, interval)
    return _with_predictions(table, law.targets, prediction, law.law.extrapolation(X))


def predict_gain(law: LawFile, at: Path, interval: float) -> Rows:
    """Scores or losses after fine-tuning on the sizes of data in table ``at``.

    Raises:
        UsageError: a missing column, a bad entry.
        ExtrapolationError: far more data than the largest part.
    """
    table = read_table(at)
    X = table.sizes([find_column(table, law.features[0])])
    with about(table, law.targets):
        prediction = law.law.predict(X, interval)
    return _with_predictions(table, law.targets, prediction, law.law.extrapolation(X))


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
        UsageError: as the functions above; an option that does not apply to this kind of law.
    """
    law = read_law(path)
    for option, value in (("--given", given), ("--warmup-steps", warmup_steps)):
        if value is not None and law.kind != "anneal":
            raise UsageError(f"{option} is for annealing laws; {path} is a law of kind '{law.kind}'")
    if size is not None and law.kind not in ("anneal", "mixture"):
        raise UsageError(
            f"--size is for annealing and mixture laws; this law reads sizes from column {law.features[0]}"
        )
    if tokens is not None and law.kind != "mixture":
        raise UsageError(f"--tokens is for mixture laws; {path} is a law of kind '{law.kind}'")
    parameters = None if size is None else parse_size(size)
    if law.kind == "mixture":
        return predict_mixture(law, at, interval, parameters, None if tokens is None else parse_size(tokens))
    if law.kind == "anneal":
        return predict_curve(law, at, interval, parameters, given, warmup_steps)
    if law.kind == "examination":
        return predict_examination(law, at, interval)
    if law.kind == "gain":
        return predict_gain(law, at, interval)
    return predict_points(law, at, interval)


def _with_predictions(table: Table, targets: Sequence[str], prediction: Prediction, factor: Array) -> Rows:
    """The index of ``table`` (without one, all its columns except the targets) and the predictions."""
    added = [*(name + end for name in targets for end in ("", "_low", "_high")), "extrapolation"]
    kept = [INDEX] if INDEX in table.columns else [name for name in table.columns if name not in added]
    values = [np.reshape(part, (len(table.rows), len(targets))) for part in prediction]
    columns = [*kept, *added]
    texts = [table.text(name) for name in kept]
    rows: list[list[str | float]] = []
    for i in range(len(table.rows)):
        numbers = [float(value[i, t]) for t in range(len(targets)) for value in values]
        rows.append([*(text[i] for text in texts), *numbers, float(factor[i])])
    return Rows(columns, rows)


def measured_against(path: Path, at: Path, predicted: Rows, measured: Path, size: str | None = None) -> dict[str, Any]:
    """Compare predictions with measurements: errors, and the number of intervals that cover.

    Rows are matched by ``index`` if both tables have it, else by the features of the law (``step`` for an annealing
    law).

    Args:
        path: the law file.
        at: the table that was predicted.
        predicted: the result of ``predict`` for it. measured: table with the same columns and the losses.
        size: as for ``predict``; one size for all rows.

    Returns:
        Plain values: ``losses`` with counts and errors for each, ``rows`` with every comparison, and what was left out.
        A relative error is predicted / measured - 1; the mean absolute error has the unit of the loss.

    Raises:
        UsageError: a missing column, a bad entry, or no row in common.
    """
    law = read_law(path)
    asked, found = read_table(at), read_table(measured)
    keys: list[list[tuple[str, ...]]]
    if INDEX in asked.columns and INDEX in found.columns:
        names, keys = [INDEX], [[(label_of(entry),) for entry in table.text(INDEX)] for table in (asked, found)]
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
        report_aside(measured, [entry_aside(found, entry.row, entry.column, entry.remedy) for entry in bad])
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
                figures = {"predicted": mean, "low": low, "high": high, "measured": float(values[i, t])}
                error = mean / float(values[i, t]) - 1
                rows.append(what | figures | {"relative_error": error, "inside": bool(low <= values[i, t] <= high)})
    if not rows and any(key in place for key in keys[1]):
        why = f": {found.entry(bad[0].row, bad[0].column)}; {bad[0].remedy}" if bad else ""
        raise UsageError(f"{measured}: no row in common with {at} has a measured loss{why}")
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
                    "mean_absolute_error": float(np.mean([abs(row["predicted"] - row["measured"]) for row in mine])),
                    "mean_absolute_relative_error": float(np.mean([abs(row["relative_error"]) for row in mine])),
                    "mean_relative_error": float(np.mean([row["relative_error"] for row in mine])),
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

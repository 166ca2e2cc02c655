"""Entries of tables: the ones that count, the ones set aside, and their names in errors and warnings."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from armillary.laws.estimator import SHOWN, SUM_TOLERANCE, Array, SetAsideWarning, rows_named
from armillary.laws.table import Table
from armillary.recipe import UsageError, counted


@contextlib.contextmanager
def about(table: Table | Path, targets: Sequence[str] = ()) -> Iterator[None]:
    """Let a law's errors and warnings name a table's lines, or at least its file."""

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


def entry_aside(table: Table, row: int, column: str, why: str) -> dict[str, Any]:
    """The record of an entry that was left out of a fit."""
    entry = table.text(column)[row]
    return {"file": table.path.name, "line": table.lines[row], "column": column, "value": entry, "why": why}


def report_aside(path: Path, aside: Sequence[dict[str, Any]]) -> None:
    """Warn in one line about entries that were left out."""
    if aside:
        parts = [f"line {a['line']}, column '{a['column']}' is '{a['value']}' ({a['why']})" for a in aside[:SHOWN]]
        more = f" and {len(aside) - SHOWN} more" if len(aside) > SHOWN else ""
        warnings.warn(f"{path}: {len(aside)} left out: {'; '.join(parts)}{more}", SetAsideWarning, stacklevel=3)


def without_copies(table: Table) -> tuple[Table, list[dict[str, Any]]]:
    """The table without duplicate rows, and the record of the duplicates."""
    first: dict[tuple[str, ...], int] = {}
    kept, aside = [], []
    for i, row in enumerate(table.rows):
        entries = tuple(row[1:] if table.unnamed_index else row)
        if entries in first:
            why = f"a copy of line {table.lines[first[entries]]}"
            aside.append(entry_aside(table, i, table.columns[0], why))
        else:
            first[entries] = i
            kept.append(i)
    return table.taking(kept), aside


def losses_of(table: Table, targets: Sequence[str], least: int) -> tuple[Array, list[str], list[dict[str, Any]]]:
    """Losses [n, t] with NaN for missing ones, the targets with at least ``least`` runs, and the entries set aside.

    Raises:
        UsageError: no target has enough runs.
    """
    values, bad = table.losses(targets)
    aside = [entry_aside(table, entry.row, entry.column, entry.remedy) for entry in bad]
    left = [t for t in range(len(targets)) if np.isfinite(values[:, t]).sum() >= least]
    if not left:
        first = f"; {table.entry(bad[0].row, bad[0].column)}; {bad[0].remedy}" if bad else ""
        counts = ", ".join(f"{np.isfinite(values[:, t]).sum()} of '{name}'" for t, name in enumerate(targets))
        raise UsageError(
            f"{table.path} has {counted(len(table.rows), 'row')} with {counts} that can be fitted; at "
            f"least {least} are "
            f"needed{first}"
        )
    for t in range(len(targets)):
        if t not in left:
            count = int(np.isfinite(values[:, t]).sum())
            warnings.warn(
                f"{table.path}: column '{targets[t]}' is left out: {count} of its entries are losses, but at least "
                f"{least} are needed",
                SetAsideWarning,
                stacklevel=2,
            )
    return values[:, left], [targets[t] for t in left], aside


def mixtures_of(table: Table, domains: Sequence[str]) -> Array:
    """Mixtures [n, d], each row scaled to a sum of 1."""
    if len(domains) < 2:
        raise UsageError(
            f"{table.path} has {counted(len(domains), 'column')} of training domains; a mixture needs at least 2"
        )
    weights = table.numbers(domains, least=0)
    total = weights.sum(1)
    for row in np.flatnonzero(np.abs(total - 1) > SUM_TOLERANCE):
        raise UsageError(
            f"{table.path}, line {table.lines[row]}: the weights of columns '{domains[0]}' to '{domains[-1]}' sum to "
            f"{total[row]:.6g}, not to 1; give the share of each domain in the tokens"
        )
    return np.asarray(weights / total[:, None])


def label_of(entry: str) -> str:
    """An index in normal form: 7, 7.0 and 007 are equal; other text is unchanged."""
    try:
        number = float(entry)
    except ValueError:
        return entry.strip()
    return str(int(number)) if number.is_integer() else repr(number)

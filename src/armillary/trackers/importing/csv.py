"""Reads runs from CSV: a row per run, a file per run with a row per step, or the columns of a chart's export.

A chart of Weights & Biases is exported with a column ``RUN - METRIC`` for each run; its ``__MIN`` and ``__MAX`` are
left out.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from armillary.laws import read_table
from armillary.laws.columns import STEPS, is_loss, plain
from armillary.laws.table import Table
from armillary.recipe import UsageError
from armillary.trackers.importing.found import FoundRun, files_below

LACKS = "no CSV files"
RUN_NAMES = ("run", "name", "run_name", "run_id", "id", "model")
_CHART = " - "


def read(path: Path) -> tuple[list[FoundRun], list[str]]:
    """The runs in a file or in the CSV files of a folder; and what could not be read."""
    runs: list[FoundRun] = []
    notes: list[str] = []
    files = list(files_below(path, "*.csv", notes))
    for file in files:
        try:
            table = _whole(file, notes)
        except UsageError as error:
            if len(files) == 1:
                raise
            notes.append(f"{error}; the file was left out")
            continue
        runs += _runs(table, file)
    return runs, notes


def _whole(file: Path, notes: list[str]) -> Table:
    """The table of a file; a last line that was cut off is left out."""
    try:
        return read_table(file)
    except UsageError as error:
        data = file.read_bytes() if file.is_file() else b""
        lines = data.splitlines(keepends=True)
        if data.endswith((b"\n", b"\r")) or len(lines) < 3:
            raise
        with tempfile.TemporaryDirectory() as folder:
            shorter = Path(folder) / file.name
            shorter.write_bytes(b"".join(lines[:-1]))
            try:
                table = read_table(shorter)
            except UsageError:
                raise error from None
        notes.append(f"{file}: torn (line {len(lines)} is cut off); the lines before it were read")
        return table


def _runs(table: Table, file: Path) -> list[FoundRun]:
    step = next((name for name in table.columns if plain(name) in STEPS), None)
    name = next((name for name in table.columns if plain(name) in RUN_NAMES), None)
    if step is None or not table.numeric(step) or _once_each(table, name):
        return [_of_row(table, number, name) for number in range(len(table.rows))]
    if name is not None:  # the rows of several runs, one below the other
        groups: dict[str, list[int]] = {}
        for number, run in enumerate(table.text(name)):
            groups.setdefault(run, []).append(number)
        return [_of_history(table.taking(rows), step, run) for run, rows in groups.items()]
    charts = {column: column.rpartition(_CHART) for column in table.columns if _CHART in column}
    if charts:
        return _of_chart(table, step, charts)
    return [_of_history(table, step, file.stem)]


def _once_each(table: Table, name: str | None) -> bool:
    return name is not None and len(set(table.text(name))) == len(table.rows)


def _of_row(table: Table, number: int, name: str | None) -> FoundRun:
    run = FoundRun(table.text(name)[number] if name is not None else f"row {table.lines[number]}")
    for column in table.columns:
        if column != name:
            entry = table.rows[number][table.position(column)].strip()
            value = _number(table, column, number)
            if value is None:
                run.config[column] = entry or None
            elif is_loss(column):  # only its name tells a measurement of a finished run from a setting
                run.measure(column, 0, value)
            else:
                run.config[column] = value
    return run


def _of_history(table: Table, step: str, name: str) -> FoundRun:
    run = FoundRun(name)
    for column in table.columns:
        entries = {entry: row for row, entry in enumerate(table.text(column)) if entry}
        if column != step and len(entries) == 1 and len(table.rows) > 1:
            ((entry, row),) = entries.items()
            value = _number(table, column, row)
            run.config[column] = entry if value is None else value
    for number in range(len(table.rows)):
        at = _number(table, step, number)
        for column in table.columns:
            value = _number(table, column, number)
            if at is not None and column != step and value is not None:
                run.measure(column, int(at), value)
    return run


def _of_chart(table: Table, step: str, charts: dict[str, tuple[str, str, str]]) -> list[FoundRun]:
    runs: dict[str, FoundRun] = {}
    for column, (name, _, metric) in charts.items():
        if metric.endswith(("__MIN", "__MAX")):
            continue
        run = runs.setdefault(name, FoundRun(name))
        for number in range(len(table.rows)):
            at, value = _number(table, step, number), _number(table, column, number)
            if at is not None and value is not None:
                run.measure(metric, int(at), value)
    return list(runs.values())


def _number(table: Table, column: str, row: int) -> float | None:
    entry: Any = table.rows[row][table.position(column)].strip()
    try:
        value = float(table.taking([row]).sizes([column])[0, 0]) if entry else math.nan
    except UsageError:
        try:
            value = float(entry)
        except ValueError:
            return None
    return value if math.isfinite(value) else None

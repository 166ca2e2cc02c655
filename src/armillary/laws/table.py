"""Tables that people bring: CSV files, read such that every error names the file, the line and the column.

Read as text first and turned into numbers column by column, because a column that nobody asked for (a run's name, a
date) may hold anything. Lines are counted as an editor counts them, the header being line 1.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from armillary.laws.estimator import Array
from armillary.recipe import UsageError


@dataclass(frozen=True)
class Table:
    """A CSV file: ``columns``, its ``rows`` as text, and the line at which each row begins."""

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def text(self, column: str) -> list[str]:
        """The entries of a column, [n].

        Raises:
            UsageError: there is no such column.
        """
        where = self._column(column)
        return [row[where] for row in self.rows]

    def numbers(self, columns: Sequence[str], *, above: float = -np.inf, least: float = -np.inf) -> Array:
        """Columns as finite numbers [n, k].

        Args:
            columns: which, in the order wanted.
            above: every value must be larger than this (0 for losses and sizes).
            least: every value must be at least this (0 for weights).

        Raises:
            UsageError: an unknown column, or an entry that is no such number, with file, line, column and value.
        """
        values = np.empty((len(self.rows), len(columns)))
        for k, column in enumerate(columns):
            for i, entry in enumerate(self.text(column)):
                try:
                    values[i, k] = float(entry.replace("_", "?"))  # Python would read 1_000 as 1000
                except ValueError:
                    remedy = "give a number" if entry.strip() else "it is empty; fill it or leave the row out"
                    raise self.error(i, column, remedy) from None
                if not np.isfinite(values[i, k]):
                    raise self.error(i, column, "give a finite number, or leave the row out")
                if values[i, k] <= above:
                    raise self.error(i, column, f"it must be above {above:g}")
                if values[i, k] < least:
                    raise self.error(i, column, f"it must be at least {least:g}")
        return values

    def error(self, row: int, column: str, remedy: str) -> UsageError:
        """The error to raise for an entry: file, line, column, value and ``remedy``."""
        entry = self.rows[row][self._column(column)]
        return UsageError(f"{self.path}, line {self.lines[row]}, column '{column}' is '{entry}'; {remedy}")

    def _column(self, column: str) -> int:
        if column not in self.columns:
            raise UsageError(f"{self.path} has no column '{column}'; its columns are {', '.join(self.columns)}")
        return self.columns.index(column)


def read_table(path: Path) -> Table:
    """Read a CSV file with a header.

    Raises:
        UsageError: the file is missing, not UTF-8, empty or without rows; a column without a name or twice; a row
            with other than as many entries as there are columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows, lines, line = [], [], 1
            for row in reader:
                if row:
                    rows.append(row)
                    lines.append(line)
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as CSV UTF-8") from error
    except csv.Error as error:
        raise UsageError(f"{path}, line {line}: {error}; save it as CSV") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a CSV file with a header") from error
    if len(rows) < 2:
        raise UsageError(f"{path} has {'no rows below its header' if rows else 'no lines'}; give a CSV with a header")
    columns = tuple(name.strip() for name in rows[0])
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and mark in columns[0]:
            raise UsageError(f"{path}, line {lines[0]}: the columns are separated by {name}; save it with commas")
    for k, name in enumerate(columns):
        if not name:
            raise UsageError(f"{path}, line {lines[0]}: column {k + 1} has no name; name it or take it out")
        if columns.index(name) != k:
            raise UsageError(f"{path}, line {lines[0]}: column '{name}' is there twice; take one out")
    for row, number in zip(rows[1:], lines[1:], strict=True):
        if len(row) != len(columns):
            raise UsageError(
                f"{path}, line {number} has {len(row)} entries and the header has {len(columns)}; quote entries that "
                "hold a comma, or fill what is missing"
            )
    return Table(path, columns, rows[1:], lines[1:])

"""Reads tables as people and programs write them; every error names the file, the line and the column.

A table is read as text first and converted to numbers column by column, because a column that no law needs (a run's
name, a date) may hold anything. Lines are counted as in an editor. Unambiguous forms are accepted: commas, semicolons
or tabs; UTF-8 or the UTF-16 of spreadsheets; decimal commas; blank lines and trailing separators; sizes such as
``10M``, ``1_000`` and ``10,000,000``. Ambiguous entries are refused, such as ``1,234`` in a file that does not show
which mark is decimal.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from armillary.laws.estimator import Array
from armillary.recipe import UsageError, counted

UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:E[+-]?[0-9]+)?"
_SIZE = re.compile(rf"({_NUMBER})\s*([KMBGT]?)")
_GROUPS = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_SPACED = re.compile(r"[0-9]{1,3}(?:[ '\u00a0\u202f][0-9]{3})+")
# With a decimal comma and nothing else: other than three digits behind it, none but a zero before it, or an exponent.
_COMMA = re.compile(
    r"[+-]?(?:[0-9]*,(?:[0-9]{1,2}|[0-9]{4,})(?:E[+-]?[0-9]+)?|0?,[0-9]+(?:E[+-]?[0-9]+)?|[0-9]+,[0-9]+E[+-]?[0-9]+)"
    r"[KMBGT]?"
)
# The first line that declares a file's separator to Excel.
_EXCEL = re.compile(r"sep=([,;\t])[,;\t]*\r?\n", re.IGNORECASE)
_JSON = re.compile(r"\s*(\{|\[\s*[{\[])")
_UNNAMED = re.compile(r"(?:unnamed: ?\d+)?", re.IGNORECASE)

# First bytes of files that are not text.
_MAGIC = {
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"PK\x03\x04": "an Excel workbook or a ZIP archive; save its sheet as CSV",
    b"PAR1": "a Parquet file; write it as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save its sheet as CSV",
}

INDEX = "index"


class TwoMeaningsError(ValueError):
    """A number whose comma or point may be a decimal mark or may group digits; says what to write."""


@dataclass(frozen=True)
class BadEntry:
    """An entry that is not a valid number for a law, and what would be valid."""

    row: int
    column: str
    remedy: str


@dataclass(frozen=True)
class Table:
    """A table: ``columns``, its ``rows`` as text, the line at which each row begins, and the ``decimal`` mark.

    ``unnamed_index`` says whether the first column had no name, as pandas writes an index; it is called ``index``.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    decimal: str = "."
    unnamed_index: bool = False

    def text(self, column: str) -> list[str]:
        """The entries of a column, [n].

        Raises:
            UsageError: an unknown column.
        """
        where = self.position(column)
        return [row[where].strip() for row in self.rows]

    def numbers(self, columns: Sequence[str], *, above: float = -np.inf, least: float = -np.inf) -> Array:
        """Columns as finite numbers [n, k].

        Args:
            columns: which, in the order wanted.
            above: every value must be larger than this (0 for losses and sizes).
            least: every value must be at least this (0 for weights).

        Raises:
            UsageError: an unknown column, or an entry that is not such a number, with file, line, column and value.
        """
        return self._strict(columns, self._number, above, least)

    def sizes(self, columns: Sequence[str]) -> Array:
        """Columns of sizes as numbers above 0, [n, k]; as ``numbers``, and with units and grouped digits (``10M``)."""
        return self._strict(columns, self._size, 0.0, -np.inf)

    def losses(self, columns: Sequence[str]) -> tuple[Array, list[BadEntry]]:
        """Columns of losses [n, k], with NaN for entries that are not a loss, and these entries.

        Raises:
            UsageError: an unknown column.
        """
        return self._parsed(columns, self._number, 0.0, -np.inf)

    def numeric(self, column: str) -> bool:
        """Whether at least half of a column's filled entries are numbers (``nan`` and ``inf`` among them)."""
        entries = [entry for entry in self.text(column) if entry]
        count = 0
        for entry in entries:
            with contextlib.suppress(ValueError):
                self._size(entry)
                count += 1
        return count > 0 and 2 * count >= len(entries)

    def taking(self, rows: Sequence[int]) -> Table:
        """The same table with some of its rows, in their order."""
        return replace(self, rows=[self.rows[i] for i in rows], lines=[self.lines[i] for i in rows])

    def where(self, row: int) -> str:
        """File and line of a row."""
        return f"{self.path}, line {self.lines[row]}"

    def error(self, row: int, column: str, remedy: str) -> UsageError:
        """The error to raise for an entry: file, line, column, value and ``remedy``."""
        return UsageError(f"{self.entry(row, column)}; {remedy}")

    def entry(self, row: int, column: str) -> str:
        """File, line, column and value of an entry."""
        return f"{self.where(row)}, column '{column}' is '{self.rows[row][self.position(column)]}'"

    def position(self, column: str) -> int:
        """The index (from 0) of the column of this name.

        Raises:
            UsageError: an unknown column.
        """
        if column not in self.columns:
            near = difflib.get_close_matches(column.lower(), {name.lower(): name for name in self.columns}, n=1)
            hint = next((f"; did you mean '{name}'?" for name in self.columns if [name.lower()] == near), "")
            raise UsageError(f"{self.path} has no column '{column}'{hint}; its columns are {', '.join(self.columns)}")
        return self.columns.index(column)

    def _strict(self, columns: Sequence[str], parse: Callable[[str], float], above: float, least: float) -> Array:
        values, bad = self._parsed(columns, parse, above, least)
        if bad:
            raise self.error(bad[0].row, bad[0].column, bad[0].remedy)
        return values

    def _parsed(
        self, columns: Sequence[str], parse: Callable[[str], float], above: float, least: float
    ) -> tuple[Array, list[BadEntry]]:
        """Entries as numbers [n, k], and the invalid entries."""
        values, bad = np.full((len(self.rows), len(columns)), np.nan), []
        for k, column in enumerate(columns):
            for i, entry in enumerate(self.text(column)):
                try:
                    value = parse(entry)
                except ValueError as error:
                    remedy = str(error) if entry else "it is empty; fill it or leave the row out"
                    bad.append(BadEntry(i, column, remedy))
                    continue
                if not np.isfinite(value):
                    bad.append(BadEntry(i, column, "give a finite number, or leave the row out"))
                elif value <= above:
                    bad.append(BadEntry(i, column, f"it must be above {above:g}"))
                elif value < least:
                    bad.append(BadEntry(i, column, f"it must be at least {least:g}"))
                else:
                    values[i, k] = value
        return values, bad

    def _number(self, entry: str) -> float:
        """A number with this table's decimal mark; ValueError with a remedy."""
        if self.decimal == "," and "," in entry:
            if "." in entry and not re.fullmatch(r"[+-]?[0-9]{1,3}(\.[0-9]{3})+,[0-9]+", entry):
                raise ValueError("the file's decimal separator is a comma; write the number with one separator")
            entry = entry.replace(".", "").replace(",", ".")
        elif self.decimal == "," and re.fullmatch(r"[+-]?[0-9]{1,3}\.[0-9]{3}", entry):
            whole, _, part = entry.partition(".")
            raise TwoMeaningsError(
                f"it may be {whole}.{part} or {whole}{part} in a file with decimal commas; write it that way"
            )
        elif self.decimal == "?" and re.fullmatch(r"[+-]?[0-9]{1,3},[0-9]{3}", entry):
            whole, _, part = entry.partition(",")
            raise TwoMeaningsError(f"it may be {whole}.{part} or {whole}{part}; write it without a comma")
        try:
            return float(entry.replace("_", "?"))  # Python would read 1_000 as 1000
        except ValueError:
            raise ValueError("give a number") from None

    def _size(self, entry: str) -> float:
        """As ``_number``, and with units and grouped digits."""
        try:
            return self._number(entry)
        except TwoMeaningsError:
            raise
        except ValueError as error:
            plain = entry
            if self.decimal == "," and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{3}){2,}", entry):
                plain = entry.replace(".", "")
            elif self.decimal == "," and "," in entry and "." not in entry:
                plain = entry.replace(",", ".")
            try:
                return size_of(plain)
            except ValueError:
                raise ValueError(f"{error} such as 10M, 1.5B or 10000000") from None


def size_of(text: str) -> float:
    """A size from ``25M``, ``1.3B``, ``25000000``, ``25_000_000`` or ``25,000,000``; raises ValueError otherwise."""
    entry = text.strip()
    if _GROUPS.fullmatch(entry):
        entry = entry.replace(",", "")
    elif _SPACED.fullmatch(entry):
        entry = re.sub(r"[^0-9]", "", entry)
    entry = re.sub(r"(?<=[0-9])_(?=[0-9])", "", entry)
    found = _SIZE.fullmatch(entry.upper())
    if not found:
        raise ValueError("give a number")
    return float(found[1]) * UNITS[found[2]]


def parse_size(text: str) -> float:
    """Parameters or tokens from ``25M``, ``1.3B`` or ``25000000``.

    Raises:
        UsageError: it is not a size.
    """
    try:
        size = size_of(text)
    except ValueError:
        size = 0.0
    if not 0 < size < np.inf:
        raise UsageError(f"'{text}' is not a model size; write its parameters, such as 25M, 1.3B or 25000000")
    return size


def read_table(path: Path) -> Table:
    """Read a table with a header: separated by commas, semicolons or tabs.

    Lines without any entry and separators at the end of all lines are left out, and so are lines that begin with ``#``
    above the header. A first column without a name is called ``index``, and so is one named ``Index`` or ``INDEX``.

    Raises:
        UsageError: the file is missing, not a text, empty or without rows; a column without a name or twice; a row
            with other than as many entries as there are columns; the header once more.
    """
    text = _decoded(path)
    declared = _EXCEL.match(text)
    delimiter = declared[1] if declared else _delimiter(text)
    rows, lines = _split(path, text, delimiter)
    if declared:
        rows, lines = rows[1:], lines[1:]
    # A comment has other than as many entries as the header below it; a header may begin with # itself.
    while len(rows) > 1 and rows[0][0].lstrip().startswith("#") and len(rows[0]) != len(rows[1]):
        rows, lines = rows[1:], lines[1:]
    if len(rows) < 2:
        raise UsageError(f"{path} has {'no rows below its header' if rows else 'no lines'}; give a CSV with a header")
    header = [name.strip() for name in rows[0]]
    header[0] = header[0].lstrip("# ") or header[0]
    width = len(header)
    while (
        width > 1 and not header[width - 1] and not any(row[width - 1].strip() for row in rows[1:] if len(row) >= width)
    ):
        width -= 1
    body = []
    for whole, line in zip(rows[1:], lines[1:], strict=True):
        row = whole[:width] if not any(entry.strip() for entry in whole[width:]) else whole
        if len(row) != width:
            if width == 1 and len(row[0].split()) > 1 and delimiter == ",":
                raise UsageError(f"{path}, line {line}: the columns are separated by spaces; save it with commas")
            raise UsageError(
                f"{path}, line {line} has {counted(len(row), 'entry')} and the header has {width}; quote entries that "
                "contain a comma, or fill in the missing ones"
            )
        body.append(row)
    columns = tuple(INDEX if name.lower() == INDEX else name for name in header[:width])
    unnamed = _UNNAMED.fullmatch(header[0]) is not None and INDEX not in columns and width > 1
    if unnamed:
        columns = (INDEX, *columns[1:])
    _check_header(path, columns, lines[0])
    for row, line in zip(body, lines[1:], strict=True):
        if [entry.strip() for entry in row] == header[:width]:
            raise UsageError(f"{path}, line {line}: repeated header; remove this line")
    if len(columns) == 1 and "|" in columns[0]:
        raise UsageError(f"{path}, line {lines[0]}: the columns are separated by |; save it with commas")
    if len(columns) == 1 and len(columns[0].split()) > 1 and all(len(row[0].split()) > 1 for row in body):
        raise UsageError(f"{path}, line {lines[0]}: the columns are separated by spaces; save it with commas")
    return Table(path, columns, body, lines[1:], _decimal(body, delimiter), unnamed)


def _decoded(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a CSV file with a header") from error
    for magic, what in _MAGIC.items():
        if data.startswith(magic):
            raise UsageError(f"{path} is {what}")
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}, line {line} is not UTF-8 ({error.reason}); save it as CSV UTF-8") from error
    if _JSON.match(text):
        raise UsageError(f"{path} looks like JSON; write it as CSV with a header")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UsageError(
            f"{path}, line {line} contains a zero byte, so it is not text or is damaged; save it as CSV UTF-8"
        )
    return text


def _delimiter(text: str) -> str:
    """The column separator: tabs or semicolons if the header has more of them than commas, else commas."""
    lines = (line for line in text.splitlines() if line.strip(" ,;\t") and not line.lstrip().startswith("#"))
    header = re.sub(r'"[^"]*"', "", next(lines, ""))
    return max(",;\t", key=header.count)


def _split(path: Path, text: str, delimiter: str) -> tuple[list[list[str]], list[int]]:
    """Rows that hold anything, and the line at which each begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    rows, lines, line = [], [], 1
    try:
        for row in reader:
            if any(entry.strip() for entry in row):
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{path}, line {line}: {error}; save it as CSV") from error
    return rows, lines


def _check_header(path: Path, columns: Sequence[str], line: int) -> None:
    for k, name in enumerate(columns):
        if not name:
            raise UsageError(f"{path}, line {line}: column {k + 1} has no name; name it or remove it")
        if columns.index(name) != k:
            raise UsageError(f"{path}, line {line}: column '{name}' appears twice; remove one")


def _decimal(rows: list[list[str]], delimiter: str) -> str:
    """The decimal mark: ``.``, ``,``, or ``?`` if numbers contain commas of unclear meaning.

    Where commas separate the columns, a comma within an entry only groups digits.
    """
    if delimiter == ",":
        return "."
    entries = [entry.strip() for row in rows for entry in row if "," in entry]
    if any(_COMMA.fullmatch(entry.upper()) for entry in entries):
        return ","
    grouped = any(_GROUPS.fullmatch(entry) and (entry.count(",") > 1 or "." in entry) for entry in entries)
    return "?" if not grouped and any(_GROUPS.fullmatch(entry) for entry in entries) else "."

"""The metrics of a run as rows of Parquet files: one row for each step, most of them already on disk.

A long run does not hold its rows in memory. The oldest are in *parts*, whole Parquet files of some thousand rows. A
snapshot of all rows is a list of parts and the few rows after them. Checkpoints and ``metrics.parquet`` are written
from it part by part, each as a row group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from armillary.files import aside, sync
from armillary.train.writing import writing

_COUNTS = ("step", "tokens")  # int64; all other columns are double


@dataclass(frozen=True)
class Rows:
    """All rows so far: those in ``parts``, then ``rest``. ``columns`` are the columns of all rows, in order."""

    columns: tuple[str, ...]
    parts: tuple[Path, ...]
    rest: tuple[dict[str, float], ...]

    def write(self, path: Path) -> None:
        """Write all rows to a Parquet file, with a row group for each part; one part is in memory at a time."""
        with pq.ParquetWriter(path, _schema(self.columns)) as writer:
            for part in self.parts:
                with open(part, "rb") as file:
                    writer.write_table(_widened(pq.read_table(file), self.columns))
            if self.rest or not self.parts:
                writer.write_table(metrics_table(self.rest, self.columns))


def metrics_table(rows: Sequence[dict[str, float]], columns: Iterable[str] | None = None) -> pa.Table:
    """Rows as a table of ``columns``: by default every key of any row, in order of first appearance."""
    named = list(columns if columns is not None else dict.fromkeys(key for row in rows for key in row))
    return pa.table({name: [row.get(name) for row in rows] for name in named}, schema=_schema(named))


def write_metrics(rows: Rows, path: Path) -> None:
    """Write ``rows`` to ``path`` atomically.

    Raises:
        ArmillaryError: it could not be written, or a part could not be read.
    """
    hidden = aside(path)
    try:
        with writing(path):
            rows.write(hidden)
            sync(hidden)
            hidden.rename(path)
    finally:
        hidden.unlink(missing_ok=True)


def _schema(columns: Iterable[str]) -> pa.Schema:
    return pa.schema([(name, pa.int64() if name in _COUNTS else pa.float64()) for name in columns])


def _widened(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The table with ``columns``; missing columns are null."""
    there = {name: table[name] for name in table.column_names}
    schema = _schema(columns)
    empty = {field.name: pa.nulls(table.num_rows, field.type) for field in schema if field.name not in there}
    return pa.table({**there, **empty}).select(list(columns)).cast(schema)

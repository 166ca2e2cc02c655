"""Appends the metrics of a run to files while it trains, so that its memory does not grow with its steps.

Every ``ROWS`` steps the rows are written as a Parquet file to ``metrics/`` in the run's folder. A kill loses the
unwritten rows. A resumed run begins with the rows of its checkpoint and removes later rows of an earlier attempt, so no
step is missing or duplicated.

Rows after the last part are also in ``metrics/live.parquet``, which is replaced every ``LIVE_S`` seconds, so that other
programs can show the last steps. A resumed run does not need this file.

A part that cannot be written (a full disk) stays in memory and is written with the next one. Checkpoints need all rows
and report a separate error.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from armillary.files import aside
from armillary.train.rows import Rows, metrics_table

if TYPE_CHECKING:
    from armillary.train.loop import Run

ROWS = 4096  # rows per part
LIVE = "live.parquet"
LIVE_S = 3.0


class Metrics:
    """The rows of a run. Parts are written to ``folder``; without one (not rank 0) old rows are dropped."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._columns: dict[str, None] = {}
        self._parts: list[Path] = []
        self._rest: list[dict[str, float]] = []
        self._shown = time.monotonic()

    def due(self, step: int) -> bool:
        """Every ``ROWS`` steps."""
        return step % ROWS == 0

    def act(self, run: Run[Any]) -> None:
        """Write all rows except the last, to which a validation may still add columns."""
        self._write()

    def show(self) -> None:
        """Write the rows after the last part to the live file, at most every ``LIVE_S`` seconds."""
        now = time.monotonic()
        if self.folder is not None and self._rest and now - self._shown >= LIVE_S:
            self._shown = now
            self._put(self.folder / LIVE, self._rest)

    @property
    def last(self) -> dict[str, float]:
        """The row of the last step."""
        return self._rest[-1]

    def append(self, row: dict[str, float]) -> None:
        """Add the row of the next step."""
        self._rest.append(row)
        self._columns.update(dict.fromkeys(row))

    def annotate(self, values: dict[str, float]) -> None:
        """Add columns to the row of the last step."""
        self.last.update(values)
        self._columns.update(dict.fromkeys(values))

    def rows(self) -> Rows:
        """A snapshot of all rows: parts never change, and the last row is copied."""
        rest = (*self._rest[:-1], *map(dict, self._rest[-1:]))
        return Rows(tuple(self._columns), tuple(self._parts), rest)

    def restore(self, table: pa.Table, validated: Any) -> None:
        """Begin with the rows of a checkpoint; drop the validation of steps for which ``validated`` is false."""
        self.clear()
        for batch in table.to_batches(max_chunksize=ROWS):
            for row in batch.to_pylist():
                keep = validated(int(row["step"]))
                named = (key for key in row if keep or not key.startswith("validation/"))
                self.append({key: row[key] for key in named if row[key] is not None})
            if len(self._rest) > ROWS:
                self._write()

    def clear(self) -> None:
        """Drop all rows, and remove the parts of an earlier attempt."""
        self._columns, self._parts, self._rest = {}, [], []
        if self.folder is not None and self.folder.is_dir():
            left = [pattern for name in ("rows-*.parquet", LIVE) for pattern in (name, f".{name}.*")]
            for path in [path for pattern in left for path in self.folder.glob(pattern)]:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not a part
                self.folder.rmdir()

    def _write(self) -> None:
        done, last = self._rest[:-1], self._rest[-1:]
        if self.folder is not None and done:
            path = self.folder / f"rows-{done[0]['step']}.parquet"
            if not self._put(path, done):
                return
            self._parts.append(path)
        self._rest = last

    def _put(self, path: Path, rows: list[dict[str, float]]) -> bool:
        """Write a file of rows atomically; return whether it succeeded."""
        hidden = aside(path)
        try:
            path.parent.mkdir(exist_ok=True)
            pq.write_table(metrics_table(rows), hidden)
            hidden.rename(path)
        except (OSError, pa.ArrowException):
            with contextlib.suppress(OSError):
                hidden.unlink(missing_ok=True)
            return False
        return True

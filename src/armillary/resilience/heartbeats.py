"""Heartbeats of the ranks on one machine, in memory shared with the watching process.

Each rank has a thread that writes the time ten times a second. The thread stops when the process is stopped or killed,
and continues while the training thread waits. The training thread writes each finished step, and the name of any work
that may take longer than a step. Nothing is sent over the network, so a hanging collective does not delay a heartbeat.

Times are those of ``time.monotonic``, which all processes of a machine share.
"""

from __future__ import annotations

import threading
import time
import zlib
from dataclasses import dataclass
from typing import Any

BEAT_S = 0.1
_CELLS = _BEAT, _STEP, _STEPPED, _BUSY, _CHANGED = range(5)


@dataclass(frozen=True)
class Heartbeat:
    """The state of a rank: its last beat (0: none yet), finished steps, current work, and the times of both.

    ``busy`` is a number for each kind of work, 0 for steps. Each step counts as new work.
    """

    beat_s: float
    step: int
    stepped_s: float
    busy: int
    changed_s: float


class Heartbeats:
    """The heartbeats of ``ranks`` ranks; ``context`` is the multiprocessing context that starts them."""

    def __init__(self, context: Any, ranks: int) -> None:
        self.ranks = ranks
        self._cells = context.RawArray("d", len(_CELLS) * ranks)

    def clear(self) -> None:
        """Clear all heartbeats before a restart of the ranks."""
        self._cells[:] = [0.0] * len(self._cells)

    def read(self) -> list[Heartbeat]:
        """The heartbeats of all ranks."""
        cells = list(self._cells)
        rows = [cells[place : place + len(_CELLS)] for place in range(0, len(cells), len(_CELLS))]
        return [Heartbeat(row[_BEAT], int(row[_STEP]), row[_STEPPED], int(row[_BUSY]), row[_CHANGED]) for row in rows]

    def writer(self, rank: int) -> HeartbeatWriter:
        """The writer of ``rank``."""
        return HeartbeatWriter(self._cells, len(_CELLS) * rank)


class HeartbeatWriter:
    """Writes the heartbeats of this rank."""

    def __init__(self, cells: Any, place: int) -> None:
        self._cells, self._place = cells, place

    def start(self) -> None:
        """Start the thread that beats while the process lives; until the first step, the rank counts as starting."""
        self.busy("start")
        threading.Thread(target=self._beat, daemon=True).start()

    def step(self, step: int) -> None:
        """Write that ``step`` steps are finished."""
        self._cells[self._place + _STEP] = step
        self._cells[self._place + _STEPPED] = time.monotonic()
        self.busy(None)

    def busy(self, work: str | None) -> None:
        """Write the kind of the next work if it may take longer than a step (a validation, a checkpoint), else None."""
        self._cells[self._place + _BUSY] = 0.0 if work is None else 1.0 + zlib.crc32(work.encode())
        self._cells[self._place + _CHANGED] = time.monotonic()

    def _beat(self) -> None:
        while True:
            self._cells[self._place + _BEAT] = time.monotonic()
            time.sleep(BEAT_S)

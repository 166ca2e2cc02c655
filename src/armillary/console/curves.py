"""Metrics of runs as arrays, from Parquet files that may still grow: read once per state of a file, then cached.

A finished run has ``metrics.parquet``. A running one has the parts and the live file of the metrics hook. A run that
was killed before it wrote them may have those of its last checkpoint.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from armillary.recipe import EVENTS, metric_files

Array = NDArray[np.float64]
T = TypeVar("T")

_KEPT = 4000  # curves; one of 10,000 steps takes 160 kB
_KEPT_BYTES = 512 << 20


class Cache:
    """A cache of values computed from files, keyed by the files' states; the least recently used is dropped."""

    def __init__(self, most: int = _KEPT, most_bytes: int = _KEPT_BYTES) -> None:
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0
        self._most, self._most_bytes = most, most_bytes
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value for ``key``; ``make`` computes it if it is missing."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                known: T = self._values[key]
                return known
        made = make()
        with self._lock:
            self._values[key] = made
            self._bytes += _size(made)
            while len(self._values) > self._most or (self._bytes > self._most_bytes and len(self._values) > 1):
                _, old = self._values.popitem(last=False)
                self._bytes -= _size(old)
        return made


def _size(value: Any) -> int:
    if isinstance(value, tuple | list):
        return sum(_size(part) for part in value)
    return int(getattr(value, "nbytes", 1000))


_CACHE = Cache()


def state_of(path: Path) -> tuple[int, int, int] | None:
    """The identity of a file's state (inode, mtime, size); None if it is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def metric_names(folder: Path) -> list[str]:
    """Columns of a run's metrics; empty if there are none or they cannot be read."""
    names: dict[str, None] = {}
    for path in metric_files(folder)[0][-2:]:
        names.update(dict.fromkeys(_CACHE.get(("names", path, state_of(path)), lambda path=path: _names(path))))  # type: ignore[misc]
    return list(names)


def curve(folder: Path, x: str, y: str) -> tuple[Array, Array]:
    """Two columns of a run's metrics where both are known; ``x`` is ``step`` or ``tokens``. Empty if there are none."""
    found = [
        _CACHE.get(("curve", path, state_of(path), x, y), lambda path=path: _read(path, x, y))  # type: ignore[misc]
        for path in metric_files(folder)[0]
    ]
    found = [part for part in found if len(part[0])]
    if not found:
        return np.array([]), np.array([])
    if len(found) == 1:
        return found[0]
    xs, ys = np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])
    if (np.diff(xs) > 0).all():
        return xs, ys
    order = np.arange(len(xs))[::-1]
    _, last = np.unique(xs[order], return_index=True)  # the last of each value
    rows = order[last]
    return xs[rows], ys[rows]


def progress(folder: Path) -> tuple[Array, Array, Array]:
    """Steps, training seconds up to each, and seconds of the last portion; from the events of rank 0.

    Portions that were lost and replayed count once, with their last time.
    """
    path = folder / EVENTS
    return _CACHE.get(("progress", path, state_of(path)), lambda: _progress(path))


def smoothed(values: Array, window: int) -> Array:
    """The mean of the last ``window`` values at each index; of fewer at the beginning."""
    if window <= 1 or not len(values):
        return values
    sums = np.cumsum(np.insert(values, 0, 0.0))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - window)
    return np.asarray((sums[last] - sums[first]) / (last - first))


def _names(path: Path) -> list[str]:
    try:
        return list(pq.ParquetFile(path).schema_arrow.names)
    except (OSError, pa.ArrowException):
        return []


def _read(path: Path, x: str, y: str) -> tuple[Array, Array]:
    try:
        file = pq.ParquetFile(path)
        if not {x, y} <= set(file.schema_arrow.names):
            return np.array([]), np.array([])
        table = file.read(columns=list(dict.fromkeys([x, y])), use_threads=False)
    except (OSError, pa.ArrowException):  # torn, or replaced during the read: the next read gets it
        return np.array([]), np.array([])
    xs, ys = (np.asarray(table[name].to_numpy(zero_copy_only=False), float) for name in (x, y))
    known = ~np.isnan(ys) & ~np.isnan(xs)
    return (xs, ys) if known.all() else (xs[known], ys[known])


def _progress(path: Path) -> tuple[Array, Array, Array]:
    portions: list[tuple[int, int, float]] = []  # first step, last step, seconds
    step = 0
    for event in raw_events(path, ("progress", "start", "resume", "restored")):
        now = event.get("step")
        if not isinstance(now, int):
            continue
        if event["kind"] != "progress":
            portions = [one for one in portions if one[1] <= now]
        elif now > step and isinstance(event.get("duration_s"), int | float):
            portions.append((step, now, float(event["duration_s"])))
        step = now
    steps = np.array([one[1] for one in portions], float)
    seconds = np.array([one[2] for one in portions], float)
    return steps, np.cumsum(seconds), seconds


def raw_events(path: Path, kinds: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Events of a file without the checks of ``read_events``: torn and foreign lines are skipped."""
    found = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if kinds and not any(f'"{kind}"' in line for kind in kinds):
                    continue
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(event, dict) and (not kinds or event.get("kind") in kinds):
                    found.append(event)
    except OSError:
        return []
    return found

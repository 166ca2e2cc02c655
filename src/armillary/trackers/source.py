"""What a run's folder holds for trackers: its settings, its metrics by step with times, and its state.

Rows come in order, each step once, and only whole ones: the last row of a run that still trains may get a validation.
A run that trains has parts and a live file, a finished one has ``metrics.parquet`` (`train`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armillary.recipe import (
    EVENTS,
    RESULT,
    SPEC,
    DamagedFileError,
    RunSpec,
    metric_files,
    read_json,
    read_spec,
)

CHUNK = 500  # rows that are written to a tracker at once
SPEED = "tokens_per_s"
State = Literal["running", "done", "stopped", "diverged", "interrupted"]


@dataclass(frozen=True)
class Row:
    """The metrics of a step: finite numbers by the names of `metrics.parquet`'s columns, and ``tokens_per_s``.

    ``time_s`` since the Unix epoch lies between the events before and after the step.
    """

    step: int
    time_s: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class About:
    """What is known of a run besides its metrics: ``config`` is its specification and sizes, as nested JSON."""

    run: str
    name: str
    config: dict[str, Any]
    started_s: float
    tags: Mapping[str, str]


class _Clock:
    """Times and speeds by step, from the events of rank 0, read as they are appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None
        self._read = 0
        self._clear()

    def _clear(self) -> None:
        self.started_s: float | None = None
        self.last: tuple[str, str] = ("", "")  # kind and problem of the last event that is not a progress
        self._points: list[tuple[int, float]] = []
        self._portions: list[tuple[int, int, float]] = []  # first step, last step, seconds
        self._step = 0

    def refresh(self) -> None:
        """Read the events since the last call; a line torn by a kill is passed over."""
        try:
            with open(self.path, "rb") as file:
                found = os.fstat(file.fileno())
                identity = found.st_dev, found.st_ino
                if identity != self._file or found.st_size < self._read:
                    self._file, self._read = identity, 0
                    self._clear()
                file.seek(self._read)
                data = file.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
                self._add(event["kind"], event["step"], float(event["time_s"]), event)
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue

    def _add(self, kind: str, step: int, time_s: float, event: dict[str, Any]) -> None:
        if not isinstance(step, int) or not math.isfinite(time_s):
            return
        if self.started_s is None:
            self.started_s = time_s
        if kind == "progress":
            seconds = event.get("duration_s")
            if step > self._step and isinstance(seconds, int | float) and seconds > 0:
                self._portions.append((self._step, step, float(seconds)))
            self._points.append((step, time_s))
            self._step = step
            return
        data = event.get("data")
        self.last = kind, str(data.get("problem", "")) if isinstance(data, dict) else ""
        if kind in ("start", "resume", "restored"):
            self._points = [point for point in self._points if point[0] <= step]
            self._portions = [portion for portion in self._portions if portion[1] <= step]
            self._points.append((step, time_s))
            self._step = step

    def times(self, steps: np.ndarray[Any, Any], otherwise: float) -> np.ndarray[Any, Any]:
        """The time of each step, between the events around it; a later step is never earlier."""
        if not self._points:
            return np.full(len(steps), otherwise)
        known = np.array(self._points, float)
        order = np.argsort(known[:, 0], kind="stable")
        return np.asarray(np.interp(steps, known[order, 0], np.maximum.accumulate(known[order, 1])))

    def portions(self) -> dict[int, tuple[int, float]]:
        """Of each step that ends a portion of training: the step before its first, and its seconds."""
        return {last: (first, seconds) for first, last, seconds in self._portions}


class RunFiles:
    """A run's folder as a source for trackers. ``name`` is what the run is called (default: its id)."""

    def __init__(self, folder: Path, name: str | None = None, tags: Mapping[str, str] | None = None) -> None:
        self.folder, self._name, self._tags = folder, name, dict(tags or {})
        self._clock = _Clock(folder / EVENTS)
        self._spec: RunSpec | None = None

    @property
    def spec(self) -> RunSpec:
        """The run's specification.

        Raises:
            FileNotFoundError: the folder has none (yet).
            DamagedFileError, ForeignFileError: it cannot be read.
        """
        if self._spec is None:
            self._spec = read_spec(self.folder)
        return self._spec

    def about(self) -> About:
        """Settings, name and start of the run; raises the same errors as ``spec``."""
        spec = self.spec
        self._clock.refresh()
        config = {
            **read_json(self.folder / SPEC, "run specification", ""),
            "parameters": spec.model.parameters,
            "train_tokens": spec.tokens,
            "train_flops": spec.flops,
        }
        return About(spec.id, self._name or spec.id, config, self._started_s(), self._tags)

    def _started_s(self) -> float:
        began = self._clock.started_s
        return began if began is not None else (self.folder / SPEC).stat().st_mtime

    def state(self) -> State:
        """Whether the run trains or how it ended."""
        from armillary.store import in_use  # here, since the process beside a training should start in a moment

        if (self.folder / RESULT).exists():
            return "done"
        if in_use(self.folder):
            return "running"
        self._clock.refresh()
        kind, problem = self._clock.last
        return (
            "stopped" if kind == "stop" else "diverged" if (kind, problem) == ("fault", "diverged") else "interrupted"
        )

    def columns(self) -> list[str]:
        """Names of all metrics so far, in order.

        Raises:
            DamagedFileError: a file of metrics cannot be read.
        """
        names: dict[str, None] = {}
        for path in metric_files(self.folder)[0]:
            names.update(dict.fromkeys(_opened(path).schema_arrow.names))
        return [*names, SPEED]

    def rows_after(self, step: int) -> Iterator[list[Row]]:
        """The rows after ``step``, in portions of at most ``CHUNK``; up to the first gap, if parts are missing.

        Raises:
            DamagedFileError: a file of metrics cannot be read.
        """
        paths, whole = metric_files(self.folder)
        last = step
        held: list[dict[str, Any]] = []  # whole rows, of which the last is held back while it may change
        for path in paths:
            for values in _values(path, last):
                if values["step"] != last + 1:
                    if values["step"] <= last:
                        continue
                    paths = []
                    break
                held.append(values)
                last += 1
                if len(held) > CHUNK:
                    yield self._timed(held[:CHUNK])
                    held = held[CHUNK:]
            if not paths:
                break
        held = held if whole else held[:-1]
        if held:
            yield self._timed(held)

    def _timed(self, rows: list[dict[str, Any]]) -> list[Row]:
        self._clock.refresh()
        portions = self._clock.portions()
        steps = np.array([values["step"] for values in rows], float)
        times = self._clock.times(steps, self._started_s())
        found = []
        for values, time_s in zip(rows, times.tolist(), strict=True):
            step = int(values.pop("step"))
            # tokens come last: what a tracker has of a step is whole if it has its tokens
            tokens = values.pop("tokens", None)
            if step in portions and tokens is not None:
                first, seconds = portions[step]
                values[SPEED] = (tokens - self.spec.tokens_after(first)) / seconds
            if tokens is not None:
                values["tokens"] = tokens
            found.append(Row(step, time_s, values))
        return found


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise DamagedFileError(f"{path}: is gone, because the run has just replaced it; repeat the command") from error
    except (OSError, pa.ArrowException) as error:
        raise DamagedFileError(f"{path}: metrics cannot be read ({_first_line(error)}); restore it") from error


def _values(path: Path, after: int) -> Iterator[dict[str, Any]]:
    """The rows of a file after step ``after``: what of them is a finite number."""
    file = _opened(path)
    schema = file.schema_arrow
    if "step" not in schema.names:
        raise DamagedFileError(f"{path}: metrics have no column 'step'; restore it")
    numeric = [one.name for one in schema if pa.types.is_integer(one.type) or pa.types.is_floating(one.type)]
    try:
        for batch in file.iter_batches(batch_size=4096, use_threads=False):
            if "step" not in numeric or batch.column("step").null_count:
                raise DamagedFileError(f"{path}: column 'step' has no whole numbers in some rows; restore it")
            steps = batch.column("step").to_numpy(zero_copy_only=False)
            if not len(steps) or steps[-1] <= after:
                continue
            later = batch.select(numeric).slice(int(np.searchsorted(steps, after, side="right")))
            for values in later.to_pylist():
                yield {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    except (OSError, pa.ArrowException) as error:
        raise DamagedFileError(f"{path}: metrics cannot be read ({_first_line(error)}); restore it") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / SPEC).is_file()

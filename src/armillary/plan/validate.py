"""Compares the planner with published rows, leaving one publication out at a time.

For each publication the factors of ``calibrate`` and the intervals of ``uncertainty`` are computed from all others, so
no row is predicted by constants fitted to it. Signed errors are predicted over measured speed, minus 1; a positive
error is optimistic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from armillary.files import write_file
from armillary.plan.calibrate import Sample, fit_factors, log_factor, samples_of
from armillary.plan.constants import Constants, Interval, constants
from armillary.plan.memory import peak_memory
from armillary.plan.published import Row, measured, measured_tflops, read_rows
from armillary.plan.uncertainty import intervals, kind_of
from armillary.recipe import UsageError


@dataclass(frozen=True)
class Line:
    """Errors of one group of rows: shares, not per cent.

    ``signed`` is the median error with its sign. ``coverage`` is the share of rows inside their 90 % interval; for peak
    memory, which has none, within 5 % of the measured value."""

    name: str
    rows: int
    median: float
    p90: float
    signed: float
    coverage: float

    @classmethod
    def of(cls, name: str, errors: Sequence[float], inside: Sequence[bool]) -> Line:
        """From log errors, and whether each measured value is inside its interval."""
        shares = np.expm1(np.asarray(errors))
        return cls(name, len(errors), float(np.median(np.abs(shares))), float(np.quantile(np.abs(shares), 0.9)),
                   float(np.median(shares)), float(np.mean(inside)))  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A row with its measured and predicted speed in TFLOP/s, both by the row's convention."""

    line: int
    source: str
    kind: str
    accelerator: str
    measured: float
    predicted: float


@dataclass(frozen=True)
class Report:
    """Errors by publication and over all; memory; rows without a prediction, by reason; the best layouts of sweeps."""

    sources: list[Line]
    kinds: list[Line]
    overall: Line
    memory: list[Line]
    out_of_memory: dict[str, int]
    unpredicted: dict[str, int]
    sweeps: list[dict[str, Any]]
    points: list[Point]

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the points."""
        return {
            "sources": [vars(line) for line in self.sources],
            "kinds": [vars(line) for line in self.kinds],
            "overall": vars(self.overall),
            "memory": [vars(line) for line in self.memory],
            "out_of_memory": self.out_of_memory,
            "unpredicted": self.unpredicted,
            "sweeps": self.sweeps,
        }


@dataclass(frozen=True)
class Held:
    """A sample and its log error, by factors that were fitted without its publication."""

    sample: Sample
    kind: str
    error: float


def leave_one_out(samples: Sequence[Sample]) -> list[Held]:
    """The error of each sample by factors from other publications."""
    found = []
    for source in sorted({sample.source for sample in samples}):
        factors = fit_factors([sample for sample in samples if sample.source != source])
        for sample in samples:
            if sample.source == source:
                job = sample.row.job
                assert job is not None
                error = sample.error(log_factor(factors, sample.names))
                found.append(Held(sample, kind_of(job, sample.row.assumed), error))
    return found


def validate(path: Path, factors: Path | None = None) -> Report:
    """Compare the planner with the table at ``path``; write the factors fitted to all its rows to ``factors``.

    Raises:
        UsageError: the table cannot be read, or no row has both a job and a measured speed.
    """
    rows = read_rows(path)
    base = constants()
    samples = samples_of(rows, base)
    held = leave_one_out(samples)
    if not held:
        raise UsageError(f"{path}: no row has a layout that can be estimated and a measured speed")
    inside = _inside(held)
    points = [_point(one) for one in held]
    by_source = {one.sample.source: None for one in held}
    sources = [_line(name, held, inside, lambda one, name=name: one.sample.source == name) for name in by_source]
    kinds = [_line(name, held, inside, lambda one, name=name: one.kind == name)
             for name in sorted({one.kind for one in held})]  # fmt: skip
    memory, flags, memory_errors = _memory(rows, base)
    if factors is not None:
        _write_factors(factors, path, fit_factors(samples), (held, memory_errors))
    unpredicted: dict[str, int] = {}
    for row in rows:
        if row.job is None:
            unpredicted[row.reason] = unpredicted.get(row.reason, 0) + 1
        elif measured(row) is None and not row.out_of_memory:
            unpredicted["no measured speed to compare with"] = (
                unpredicted.get("no measured speed to compare with", 0) + 1
            )
    return Report(sources, kinds, _line("all", held, inside, lambda one: True), memory, flags, unpredicted,
                  _sweeps(held), points)  # fmt: skip


def _write_factors(
    out: Path, table: Path, factors: dict[str, float], errors: tuple[Sequence[Held], Sequence[tuple[str, float]]]
) -> None:
    held, memory = errors
    ends = intervals([(one.kind, one.sample.source, one.error) for one in held])
    if memory:
        ends["memory"] = intervals([("memory", source, error) for source, error in memory])["all"]
    lines = [
        f"# Written by: armillary plan validate {table.name} --factors factors.toml",
        "# Factors on compute time, by ridge regression; 90 % intervals of the log of measured over predicted speed,",
        "# from publications that were left out.",
        "[factors]",
        *(f'"{name}" = {value:.4f}' for name, value in sorted(factors.items())),
        "",
        "[intervals]",
        *(f"{name} = [{one.low:.4f}, {one.high:.4f}]" for name, one in sorted(ends.items())),
    ]
    write_file(out, ("\n".join(lines) + "\n").encode())


def _line(name: str, held: Sequence[Held], inside: Sequence[bool], chosen: Any) -> Line:
    own = [i for i, one in enumerate(held) if chosen(one)]
    return Line.of(name, [held[i].error for i in own], [inside[i] for i in own])


def _inside(held: Sequence[Held]) -> list[bool]:
    found = {}
    for source in {one.sample.source for one in held}:
        others = [(one.kind, one.sample.source, one.error) for one in held if one.sample.source != source]
        found[source] = intervals(others)
    result = []
    for one in held:
        of_kind = found[one.sample.source]
        interval: Interval = of_kind[one.kind]
        result.append(interval.low <= -one.error <= interval.high)
    return result


def _point(one: Held) -> Point:
    row = one.sample.row
    speed = measured_tflops(row)
    assert speed is not None and row.job is not None
    return Point(row.line, row.source, one.kind, row.job.accelerator_name, speed, speed * math.exp(one.error))


def _memory(rows: Iterable[Row], base: Constants) -> tuple[list[Line], dict[str, int], list[tuple[str, float]]]:
    errors: dict[str, list[float]] = {}
    flags = {"out_of_memory": 0, "flagged": 0, "ran": 0, "flagged_wrongly": 0}
    for row in rows:
        if row.job is None:
            continue
        found = peak_memory(row.job, base).total
        fits = found <= row.job.accelerator.memory_gb
        if row.out_of_memory:
            flags["out_of_memory"] += 1
            flags["flagged"] += not fits
        elif measured(row) is not None:
            flags["ran"] += 1
            flags["flagged_wrongly"] += not fits
        real = row.number("peak_mem_gb")
        if real:
            errors.setdefault(row.source, []).append(math.log(found / real))
    lines = [Line.of(name, values, [abs(math.expm1(v)) <= 0.05 for v in values]) for name, values in errors.items()]
    return lines, flags, [(name, value) for name, values in errors.items() for value in values]


def _sweeps(held: Sequence[Held]) -> list[dict[str, Any]]:
    """For models with at least three layouts: the speed lost by the layout that is predicted to be best."""
    groups: dict[tuple[str, ...], list[tuple[float, float, str]]] = {}
    for one in held:
        row, job = one.sample.row, one.sample.row.job
        assert job is not None
        if not row.fields.get("outcome"):
            continue
        speed = measured_tflops(row)
        assert speed is not None
        model = (row.fields.get(name, "") for name in ("model", "hidden", "heads"))
        key = (one.sample.source, *model, str(job.parallelism.ranks))
        groups.setdefault(key, []).append((speed * math.exp(one.error), speed, str(job.parallelism)))
    found = []
    for key, entries in groups.items():
        if len({layout for _, _, layout in entries}) < 3:
            continue
        fastest: dict[str, float] = {}  # of repeats, which differ by chance
        for _, speed, layout in entries:
            fastest[layout] = max(speed, fastest.get(layout, 0.0))
        chosen, best = max(entries)[2], max(fastest, key=fastest.__getitem__)
        found.append({"source": key[0], "model": key[1], "layouts": len(fastest), "chosen": chosen, "best": best,
                      "loss": 1 - fastest[chosen] / fastest[best]})  # fmt: skip
    return found

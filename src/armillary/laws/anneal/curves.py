"""Loss curves along learning-rate schedules: reading them, and reducing a schedule to the input of an annealing law.

An annealing law needs two things from a schedule: the area under the learning rate, S1, and each change of the rate
with the area at which it happens. A schedule has tens of thousands of steps, but the rate hardly changes in most of
them. So a schedule becomes a ``Profile``: the area at each row, and some hundred gaps.

The file does not have the rate between the rows of a sampled curve. It is assumed as follows:

- The rate is linear between two rows.
- A large change between two intervals with almost no change is a jump. If these two rows are closer than rows
  elsewhere, the jump is at the later row; otherwise it is in the middle between them.
- Before the first row the rate rises linearly from 0 over the warm-up, and then has the value of the first row. Without
  a warm-up it jumps from 0 to that value at step 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from armillary.laws.columns import find_column, is_loss
from armillary.laws.estimator import SHOWN, Array, SetAsideWarning, thing_name
from armillary.laws.table import Table, parse_size, read_table
from armillary.recipe import UsageError, counted

# A jump changes the rate by at least this share of the highest rate, and at least this many times as fast per step as
# in the neighbouring intervals.
JUMP, JUMP_STEEPER = 0.05, 5.0

# If an interval is shorter than this share of its neighbours' median, its last row was written because of a jump.
SOONER = 0.75

# Gaps nearer to each other than this share of the whole range, both in rate and in area, are summed.
GRAIN = 1 / 64
WARMUP_GRAIN = 24

# Rates count as at least this share of the highest: laws raise the rate to a negative power.
LEAST_RATE = 1e-4


# Peak rates of one size that differ by less (log) count as equal, since the first sample of a cosine may be below its
# peak.
SAME_RATE = 0.1

_ONE_COLUMN = "keep only one of them in the file"

# A loss is a spike if its distance from the median of its nine neighbours exceeds SPIKE (log) and FAR times the usual
# distance. A curve has diverged if it ends above its lowest median by more than DIVERGED and NOISY times the usual
# distance. It has also diverged if its end differs by more than APART from the median end of the other curves of its
# size (by twice that from all curves, if its size has fewer than three).
SPIKE, FAR, DIVERGED, APART, NOISY = 0.1, 8.0, 0.1, 0.35, 4.0


@dataclass(frozen=True)
class Curve:
    """A learning-rate schedule with the losses measured along it.

    Attributes:
        name: of the schedule; curves of several sizes with the same schedule have the same name.
        size: parameters of the model.
        step: [n] optimizer steps, increasing.
        lr: [n] the rate in force from each step on.
        loss: [n] measured losses, or None for a schedule without a measurement.
        warmup_steps: length of the linear warm-up before the first row; None for that of the law.
    """

    name: str
    size: float
    step: Array
    lr: Array
    loss: Array | None = None
    warmup_steps: float | None = None


@dataclass(frozen=True)
class CurveSetAside:
    """A loss (``step``) or a whole curve (``step`` is None) that an annealing law left out, with the reason."""

    name: str
    size: float
    step: float | None
    why: str


@dataclass(frozen=True)
class Profile:
    """A schedule as input of an annealing law: rates in units of the peak, time in units of the caller's choice.

    Attributes:
        area: [n] area under the rate up to each row, S1, including the warm-up.
        time: [n] time of each row.
        top: the peak rate.
        dwell: [n, r] time spent at each level of the rate up to each row, without the warm-up.
        level: [r] these levels.
        warmup: time of the warm-up.
        first_rate: the rate at the end of the warm-up.
        gap_begin, gap_end: [k] the rate before and after each fall or rise. gap_rate: [k] the rate there. gap_area: [k]
        the area up to there. gap_time: [k] the time.
    """

    area: Array
    time: Array
    dwell: Array
    level: Array
    warmup: float
    first_rate: float
    top: float
    gap_begin: Array
    gap_end: Array
    gap_rate: Array
    gap_area: Array
    gap_time: Array

    def at(self, rows: NDArray[np.intp]) -> Profile:
        """The same schedule at some of its rows only."""
        return replace(self, area=self.area[rows], time=self.time[rows], dwell=self.dwell[rows])


def curve_columns(table: Table) -> tuple[str, str, str]:
    """The columns of step, learning rate and loss of a curve, found by their common names.

    Raises:
        UsageError: one of them is missing, or several columns match.
    """
    step, lr, loss = (find_column(table, name, _ONE_COLUMN) for name in ("step", "lr", "loss"))
    return step, lr, loss


def read_curve(path: Path, size: float, need_loss: bool = True) -> Curve:
    """Read a CSV file with the columns ``step,lr,loss``; without ``need_loss``, ``loss`` may be missing.

    Rows whose loss is not a number above 0 are left out, and reported by a ``SetAsideWarning``.

    Raises:
        UsageError: the file, or an entry of it (not finite, a negative rate or step, steps that do not increase, no
            loss at all), with file, line and column.
    """
    table = read_table(path)
    steps, rates = (find_column(table, name, _ONE_COLUMN) for name in ("step", "lr"))
    step, lr = table.numbers([steps, rates], least=0).T
    for row in np.flatnonzero(np.diff(step) <= 0) + 1:
        raise table.error(int(row), steps, f"steps must increase, and the row before has {step[row - 1]:g}")
    if not need_loss and "loss" not in table.columns and sum(map(is_loss, table.columns)) != 1:
        return Curve(path.stem, size, step, lr)
    losses = find_column(table, "loss", _ONE_COLUMN)
    values, bad = table.losses([losses])
    good = np.isfinite(values[:, 0])
    if not need_loss:
        return Curve(path.stem, size, step, lr, values[:, 0] if good.all() else None)
    if not good.any():
        raise table.error(bad[0].row, losses, f"{bad[0].remedy}; no row has a loss")
    if bad:
        entries = ", ".join(f"line {table.lines[one.row]} is '{table.text(losses)[one.row]}'" for one in bad[:SHOWN])
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        warnings.warn(
            f"{path}: left out {counted(len(bad), 'row')} without a loss: column '{losses}' of {entries}{more}",
            SetAsideWarning,
            stacklevel=2,
        )
    return Curve(path.stem, size, step[good], lr[good], values[good, 0])


def read_curves(directory: Path) -> list[Curve]:
    """All curves of ``directory/SIZE/SCHEDULE.csv``, sizes such as 25M or 1.3B, by size and then by name.

    Raises:
        UsageError: as ``read_curve``; no such folder, no curve in it, a folder that is not named as a size.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a folder; give one with SIZE/SCHEDULE.csv, such as 25M/cosine.csv")
    found = [
        (parse_size(folder.name), path)
        for folder in sorted(directory.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for path in sorted(folder.glob("*.csv"))
    ]
    if not found:
        raise UsageError(f"{directory} has no SIZE/SCHEDULE.csv, such as 25M/cosine.csv; put each curve in such a file")
    return [read_curve(path, size) for size, path in sorted(found)]


def checked_curve(curve: Curve, need_loss: bool) -> Curve:
    """``curve`` with its columns as arrays of finite numbers, checked as by ``read_curve``.

    Raises:
        UsageError: as ``read_curve``, with curve, row and column.
    """
    where = curve_name(curve)
    if not 0 < float(curve.size) < np.inf:
        raise UsageError(f"{where}: the size must be the number of parameters, above 0")
    columns: dict[str, Array] = {}
    for label in ("step", "lr", "loss"):
        values = getattr(curve, label)
        if values is None and label == "loss" and not need_loss:
            continue
        try:
            column = np.array(values, dtype=float)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where}: column '{label}' is not numbers: {error}") from error
        if column.ndim != 1 or not len(column) or len(column) != len(columns.get("step", column)):
            raise UsageError(f"{where}: column '{label}' has shape {list(column.shape)}; give one number for each row")
        bad = ~np.isfinite(column) | ((column <= 0) if label == "loss" else (column < 0))
        for row in np.flatnonzero(bad):
            remedy = "above 0" if label == "loss" else "not negative"
            raise UsageError(f"{where}: row {row}, column '{label}' is {column[row]:g}; it must be finite and {remedy}")
        columns[label] = column
    for row in np.flatnonzero(np.diff(columns["step"]) <= 0) + 1:
        raise UsageError(
            f"{where}: row {row}, column 'step' is {columns['step'][row]:g}; steps must increase, and the row before "
            f"has {columns['step'][row - 1]:g}"
        )
    if columns["lr"].max() <= 0:
        raise UsageError(f"{where}: column 'lr' is 0 in every row; a law needs the learning rate")
    warmup = curve.warmup_steps
    if warmup is not None and not 0 <= float(warmup) < np.inf:
        raise UsageError(f"{where}: warmup_steps is {warmup!r}; give the steps of the warm-up, 0 for none")
    return Curve(curve.name, float(curve.size), columns["step"], columns["lr"], columns.get("loss"), warmup)


def curve_name(curve: Curve) -> str:
    """The name of a curve in messages."""
    return thing_name(f"curve '{curve.name}' at size {curve.size:g}")


def several_rates(curves: Sequence[Curve]) -> dict[float, str]:
    """The sizes whose curves have several peak rates, each with its curves and their peak rates in words."""
    found = {}
    for size in sorted({curve.size for curve in curves}):
        peaks = {curve_name(curve): float(curve.lr.max()) for curve in curves if curve.size == size}
        if np.log(max(peaks.values()) / min(peaks.values())) > SAME_RATE:
            ordered = sorted(peaks.items(), key=lambda pair: pair[1])
            found[size] = "; ".join(f"{name}: {peak:.4g}" for name, peak in ordered)
    return found


def without_contradicted(curves: Sequence[Curve]) -> tuple[list[Curve], list[CurveSetAside]]:
    """Checked curves without spikes and diverged curves, and the record of what was left out."""
    aside: list[CurveSetAside] = []
    steady = []
    for curve in curves:
        assert curve.loss is not None
        logs = np.log(curve.loss)
        middle = ndimage.median_filter(logs, 9, mode="nearest")
        off = np.abs(logs - middle)
        spikes = off > max(SPIKE, FAR * 1.4826 * float(np.median(off)))
        spikes[[0, -1]] &= len(logs) > 9  # a short curve is steep at both ends
        aside += [
            CurveSetAside(
                curve.name, curve.size, float(step), f"a spike of {loss:.4g} between neighbours of {usual:.4g}"
            )
            for step, loss, usual in zip(curve.step[spikes], curve.loss[spikes], np.exp(middle[spikes]), strict=True)
        ]
        steady.append(replace(curve, step=curve.step[~spikes], lr=curve.lr[~spikes], loss=curve.loss[~spikes]))
    ends = np.array([np.median(np.log(_losses(curve)[-max(3, len(curve.step) // 20) :])) for curve in steady])
    kept = []
    for curve, end in zip(steady, ends, strict=True):
        alike = np.array([other.size == curve.size for other in steady])
        usual = float(np.median(ends[alike] if alike.sum() > 2 else ends))
        apart = APART if alike.sum() > 2 else 2 * APART
        logs = np.log(_losses(curve))
        smooth = ndimage.median_filter(logs, 9, mode="nearest")
        # One batch of a small model is noisy, so the lowest loss is a median over neighbours, not one lucky batch.
        lowest, noise = float(smooth.min()), 1.4826 * float(np.median(np.abs(logs - smooth)))
        if end > lowest + max(DIVERGED, NOISY * noise):
            why = f"it diverged: {np.exp(end):.4g} at its end after {np.exp(lowest):.4g}"
        elif len(steady) > 2 and abs(end - usual) > apart:
            why = f"its end of {np.exp(end):.4g} is far from that of the other curves, about {np.exp(usual):.4g}"
        else:
            kept.append(curve)
            continue
        aside.append(CurveSetAside(curve.name, curve.size, None, why))
    return kept, aside


def _losses(curve: Curve) -> Array:
    assert curve.loss is not None
    return curve.loss


def jumps(step: Array, lr: Array) -> Array:
    """Whether the rate jumps between row i and row i + 1, [n - 1] of 0 and 1."""
    change = np.abs(np.diff(lr))
    slope = change / np.diff(step)
    # The first and the last interval have one neighbour; the missing one counts as equally steep.
    before, after = np.append(slope[:1], slope[:-1]), np.append(slope[1:], slope[-1:])
    return np.asarray(
        (change >= JUMP * lr.max()) & (slope > JUMP_STEEPER * before) & (slope > JUMP_STEEPER * after), dtype=float
    )


def jump_times(time: Array, jump: NDArray[np.intp]) -> Array:
    """The time of each jump of the rate, for rows [j] after a jump.

    A row that is closer to its predecessor than rows elsewhere was written because of the jump, so it has the jump's
    time. Otherwise the jump was anywhere between the two rows, and their middle minimises the largest error.
    """
    length = np.diff(time)
    usual = np.array([np.median(length[max(0, row - 4) : row + 3]) for row in jump])
    sooner = length[jump - 1] < SOONER * usual
    return np.where(sooner, time[jump], (time[jump] + time[jump - 1]) / 2)


def profile(curve: Curve, warmup_steps: float, peak: float, unit: float) -> Profile:
    """The ``Profile`` of a checked curve, with rates in units of ``peak`` and time in units of ``unit`` steps."""
    lr, time = curve.lr / peak, curve.step / unit
    n, top = len(time), float(lr.max())
    warmup = min(float(warmup_steps) / unit, float(time[0]))
    ramp = np.linspace(0.0, 1.0, WARMUP_GRAIN + 1)
    jump = np.flatnonzero(jumps(time, lr)) + 1
    # A jump adds two nodes: one with the old rate and one with the new rate.
    place = jump_times(time, jump)
    node_time = np.concatenate([warmup * ramp, np.insert(time, np.repeat(jump, 2), np.repeat(place, 2))])
    node_lr = np.concatenate(
        [lr[0] * ramp, np.insert(lr, np.repeat(jump, 2), lr[np.stack([jump - 1, jump], 1)].ravel())]
    )
    # A long slope between two rows becomes several gaps.
    rise = np.abs(np.diff(node_lr)) * (np.diff(node_time) > 0)
    pieces = np.maximum(np.ceil(rise / (GRAIN * top)).astype(int), 1)
    at = np.append(0, np.cumsum(pieces))
    rows = at[np.arange(n) + 2 * np.searchsorted(jump, np.arange(n), side="right") + len(ramp)]
    node_time, node_lr = (np.interp(np.arange(at[-1] + 1), at, v) for v in (node_time, node_lr))
    length, middle = np.diff(node_time), (node_lr[1:] + node_lr[:-1]) / 2
    area = np.append(0.0, np.cumsum(length * middle))

    gap = node_lr[:-1] - node_lr[1:]
    rate = np.maximum(np.where(length == 0, node_lr[1:], middle), LEAST_RATE * top)
    moved = np.flatnonzero(gap != 0)
    gap_area, gap_time = ((v[1:] + v[:-1])[moved] / 2 for v in (area, node_time))
    size = np.abs(gap[moved])
    # Neighbouring gaps are summed, each group at its middle.
    cell = np.stack(
        [np.cumsum(size) // (GRAIN * top), gap_area // (GRAIN * max(area[-1], 1e-300)), np.sign(gap[moved])]
    )
    begins = np.flatnonzero(np.append(True, (np.diff(cell, axis=1) != 0).any(0)))
    ends = np.append(begins[1:], len(moved)) - 1
    total = np.add.reduceat(size, begins)
    gap_rate, gap_area, gap_time = (
        np.add.reduceat(v * size, begins) / total for v in (rate[moved], gap_area, gap_time)
    )

    # Time at each level of the rate between neighbouring rows, then the cumulative sum.
    after = np.arange(at[len(ramp) - 1], len(length))
    level, which = np.unique(np.round(middle[after] / (GRAIN * top)), return_inverse=True)
    dwell = np.zeros((n, len(level)))
    np.add.at(dwell, (np.searchsorted(rows, after + 1), which), length[after])
    return Profile(
        area=area[rows],
        time=time,
        dwell=np.cumsum(dwell, axis=0),
        level=np.maximum(level * GRAIN, LEAST_RATE) * top,
        warmup=warmup,
        top=top,
        first_rate=float(max(lr[0], LEAST_RATE * top)),
        gap_begin=node_lr[:-1][moved][begins],
        gap_end=node_lr[1:][moved][ends],
        gap_rate=gap_rate,
        gap_area=gap_area,
        gap_time=gap_time,
    )


def thinned(curve: Curve, rows: int) -> Curve:
    """At most about ``rows`` rows of a curve, evenly spread, with the rows around each jump and both ends."""
    n = len(curve.step)
    if n <= rows:
        return curve
    jump = np.flatnonzero(jumps(curve.step, curve.lr))[:rows]
    kept = np.unique(np.concatenate([np.linspace(0, n - 1, rows).round().astype(int), jump, jump + 1]))
    loss = None if curve.loss is None else curve.loss[kept]
    return replace(curve, step=curve.step[kept], lr=curve.lr[kept], loss=loss)

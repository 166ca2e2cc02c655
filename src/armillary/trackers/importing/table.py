"""From runs of other programs to a table: which name became which column, what was left out, and why.

Sizes and settings come from the configuration, and tokens also from a metric that counts them, whose last value is what
a run has seen. Losses are metrics with a known name of a loss (`laws.columns`), each with its last finite value. A
setting that differs between runs keeps its name, so that ``compare`` can take it as the family.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from armillary.files import write_file
from armillary.laws import read_table
from armillary.laws.columns import feature_of, is_loss
from armillary.recipe import UsageError, counted
from armillary.trackers.importing.csv import RUN_NAMES
from armillary.trackers.importing.found import FoundRun

_LONGEST = 100  # characters of a setting
_NEEDED = ("params", "tokens")


@dataclass(frozen=True)
class Taken:
    """A column of the table: the name that it had, its ``role`` (a size, ``loss``, ``setting``), how it was read."""

    source: str
    column: str
    role: str
    how: str


@dataclass(frozen=True)
class LeftOut:
    """A run, setting or metric that is not in the table."""

    kind: str
    name: str
    why: str


@dataclass(frozen=True)
class Imported:
    """The table and what was decided on the way; ``notes`` name files that could not be read to their end."""

    columns: list[str]
    rows: list[dict[str, Any]]
    taken: list[Taken]
    left_out: list[LeftOut]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """All fields, with the number of rows for the rows."""
        return {
            "runs": len(self.rows),
            "columns": self.columns,
            "taken": [asdict(one) for one in self.taken],
            "left_out": [asdict(one) for one in self.left_out],
            "notes": self.notes,
        }


class _Making:
    def __init__(self, runs: Sequence[FoundRun], notes: Iterable[str]) -> None:
        self.runs = runs
        self.rows: list[dict[str, Any]] = [{"run": name} for name in _different([one.name for one in runs])]
        self.taken: list[Taken] = []
        self.left_out: list[LeftOut] = []
        self.notes = list(notes)

    def put(self, column: str, values: Sequence[Any], taken: Taken) -> None:
        for row, value in zip(self.rows, values, strict=True):
            if value is not None:
                row[column] = value
        self.taken.append(taken)


def make_table(runs: Sequence[FoundRun], notes: Iterable[str] = (), join: Path | None = None) -> Imported:
    """The table of the runs; ``join`` is a table with a column ``run`` whose other columns are added, or count instead.

    Raises:
        UsageError: no run has a loss; or ``join`` has no column of runs.
    """
    making = _Making(runs, notes)
    joined = _joined(making, join) if join is not None else set()
    _take_sizes(making, joined)
    _take_losses(making, joined)
    _take_settings(making, joined)
    rows = _complete(making)
    columns = ["run", *dict.fromkeys(one.column for one in making.taken)]
    columns = [name for name in columns if any(name in row for row in rows)]
    return Imported(columns, rows, making.taken, making.left_out, making.notes)


def write_table(imported: Imported, path: Path) -> None:
    """Write the table as CSV; texts that a spreadsheet would take as a formula begin with ``'``.

    Raises:
        OSError: it cannot be written.
    """
    text = StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow([_cell(name) for name in imported.columns])
    lines.writerows([[_cell(row.get(name, "")) for name in imported.columns] for row in imported.rows])
    write_file(path, text.getvalue().encode())


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    plain = " ".join(value.split())
    if not plain.startswith(("=", "+", "-", "@")):
        return plain
    try:
        float(plain)  # a number of another table is no formula
    except ValueError:
        return f"'{plain}"
    return plain


def _different(names: Sequence[str]) -> list[str]:
    """Names without repetition: the second of a name gets ``-2``."""
    used, seen = set(names), set[str]()
    found: list[str] = []
    for name in names:
        free = name
        if name in seen:
            free = next(other for k in count(2) if (other := f"{name}-{k}") not in used)
        used.add(free)
        seen.add(name)
        found.append(free)
    return found


def _joined(making: _Making, path: Path) -> set[str]:
    table = read_table(path)
    key = next((name for name in table.columns if name.lower() in RUN_NAMES), None)
    if key is None:
        raise UsageError(f"{path}: has no column 'run'; its columns are {', '.join(table.columns)}")
    names_of = table.text(key)
    for run, times in Counter(names_of).items():
        if times > 1 and any(row["run"] == run for row in making.rows):
            raise UsageError(f"{path}: run '{run}' is there twice; leave one line of it")
    by_run = {run: number for number, run in enumerate(names_of)}
    matched = [by_run.get(str(row["run"])) for row in making.rows]
    if all(place is None for place in matched):
        names = ", ".join(str(row["run"]) for row in making.rows[:5])
        raise UsageError(f"{path}: no run of it is one of those that were read ({names}); use their names")
    columns = set()
    for name in table.columns:
        if name == key:
            continue
        column = feature_of(name) or name
        entries = table.text(name)
        values = [None if place is None or not entries[place] else entries[place] for place in matched]
        role = feature_of(name) or ("loss" if is_loss(name) else "setting")
        making.put(column, values, Taken(name, column, role, f"from {path.name}"))
        columns.add(column)
    return columns


def _feature(name: str) -> str | None:
    """The size that a setting's name stands for, by its whole name or by its last part."""
    found = feature_of(name) or feature_of(name.replace("/", ".").rpartition(".")[2])
    return "params" if found == "total_params" else found


def _take_sizes(making: _Making, joined: set[str]) -> None:
    candidates: dict[str, dict[str, list[float | None]]] = {}
    for name in dict.fromkeys(name for run in making.runs for name in run.config):
        feature = _feature(name)
        values = [_size(run.config.get(name)) for run in making.runs]
        if feature is not None and any(value is not None for value in values):
            candidates.setdefault(feature, {})[name] = values
    for feature, named in candidates.items():
        if feature not in joined:
            _take_size(making, feature, named)
    counters = [name for name in _metrics(making.runs) if _feature(name) == "tokens"]
    if "tokens" in joined or not counters:
        return
    seen = [next((run.last[name] for name in counters if name in run.last), None) for run in making.runs]
    making.taken = [one for one in making.taken if one.column != "tokens"]
    making.put("tokens", seen, Taken(counters[0], "tokens", "tokens", "last value of this metric"))


def _take_size(making: _Making, feature: str, named: Mapping[str, list[float | None]]) -> None:
    # a name that is the size's own comes before one that ends in it, and a short one before a long one
    names = sorted(named, key=lambda name: (feature_of(name) is None, name.count("."), name))
    first = named[names[0]]
    for other in names[1:]:
        differ = any(a is not None and b is not None and a != b for a, b in zip(first, named[other], strict=True))
        if differ and feature in _NEEDED and feature_of(names[0]) is not None and feature_of(other) is not None:
            for name in names:
                why = f"'{names[0]}' and '{other}' may both be {feature}; name the one that is meant with --join"
                making.left_out.append(LeftOut("setting", name, why))
            return
        first = [a if a is not None else b for a, b in zip(first, named[other], strict=True)]
        making.left_out.append(LeftOut("setting", other, f"'{names[0]}' is taken as {feature}"))
    making.put(feature, first, Taken(names[0], feature, feature, "setting"))


def _take_losses(making: _Making, joined: set[str]) -> None:
    for name in _metrics(making.runs):
        values = [run.last.get(name) for run in making.runs]
        if is_loss(name) and name not in joined:
            making.put(name, values, Taken(name, name, "loss", "last value of this metric"))
        elif _feature(name) != "tokens" and not any(name in run.config for run in making.runs):
            making.left_out.append(LeftOut("metric", name, "not known as a loss"))


def _take_settings(making: _Making, joined: set[str]) -> None:
    done = {one.source for one in making.taken} | {one.name for one in making.left_out} | joined
    for name in dict.fromkeys(name for run in making.runs for name in run.config):
        if name in done:
            continue
        values = [run.config.get(name) for run in making.runs]
        known = [value for value in values if value is not None]
        texts = {str(value) for value in known}
        if is_loss(name):
            why = "a setting, although its name is that of a loss"
        elif any(isinstance(value, dict | list | tuple) or len(str(value)) > _LONGEST for value in known):
            why = "not a number or a short text"
        elif len(texts) < 2 and (len(making.runs) > 1 or _feature(name) is None):
            why = "the same in every run" if known else "empty"
        else:
            making.put(name, values, Taken(name, name, "setting", "differs between runs"))
            continue
        making.left_out.append(LeftOut("setting", name, why))


def _complete(making: _Making) -> list[dict[str, Any]]:
    """The rows with a loss and with the sizes that other rows have.

    Raises:
        UsageError: no run has a loss.
    """
    losses = [one.column for one in making.taken if one.role == "loss"]
    rows = []
    present = [name for name in _NEEDED if any(name in row for row in making.rows)]
    for row in making.rows:
        lacking = [name for name in present if name not in row]
        if not any(name in row for name in losses):
            making.left_out.append(LeftOut("run", str(row["run"]), "it has no finite loss"))
        elif lacking:
            making.left_out.append(LeftOut("run", str(row["run"]), f"it has no {' and no '.join(lacking)}"))
        else:
            rows.append(row)
    for name in _NEEDED:
        if name not in present:
            making.notes.append(
                f"no setting is known as {name}, which 'fit scaling' and 'compare' need: add it with --join, a table "
                f"with the columns run and {name}"
            )
    if not rows:
        raise UsageError(
            f"none of {counted(len(making.runs), 'run')} has a loss with a known name (loss, val_loss, bpb) "
            f"and the sizes of the others; metrics: {', '.join(_metrics(making.runs)[:20]) or 'none'}"
        )
    return rows


def _metrics(runs: Sequence[FoundRun]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.last))


def _size(value: Any) -> float | None:
    """A number above 0, also written as in ``1.5B``."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) and value > 0 else None
    from armillary.laws import parse_size

    try:
        return parse_size(str(value))
    except UsageError:
        return None

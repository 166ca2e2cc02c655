"""Runs of other programs: the form that every reader returns, and the call of a reader by the name of its format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from armillary.recipe import UsageError

FORMATS = ("wandb", "tensorboard", "csv")
_MAX_DEPTH = 8


@dataclass
class FoundRun:
    """A run of another program.

    ``config`` holds its settings by dotted names. ``last`` holds the last finite value of each metric, and ``steps``
    the step of that value.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def measure(self, name: str, step: int, value: Any) -> None:
        """Keep the value of the metric ``name`` if it is a finite number and no value of a later step is known."""
        if (number := finite(value)) is not None and step >= self.steps.get(name, step):
            self.last[name], self.steps[name] = number, step


def finite(value: Any) -> float | None:
    """The value as a float; None if it is a boolean, not a number, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def read_runs(kind: str, paths: Iterable[Path]) -> tuple[list[FoundRun], list[str]]:
    """Read the runs in files and folders with the reader ``kind`` (one of ``FORMATS``).

    Returns:
        The runs, and one sentence per part that could not be read.

    Raises:
        UsageError: a path is missing, has no run in this format, or the package that reads it is not installed.
    """
    try:
        reader = import_module(f"armillary.trackers.importing.{kind}")
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed here: pip install 'armillary[{kind}]'") from error
    runs: list[FoundRun] = []
    notes: list[str] = []
    for path in {path.resolve(): path for path in paths}.values():
        if not path.exists():
            raise UsageError(f"{path}: there is no such file or folder")
        found, more = reader.read(path)
        if not found and not more:
            raise UsageError(f"{path}: holds {reader.LACKS}; give a file of that kind or a folder that holds some")
        runs += found
        notes += more
    return runs, notes


def files_below(path: Path, pattern: str, notes: list[str]) -> Iterator[Path]:
    """The files in the folder ``path`` and below whose name matches ``pattern``, in order; ``path`` itself if it is a
    file.

    Links to folders are not followed. A sentence about each folder that is skipped is added to ``notes``.
    """
    if path.is_file():
        yield path
        return
    waiting = [(path, 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            notes.append(f"{folder}: cannot be read ({error.strerror})")
            continue
        yield from (entry for entry in entries if entry.match(pattern) and entry.is_file())
        folders = [entry for entry in reversed(entries) if entry.is_dir() and not entry.is_symlink()]
        if depth < _MAX_DEPTH:
            waiting += [(entry, depth + 1) for entry in folders]
        else:
            notes += [f"{entry}: left out, more than {_MAX_DEPTH} folders deep; name it too" for entry in folders]

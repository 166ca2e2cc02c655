"""Finds the files with the metrics of a run, while it trains and afterwards."""

from __future__ import annotations

from pathlib import Path

from armillary.recipe.result import METRICS


def metric_files(folder: Path) -> tuple[list[Path], bool]:
    """The Parquet files with metrics of the run in ``folder``, in the order of their steps; whether they are final.

    A finished run has one file. A run that trains has parts and a live file with the last rows; if two files have the
    same step, the later one counts. Without any of these, it is the file of the last checkpoint.
    """
    if (folder / METRICS).is_file():
        return [folder / METRICS], True
    live = folder / "metrics" / "live.parquet"
    tail = [live] if live.is_file() else []  # looked for before the parts, which may take over its rows meanwhile
    parts = sorted((folder / "metrics").glob("rows-*.parquet"), key=_step)
    if parts or tail:
        return [*parts, *tail], False
    checkpoints = sorted((folder / "checkpoints").glob("step-*"), key=_step)
    checkpoints = [path for path in checkpoints if path.name.removeprefix("step-").isdecimal()]  # not .damaged
    return [path / METRICS for path in checkpoints[-1:] if (path / METRICS).is_file()], False


def _step(path: Path) -> int:
    text = path.stem.rpartition("-")[2]
    return int(text) if text.isascii() and text.isdigit() else 0

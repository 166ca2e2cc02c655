"""Runs of the past in a tracker: what it lacks is added, so a second export adds nothing, and a killed one resumes."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from armillary.files import aside, write_file
from armillary.recipe import ArmillaryError, BusyError, RunSpec, UsageError, read_result
from armillary.trackers.destination import Destination
from armillary.trackers.mirror import Mirror, TrackerError
from armillary.trackers.source import RunFiles, is_run

TABLE = "runs.csv"


@dataclass(frozen=True)
class Exported:
    """A run of an export: ``rows`` were added. ``problem`` says why something is lacking, if it is."""

    run: str
    name: str
    rows: int
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


@dataclass(frozen=True)
class Chosen:
    """A run to export: its folder, what it is called, its status and the studies that it belongs to."""

    folder: Path
    run: str
    name: str
    status: str = ""
    studies: tuple[str, ...] = ()


def runs_in(folder: Path, database: str | None = None, beginnings: Sequence[str] = ()) -> list[Chosen]:
    """The runs of a store that have begun, the oldest first; with ``beginnings``, those whose id begins with one.

    Raises:
        UsageError: a beginning matches no run.
        ArmillaryError: the store cannot be read.
    """
    from armillary.store import Reader  # here, since the process beside a training should start in a moment

    reader = Reader(folder, database)
    try:
        rows = reader.overview()
        studies: dict[str, list[str]] = {}
        status: dict[str, str] = {}
        for row in rows:
            studies.setdefault(row["run"], []).append(row["study"])
            status[row["run"]] = row["status"]
        for beginning in beginnings:
            if not any(run.startswith(beginning) for run in status):
                raise UsageError(f"{folder}: no run begins with '{beginning}'; `armillary runs` lists all")
        wanted = [run for run in status if not beginnings or any(run.startswith(begin) for begin in beginnings)]
        found = [Chosen(reader.folder_of(run), run, run, status[run], tuple(sorted(studies[run]))) for run in wanted]
    finally:
        reader.close()
    return [chosen for chosen in found if is_run(chosen.folder)]


def run_in(folder: Path) -> Chosen | None:
    """The run in a folder that is a run's own, such as that of a large run; None for any other folder."""
    if not is_run(folder):
        return None
    return Chosen(folder, RunFiles(folder).spec.id, folder.resolve().name)


def export_runs(
    chosen: Sequence[Chosen],
    where: Destination,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Iterator[Exported]:
    """Add the metrics of runs to a tracker, run by run. Of a run that still trains, the steps so far are added.

    Raises:
        TrackerError: the tracker failed; runs before it are complete, and the same call resumes.
    """
    if where.tracker == "csv":
        Path(where.place).mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(chosen):
        progress(number, len(chosen), one.name)
        files = RunFiles(one.folder, one.name, {f"study.{k}": study for k, study in enumerate(one.studies)})
        try:
            rows = _write_csv(files, one, Path(where.place)) if where.tracker == "csv" else _mirrored(files, where)
        except TrackerError as error:
            raise TrackerError(
                f"{where.tracker}: {error} (run {one.run}, after {number} of {len(chosen)}); the same command resumes"
            ) from error
        except (ArmillaryError, OSError) as error:
            yield Exported(one.run, one.name, 0, str(error))
        else:
            yield Exported(one.run, one.name, rows)
    if where.tracker == "csv":
        path = Path(where.place) / TABLE
        write_file(path, _table(chosen, _exported(path, {one.run for one in chosen})).encode())
    progress(len(chosen), len(chosen), "")


def _mirrored(files: RunFiles, where: Destination) -> int:
    mirror = Mirror(files, where)
    try:
        return mirror.sync()
    except BusyError as error:
        raise BusyError(f"{error} (training writes it there by itself)") from error
    finally:
        mirror.close()


def _write_csv(files: RunFiles, one: Chosen, folder: Path) -> int:
    """Write ``RUN.csv``: a row per step with ``time_s`` and all metrics; an older file stays until it is complete."""
    names = [name for name in files.columns() if name != "step"]
    path, count = folder / f"{one.run}.csv", 0
    with _replaced(path) as file:
        lines = csv.writer(file)
        lines.writerow(["step", "time_s", *names])
        for rows in files.rows_after(0):
            lines.writerows(
                [row.step, f"{row.time_s:.3f}", *(row.values.get(name, "") for name in names)] for row in rows
            )
            count += len(rows)
    return count


@contextmanager
def _replaced(path: Path) -> Iterator[Any]:
    hidden = aside(path)
    try:
        with open(hidden, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def _exported(path: Path, without: Container[str]) -> list[dict[str, Any]]:
    """The rows of runs that an earlier call exported there, without those of this call.

    Raises:
        ArmillaryError: the table cannot be read.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file, restkey="", restval=""))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise ArmillaryError(f"{path}: cannot be read ({error}); move it away and export all runs again") from error
    return [{name: value for name, value in row.items() if name} for row in rows if row.get("run", "") not in without]


def _table(chosen: Sequence[Chosen], rows: list[dict[str, Any]]) -> str:
    """``rows``, then a row per finished run with sizes and final losses: a table for ``armillary fit scaling``."""
    for one in chosen:
        try:
            spec, result = RunFiles(one.folder).spec, read_result(one.folder)
        except (ArmillaryError, OSError):
            continue
        if result is not None:
            losses = {f"validation/{domain}/loss": loss for domain, loss in result.loss.items()}
            rows.append({**_sizes(one, spec), **losses})
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = StringIO(newline="")
    lines = csv.DictWriter(text, names, restval="")
    lines.writeheader()
    lines.writerows(rows)
    return text.getvalue()


def _sizes(one: Chosen, spec: RunSpec) -> dict[str, Any]:
    return {
        "run": one.run,
        "name": one.name,
        "study": " ".join(one.studies),
        "params": spec.model.parameters,
        "tokens": spec.tokens,
        "flops": spec.flops,
        "width": spec.model.d_model,
        "depth": spec.model.n_layers,
        "lr": spec.optimizer.lr,
        "batch_tokens": spec.batch_tokens,
        "seed": spec.seed,
    }

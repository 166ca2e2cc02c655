"""The folder of a run: locked for training, read when the run is done, and verified.

Files are compared with the checksums in the run's result (``recipe.result``).
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from armillary.corpus import Corpus
from armillary.files import file_sha256, write_json
from armillary.goodput import EventWriter, read_events
from armillary.model import Transformer, check_weights, load_weights
from armillary.recipe import (
    EVENTS,
    METRICS,
    RESULT,
    SPEC,
    WEIGHTS,
    ArmillaryError,
    DamagedFileError,
    FileProblem,
    ForeignFileError,
    RunResult,
    RunSpec,
    UsageError,
    counted,
    lock,
    problem_of,
    read_result,
    read_spec,
    recorded_files,
)
from armillary.train.check import check_run
from armillary.train.checkpoint import checkpoint_steps, set_aside, verify_checkpoint
from armillary.train.errors import BusyRunError
from armillary.train.skips import SKIPPED, read_skips
from armillary.train.writing import writing


@contextlib.contextmanager
def open_folder(spec: RunSpec, corpus: Corpus, folder: Path) -> Iterator[EventWriter | RunResult]:
    """Lock the run's folder; yield the result if the run is done, else the log for its events.

    Raises:
        UsageError, BusyRunError, DamagedFileError, ForeignFileError, ArmillaryError: as ``train_run``.
    """
    check_run(spec, corpus)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        damaged = _claim(folder, spec)
        done = read_result(folder, spec.id)
        if done is not None:
            yield done
            return
        with EventWriter(folder / EVENTS, spec.id) as events:
            for name, problem in damaged:
                events.write("fault", 0, file=name, problem=problem, remedy=f"it is kept as {name}.damaged")
            yield events


def _claim(folder: Path, spec: RunSpec) -> list[tuple[str, str]]:
    """Check that the folder belongs to ``spec``, and write the specification if it is missing.

    Damaged files that can be replaced are set aside: the specification, which the caller has, and the events, of which
    only the times are lost. Returns their names and the problems.

    Raises:
        ForeignFileError: the folder holds another run, or a file of a newer format.
    """
    damaged: list[tuple[str, str]] = []
    missing = False
    try:
        found = read_spec(folder)
        if found.id != spec.id:
            raise ForeignFileError(
                f"{folder}: belongs to run {found.id}, not to {spec.id}; give every run a separate folder"
            )
    except FileNotFoundError:
        missing = True
    except DamagedFileError as error:
        damaged.append((SPEC, str(error)))
    known: set[str] = set()
    try:
        known = {event.run for event in read_events(folder / EVENTS)}
    except FileNotFoundError:
        pass
    except DamagedFileError as error:
        damaged.append((EVENTS, str(error)))
    if known - {spec.id}:
        raise ForeignFileError(
            f"{folder / EVENTS}: has events of run {min(known - {spec.id})}, not of {spec.id}; give every run a "
            "separate folder. The file was not changed"
        )
    for name, _ in damaged:
        set_aside(folder / name)
    if missing or not (folder / SPEC).exists():
        with writing(folder / SPEC):
            write_json(folder / SPEC, spec.model_dump(mode="json"))
    return damaged


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock the folder against other processes; the lock of a dead process is released.

    Raises:
        BusyRunError: another process holds it.
        ArmillaryError: the file cannot be created, or the file system gives no locks.
    """
    with contextlib.ExitStack() as closing:
        with writing(folder / ".lock"):
            file = closing.enter_context(open(folder / ".lock", "w"))
        try:
            lock(file.fileno(), folder / ".lock", wait=False)
        except BlockingIOError as error:
            raise BusyRunError(f"{folder}: another process is training this run; wait for it or stop it") from error
        yield


def read_metrics(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """The metrics of a finished run, a row for each step; ``columns`` picks some of them.

    Raises:
        DamagedFileError: the table is missing, unreadable, or not the one in the result.
    """
    path = folder / METRICS
    if (problem := _changed(folder, METRICS)) is not None:
        raise DamagedFileError(str(problem))
    try:
        with open(path, "rb") as file:  # pyarrow reads a folder as a table without rows
            return pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowException) as error:
        fault = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DamagedFileError(f"{path}: {fault}; {_again(folder)}") from error


def load_trained(folder: Path, spec: RunSpec) -> Transformer:
    """The trained model of the finished run ``spec`` in ``folder``.

    Raises:
        DamagedFileError: the weights are missing, or not those in the result.
        ForeignFileError: the folder holds the result of another run.
        ArmillaryError: the run is not done, or the weights are not those of its model.
    """
    if read_result(folder, spec.id) is None:
        raise ArmillaryError(f"{folder}: run {spec.id} is not finished; start it again to finish it")
    problem = _changed(folder, WEIGHTS)
    if problem is not None:
        raise DamagedFileError(str(problem))
    return load_weights(folder / WEIGHTS, spec.model)


def verify_run(folder: Path) -> list[FileProblem]:
    """All problems of a run's folder, finished or not: missing and changed files.

    Compares each file with its checksum: specification, events, skipped batches and checkpoints, and for a finished run
    also result, weights and metrics. A run of an older version has fewer checksums; only these are compared.

    Raises:
        UsageError: not the folder of a run.
    """
    if not (folder / SPEC).exists() and not (folder / RESULT).exists():
        raise UsageError(f"{folder}: not the folder of a run: it has no {SPEC} and no {RESULT}")
    problems: list[FileProblem] = []
    spec: RunSpec | None = None
    result: RunResult | None = None
    recorded: tuple[int, str] | None = None
    anew = "restore it from a copy, or move it away and start the run again to rewrite it"
    try:
        spec = read_spec(folder)
    except FileNotFoundError:
        problems.append(FileProblem(folder / SPEC, "is missing", anew))
    except (ArmillaryError, OSError) as error:
        problems.append(problem_of(folder / SPEC, error, anew))
    try:
        if (found := recorded_files(folder)) is not None:
            result, recorded = found[0], found[1].get(EVENTS)
    except ArmillaryError as error:
        problems.append(problem_of(folder / RESULT, error, "restore it from a copy"))
    run = result.run if result is not None else spec.id if spec is not None else None
    problems += _check_events(folder / EVENTS, run, recorded)
    if spec is not None and result is not None and spec.id != result.run:
        # one of the two belongs to another run; the events name their run
        theirs = any(problem.file.name == EVENTS for problem in problems)
        name, other = (RESULT, result.run) if theirs else (SPEC, spec.id)
        problems.append(
            FileProblem(folder / name, f"belongs to run {other}, but the other files belong to another run", anew)
        )
        return problems
    if run is not None:
        problems += _check_skips(folder, run, result)
    steps: list[int] = []
    try:
        steps = checkpoint_steps(folder / "checkpoints")
    except ArmillaryError as error:
        problems.append(problem_of(folder / "checkpoints", error, "move it away"))
    for step in steps:
        path = folder / "checkpoints" / f"step-{step}"
        try:
            verify_checkpoint(path, run)
        except OSError as error:
            problems.append(problem_of(path, error, "restore it from a copy, or move it away"))
        except ArmillaryError as error:
            remedy = "restore it from a copy, or move it away"
            problems += [problem_of(path, line, remedy) for line in str(error).splitlines()]
    if result is not None:
        problems += [problem for name in (WEIGHTS, METRICS) if (problem := _changed(folder, name)) is not None]
        problems += _check_content(folder, spec, result, {problem.file.name for problem in problems})
    return problems


def _check_events(path: Path, run: str | None, recorded: tuple[int, str] | None) -> list[FileProblem]:
    """The problems of a run's events; ``recorded`` is their size in bytes and checksum at the run's end."""
    remedy = "restore it from a copy; the run's numbers do not depend on it, but its times do"
    try:
        events = list(read_events(path))
    except FileNotFoundError:
        return [FileProblem(path, "is missing", remedy)]
    except (ArmillaryError, OSError) as error:
        return [problem_of(path, error, remedy)]
    if not events:
        return [FileProblem(path, "is empty", remedy)]
    if recorded is not None:  # lines appended later are not compared
        with open(path, "rb") as file:
            data = file.read(recorded[0])
        if len(data) < recorded[0]:
            return [FileProblem(path, f"has {counted(len(data), 'byte')} instead of {recorded[0]} or more", remedy)]
        if sha256(data).hexdigest() != recorded[1]:
            return [FileProblem(path, "does not match its checksum", remedy)]
    seen: set[str] = set()
    for event in events:
        if (text := event.model_dump_json()) in seen:  # the time of another event would be later
            return [FileProblem(path, f"contains the event {text} twice", remedy)]
        seen.add(text)
    others = sorted({event.run for event in events} - {run})
    return [FileProblem(path, f"contains events of run {others[0]}", remedy)] if run is not None and others else []


def _check_skips(folder: Path, run: str, result: RunResult | None) -> list[FileProblem]:
    """The problems of the record of skipped batches, which a finished run may lack."""
    remedy = "restore it from a copy, or move it away: the result and the checkpoints also record the steps"
    try:
        skipped = tuple(read_skips(folder, run))
    except (ArmillaryError, OSError) as error:
        return [problem_of(folder / SKIPPED, error, remedy)]
    if result is None or not skipped or skipped == result.skipped:
        return []
    return [FileProblem(folder / SKIPPED, f"has different steps than {RESULT}", remedy)]


def _check_content(folder: Path, spec: RunSpec | None, result: RunResult, known: set[str]) -> list[FileProblem]:
    """Compare weights and metrics with specification and result, for results without checksums."""
    problems = []
    if spec is not None and WEIGHTS not in known:
        try:
            check_weights(folder / WEIGHTS, spec.model)
        except ArmillaryError as error:
            problems.append(problem_of(folder / WEIGHTS, error, _again(folder)))
    if METRICS not in known:
        try:
            last = read_metrics(folder).to_pylist()[-1:]
        except ArmillaryError as error:
            return [*problems, problem_of(folder / METRICS, error, _again(folder))]
        losses = {domain: last[0].get(f"validation/{domain}/loss") if last else None for domain in result.loss}
        if losses != result.loss:
            problems.append(FileProblem(folder / METRICS, f"does not end with the values in {RESULT}", _again(folder)))
    return problems


def _changed(folder: Path, name: str) -> FileProblem | None:
    """The problem of a finished run's file, by its recorded size and checksum."""
    found = recorded_files(folder)
    path = folder / name
    try:
        size = path.stat().st_size
        recorded = found[1].get(name) if found is not None else None
        if recorded is not None and size != recorded[0]:
            return FileProblem(path, f"has {counted(size, 'byte')} instead of {recorded[0]}", _again(folder))
        if recorded is not None and file_sha256(path) != recorded[1]:
            return FileProblem(path, "does not match its checksum", _again(folder))
    except FileNotFoundError:
        return FileProblem(path, "is missing", _again(folder))
    except OSError as error:
        return FileProblem(path, f"cannot be read ({error.strerror})", _again(folder))
    return None


def _again(folder: Path) -> str:
    return f"copy it from a backup, or move {shlex.quote(str(folder / RESULT))} away and train the run again"

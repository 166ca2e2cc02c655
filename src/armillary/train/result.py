"""What a finished run leaves in its folder, and how a reader finds out whether it is still what was written.

``result.json`` makes a run done. It is sealed, holds the run's id, and the size and SHA-256 of the weights, the
metrics and the events, so that a file of another run, a torn one or one flipped bit is found. Reading the result
compares the numbers only; ``read_metrics``, ``load_trained`` and ``verify_run`` compare the files that they read.
Format 1, without seal and checksums, and results without the checksum of the events are still read.
"""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from armillary.files import PASSING
from armillary.goodput import read_events
from armillary.model import Transformer, check_weights, load_weights
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    FileProblem,
    ForeignFileError,
    RunSpec,
    UsageError,
    counted,
    first_problem,
    problem_of,
    read_json,
    read_sealed,
    write_sealed,
)
from armillary.train.checkpoint import checkpoint_steps, file_sha256, verify_checkpoint

FORMAT = 2

WEIGHTS = "model.safetensors"
METRICS = "metrics.parquet"
RESULT = "result.json"
SPEC = "spec.json"
EVENTS = "events.jsonl"


@dataclass(frozen=True)
class RunResult:
    """What a finished run measured.

    ``loss`` in nats per token and ``bits_per_byte``, both per validation domain after the last step; ``train_loss`` is
    the mean over the last tenth of the steps, and so is each of ``measured``, what the objective measures besides
    (``recipe.measures``); ``epochs`` counts passes over each training domain. ``wall_s`` is the time spent in all
    attempts, the only number here that another execution may change.
    """

    run: str
    loss: dict[str, float]
    bits_per_byte: dict[str, float]
    train_loss: float
    tokens: int
    flops: float
    epochs: dict[str, float]
    wall_s: float
    measured: dict[str, float] = field(default_factory=dict)


def write_result(folder: Path, result: RunResult) -> None:
    """Write ``result.json`` over the weights, metrics and events that lie in ``folder``."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in (WEIGHTS, METRICS, EVENTS)
        if name != EVENTS or (folder / name).exists()
    }
    # what most runs do not have is not written, so that older versions read their results
    numbers = {name: value for name, value in result.__dict__.items() if name != "measured" or value}
    write_sealed(folder / RESULT, {"format": FORMAT, **numbers, "files": files})


def read_result(folder: Path, run: str | None = None) -> RunResult | None:
    """The result of a run's folder, or None while it is not done.

    ``run`` is the id that it must have; without it, that of the folder's specification counts, where that can be read.

    Raises:
        DamagedFileError: the file is torn or was edited.
        ForeignFileError: it is of a newer format, or the result of another run.
    """
    found = _read(folder)
    if found is None:
        return None
    result = found[0]
    if run is None:
        with contextlib.suppress(ArmillaryError, OSError):
            run = read_spec(folder).id
    if run is not None and result.run != run:
        raise ForeignFileError(
            f"{folder / RESULT}: is the result of run {result.run}, not of {run}; move it back to its own folder, and "
            "start this run again"
        )
    return result


def _read(folder: Path) -> tuple[RunResult, dict[str, tuple[int, str]]] | None:
    """The result, and the bytes and SHA-256 that it records of the run's files."""
    path = folder / RESULT
    remedy = "copy it from a backup, or remove it and start the run again"
    try:
        document = read_sealed(path, "result", FORMAT, remedy, sealed_since=2)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in PASSING:
            remedy = "make it readable, and start the run again"
        raise DamagedFileError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    files = document.pop("files", {})
    del document["format"]
    try:
        if {*document, "measured"} != {known.name for known in fields(RunResult)}:
            raise ValueError(f"has the fields {', '.join(sorted(document))}")
        result = TypeAdapter(RunResult).validate_python(document)
        recorded = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = first_problem(error) if isinstance(error, ValidationError) else error
        raise DamagedFileError(f"{path}: is not a run's result ({said}); {remedy}") from error
    return result, recorded


def read_spec(folder: Path) -> RunSpec:
    """The specification of a run's folder.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is torn, or not a specification.
        ForeignFileError: it is of a newer format.
        ArmillaryError: it cannot be read now, for a cause that may pass.
    """
    path = folder / SPEC
    remedy = "restore it from a copy, or move it away and start the run again, which writes it anew"
    try:
        document = read_json(path, "run specification", remedy)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in PASSING:
            raise ArmillaryError(f"{path}: cannot be read now ({error.strerror}); make it readable") from error
        raise DamagedFileError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    form = document.get("format")
    if isinstance(form, int) and form > 1:
        raise ForeignFileError(
            f"{path}: run specification of format {form}, and this version reads up to 1; use the version that wrote "
            "it. The file is left as it is"
        )
    try:
        return RunSpec.model_validate(document)
    except ValidationError as error:
        raise DamagedFileError(f"{path}: not a run's specification: {first_problem(error)}; {remedy}") from error


def read_metrics(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """The metrics of a finished run, a row for each step; ``columns`` picks some of them.

    Raises:
        DamagedFileError: the table is missing, cannot be read, or is not the one that the result records.
    """
    path = folder / METRICS
    if (problem := _changed(folder, METRICS)) is not None:
        raise DamagedFileError(str(problem))
    try:
        with open(path, "rb") as file:  # a folder would be read as a table without rows
            return pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowException) as error:
        said = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DamagedFileError(f"{path}: {said}; {_again(folder)}") from error


def load_trained(folder: Path, spec: RunSpec) -> Transformer:
    """The model that the finished run ``spec`` in ``folder`` has trained, as it was written.

    Raises:
        DamagedFileError: the weights are missing, or not those that the result speaks of.
        ForeignFileError: the folder holds the result of another run.
        ArmillaryError: the run is not done, or the weights are not those of its model.
    """
    if read_result(folder, spec.id) is None:
        raise ArmillaryError(f"{folder}: run {spec.id} is not done; start it again to train it to its end")
    problem = _changed(folder, WEIGHTS)
    if problem is not None:
        raise DamagedFileError(str(problem))
    return load_weights(folder / WEIGHTS, spec.model)


def verify_run(folder: Path) -> list[FileProblem]:
    """Everything in a run's folder that is not what the run wrote, finished or not; an empty list if all is well.

    Compares each file with its checksum: specification, events, checkpoints, and of a finished run result, weights and
    metrics. A run of an older version, which recorded fewer checksums, is checked as far as they go.

    Raises:
        UsageError: not the folder of a run.
    """
    if not (folder / SPEC).exists() and not (folder / RESULT).exists():
        raise UsageError(f"{folder}: not the folder of a run: it has no {SPEC} and no {RESULT}")
    problems: list[FileProblem] = []
    spec: RunSpec | None = None
    result: RunResult | None = None
    recorded: tuple[int, str] | None = None
    anew = "restore it from a copy, or move it away and start the run again, which writes it anew"
    try:
        spec = read_spec(folder)
    except FileNotFoundError:
        problems.append(FileProblem(folder / SPEC, "is missing", anew))
    except (ArmillaryError, OSError) as error:
        problems.append(problem_of(folder / SPEC, error, anew))
    try:
        if (found := _read(folder)) is not None:
            result, recorded = found[0], found[1].get(EVENTS)
    except ArmillaryError as error:
        problems.append(problem_of(folder / RESULT, error, "restore it from a copy"))
    run = result.run if result is not None else spec.id if spec is not None else None
    problems += _check_events(folder / EVENTS, run, recorded)
    if spec is not None and result is not None and spec.id != result.run:
        # one of the two is another run's; the events say which
        theirs = any(problem.file.name == EVENTS for problem in problems)
        name, other = (RESULT, result.run) if theirs else (SPEC, spec.id)
        problems.append(FileProblem(folder / name, f"is that of run {other}, and the rest is another run's", anew))
        return problems
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
    """What is wrong with a run's events; ``recorded`` are the bytes and checksum that they had when the run ended."""
    remedy = "restore it from a copy; the run's numbers do not depend on it, the times do"
    try:
        events = list(read_events(path))
    except FileNotFoundError:
        return [FileProblem(path, "is missing", remedy)]
    except (ArmillaryError, OSError) as error:
        return [problem_of(path, error, remedy)]
    if not events:
        return [FileProblem(path, "is empty", remedy)]
    if recorded is not None:  # lines that were appended afterwards are not compared
        with open(path, "rb") as file:
            data = file.read(recorded[0])
        if len(data) < recorded[0]:
            return [FileProblem(path, f"has {counted(len(data), 'byte')} instead of {recorded[0]} or more", remedy)]
        if sha256(data).hexdigest() != recorded[1]:
            return [FileProblem(path, "does not match its checksum", remedy)]
    others = sorted({event.run for event in events} - {run})
    return [FileProblem(path, f"holds events of run {others[0]}", remedy)] if run is not None and others else []


def _check_content(folder: Path, spec: RunSpec | None, result: RunResult, known: set[str]) -> list[FileProblem]:
    """Hold weights and metrics against specification and result, which finds more where no checksum is recorded."""
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
            problems.append(FileProblem(folder / METRICS, f"does not end as {RESULT} says", _again(folder)))
    return problems


def _changed(folder: Path, name: str) -> FileProblem | None:
    """What is wrong with a file of a finished run by its recorded size and checksum."""
    found = _read(folder)
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

"""What a finished run leaves in its folder, and how a reader finds out whether it is still what was written.

``result.json`` makes a run done. It is sealed, holds the run's id, and the size and SHA-256 of the weights and the
metrics, so that a file of another run, a torn one or one flipped bit is found. Reading the result compares the numbers
only; ``verify_run`` and ``load_trained`` compare the files as well. Format 1, without seal and checksums, is still
read.
"""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from armillary.goodput import read_events
from armillary.model import Transformer, check_weights, load_weights
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    ForeignFileError,
    RunSpec,
    UsageError,
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
    the mean over the last tenth of the steps; ``epochs`` counts passes over each training domain. ``wall_s`` is the
    time spent in all attempts, the only number here that another execution may change.
    """

    run: str
    loss: dict[str, float]
    bits_per_byte: dict[str, float]
    train_loss: float
    tokens: int
    flops: float
    epochs: dict[str, float]
    wall_s: float


@dataclass(frozen=True)
class Problem:
    """A file that is not what the run wrote, and what to do about it."""

    file: Path
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.remedy}"


def write_result(folder: Path, result: RunResult) -> None:
    """Write ``result.json`` over the weights and metrics that lie in ``folder``."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in (WEIGHTS, METRICS)
    }
    write_sealed(folder / RESULT, {"format": FORMAT, **result.__dict__, "files": files})


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


def _read(folder: Path) -> tuple[RunResult, dict[str, Any]] | None:
    """The result and what it records of the run's files."""
    path = folder / RESULT
    remedy = "copy it from a backup, or remove it and start the run again"
    try:
        document = read_sealed(path, "result", FORMAT, remedy, sealed_since=2)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedFileError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    files = document.pop("files", {})
    del document["format"]
    try:
        if set(document) != {field.name for field in fields(RunResult)}:
            raise ValueError(f"has the fields {', '.join(sorted(document))}")
        result = TypeAdapter(RunResult).validate_python(document)
        recorded = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise DamagedFileError(f"{path}: is not a run's result ({said}); {remedy}") from error
    return result, recorded


def read_spec(folder: Path) -> RunSpec:
    """The specification of a run's folder.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is torn, or not a specification.
        ForeignFileError: it is of a newer format.
    """
    path = folder / SPEC
    remedy = "restore it from a copy, or move it away and start the run again, which writes it anew"
    try:
        document = read_json(path, "run specification", remedy)
    except FileNotFoundError:
        raise
    except OSError as error:
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
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise DamagedFileError(f"{path}: not a run's specification: {where}: {first['msg']}; {remedy}") from error


def read_metrics(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """The metrics of a finished run, a row for each step; ``columns`` picks some of them.

    Raises:
        DamagedFileError: the table is missing or cannot be read.
    """
    path = folder / METRICS
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


def verify_run(folder: Path) -> list[Problem]:
    """Everything in a run's folder that is not what the run wrote, finished or not; an empty list if all is well.

    Compares each file with its checksum: specification, events, checkpoints, and of a finished run result, weights and
    metrics. A run of an older version, which recorded fewer checksums, is checked as far as they go.

    Raises:
        UsageError: not the folder of a run.
    """
    if not (folder / SPEC).exists() and not (folder / RESULT).exists():
        raise UsageError(f"{folder}: not the folder of a run: it has no {SPEC} and no {RESULT}")
    problems: list[Problem] = []
    spec: RunSpec | None = None
    result: RunResult | None = None
    anew = "restore it from a copy, or move it away and start the run again, which writes it anew"
    try:
        spec = read_spec(folder)
    except FileNotFoundError:
        problems.append(Problem(folder / SPEC, "is missing", anew))
    except (ArmillaryError, OSError) as error:
        problems.append(_problem(folder / SPEC, error, anew))
    try:
        result = found[0] if (found := _read(folder)) is not None else None
    except ArmillaryError as error:
        problems.append(_problem(folder / RESULT, error, "restore it from a copy"))
    run = result.run if result is not None else spec.id if spec is not None else None
    problems += _check_events(folder / EVENTS, run)
    if spec is not None and result is not None and spec.id != result.run:
        # one of the two is another run's; the events say which
        theirs = any(problem.file.name == EVENTS for problem in problems)
        name, other = (RESULT, result.run) if theirs else (SPEC, spec.id)
        problems.append(Problem(folder / name, f"is that of run {other}, and the rest is another run's", anew))
        return problems
    for step in checkpoint_steps(folder / "checkpoints"):
        path = folder / "checkpoints" / f"step-{step}"
        try:
            verify_checkpoint(path, run)
        except (ArmillaryError, OSError) as error:
            problems.append(_problem(path, error, "restore it from a copy, or move it away"))
    if result is not None:
        problems += [problem for name in (WEIGHTS, METRICS) if (problem := _changed(folder, name)) is not None]
        problems += _check_content(folder, spec, result, {problem.file.name for problem in problems})
    return problems


def _check_events(path: Path, run: str | None) -> list[Problem]:
    remedy = "restore it from a copy; the run's numbers do not depend on it, the times do"
    try:
        events = list(read_events(path))
    except FileNotFoundError:
        return [Problem(path, "is missing", remedy)]
    except (ArmillaryError, OSError) as error:
        return [_problem(path, error, remedy)]
    if not events:
        return [Problem(path, "is empty", remedy)]
    others = sorted({event.run for event in events} - {run})
    return [Problem(path, f"holds events of run {others[0]}", remedy)] if run is not None and others else []


def _check_content(folder: Path, spec: RunSpec | None, result: RunResult, known: set[str]) -> list[Problem]:
    """Hold weights and metrics against specification and result, which finds more where no checksum is recorded."""
    problems = []
    if spec is not None and WEIGHTS not in known:
        try:
            check_weights(folder / WEIGHTS, spec.model)
        except ArmillaryError as error:
            problems.append(_problem(folder / WEIGHTS, error, _again(folder)))
    if METRICS not in known:
        try:
            last = read_metrics(folder).to_pylist()[-1:]
        except ArmillaryError as error:
            return [*problems, _problem(folder / METRICS, error, _again(folder))]
        losses = {domain: last[0].get(f"validation/{domain}/loss") if last else None for domain in result.loss}
        if losses != result.loss:
            problems.append(Problem(folder / METRICS, f"does not end as {RESULT} says", _again(folder)))
    return problems


def _changed(folder: Path, name: str) -> Problem | None:
    """What is wrong with a file of a finished run by its recorded size and checksum."""
    found = _read(folder)
    path = folder / name
    try:
        size = path.stat().st_size
        recorded = found[1].get(name) if found is not None else None
        if recorded is not None and size != recorded[0]:
            return Problem(path, f"has {size} bytes instead of {recorded[0]}", _again(folder))
        if recorded is not None and file_sha256(path) != recorded[1]:
            return Problem(path, "does not match its checksum", _again(folder))
    except FileNotFoundError:
        return Problem(path, "is missing", _again(folder))
    except OSError as error:
        return Problem(path, f"cannot be read ({error.strerror})", _again(folder))
    return None


def _problem(path: Path, error: Exception, remedy: str) -> Problem:
    """An error as a problem of ``path``; a message that begins with the path or ends with the remedy has it once."""
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    text = text.removeprefix(f"{path}: ").rstrip(".")
    what, _, said = text.partition("; ")
    return Problem(path, what, said or remedy)


def _again(folder: Path) -> str:
    return f"copy it from a backup, or move {shlex.quote(str(folder / RESULT))} away and train the run again"

"""The records of a run: its specification and, once it is done, its result with checksums of its files.

A run is done when ``result.json`` exists. It is sealed and holds the run's id, and the size and SHA-256 of the weights,
the metrics and the events. This detects a file of another run, a torn file and a single flipped bit. Reading the result
checks its numbers only; the room ``train`` checks the files that it reads. Format 1, without seal and checksums, and
results without the checksum of the events are still read. Format 3 is that of a run with skipped batches.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from armillary.files import PASSING, file_sha256
from armillary.recipe.errors import ArmillaryError
from armillary.recipe.run import RunSpec
from armillary.recipe.sealed import DamagedFileError, ForeignFileError, read_json, read_sealed, write_sealed
from armillary.recipe.words import first_problem

FORMAT = 3

_OPTIONAL = ("measured", "skipped")

WEIGHTS = "model.safetensors"
METRICS = "metrics.parquet"
RESULT = "result.json"
SPEC = "spec.json"
EVENTS = "events.jsonl"


@dataclass(frozen=True)
class RunResult:
    """The measurements of a finished run.

    ``loss`` in nats per token and ``bits_per_byte`` are per validation domain, after the last step. ``train_loss`` is
    the mean over the last tenth of the steps. So is each of ``measured``, the objective's further measurements
    (``recipe.measures``). ``epochs`` counts passes over each training domain. ``wall_s`` is the time of all attempts,
    the only number here that may differ in another execution. ``skipped`` are the steps, counted from 1, that took no
    update because their batches spoiled it (``skipped.json`` in the run's folder).
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
    skipped: tuple[int, ...] = ()


def write_result(folder: Path, result: RunResult) -> None:
    """Write ``result.json`` over the weights, metrics and events that lie in ``folder``."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in (WEIGHTS, METRICS, EVENTS)
        if name != EVENTS or (folder / name).exists()
    }
    # empty fields are not written, so that older versions can read the result
    numbers = {name: value for name, value in result.__dict__.items() if name not in _OPTIONAL or value}
    write_sealed(folder / RESULT, {"format": FORMAT if result.skipped else 2, **numbers, "files": files})


def read_result(folder: Path, run: str | None = None) -> RunResult | None:
    """The result in a run's folder, or None if the run is not done.

    ``run`` is the required id; by default it is that of the folder's specification, if this can be read.

    Raises:
        DamagedFileError: the file is torn or was edited.
        ForeignFileError: it is of a newer format, or the result of another run.
    """
    found = recorded_files(folder)
    if found is None:
        return None
    result = found[0]
    if run is None:
        with contextlib.suppress(ArmillaryError, OSError):
            run = read_spec(folder).id
    if run is not None and result.run != run:
        raise ForeignFileError(
            f"{folder / RESULT}: is the result of run {result.run}, not of {run}; move it back to the folder of that "
            "run, and start this run again"
        )
    return result


def recorded_files(folder: Path) -> tuple[RunResult, dict[str, tuple[int, str]]] | None:
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
        if {*document, *_OPTIONAL} != {known.name for known in fields(RunResult)}:
            raise ValueError(f"has the fields {', '.join(sorted(document))}")
        result = TypeAdapter(RunResult).validate_python(document)
        recorded = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else error
        raise DamagedFileError(f"{path}: is not a run's result ({reason}); {remedy}") from error
    return result, recorded


def read_spec(folder: Path) -> RunSpec:
    """The specification of a run's folder.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is torn, or not a specification.
        ForeignFileError: it is of a newer format.
        ArmillaryError: it cannot be read, for a cause that may be temporary.
    """
    path = folder / SPEC
    remedy = "restore it from a copy, or move it away and start the run again to rewrite it"
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
            f"{path}: run specification of format {form}, but this version reads formats up to 1; use the version "
            "that wrote it. The file was not changed"
        )
    try:
        return RunSpec.model_validate(document)
    except ValidationError as error:
        raise DamagedFileError(f"{path}: not a run specification: {first_problem(error)}; {remedy}") from error

"""The events of a run, one JSON object per line (contract 3).

The trainer, a fault injector and a cluster simulator write these lines; the ledger of lost time and the console read
them. A line torn by a kill is skipped, since it was never reported as done.

Format 2 has a minor version. A reader skips the kinds and ignores the fields that a newer minor version added; it
refuses a newer format. Format 1, without a minor version and with fewer kinds, is still read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from armillary.files import PASSING, aside, sync
from armillary.recipe import ArmillaryError, DamagedFileError, ForeignFileError, UsageError, first_problem

FORMAT = 2
MINOR = 2  # 1: degraded; 2: a checkpoint has three events, and data_wait and pause are written

EventKind = Literal[
    # start and end of an attempt
    "start", "resume", "running", "stop", "end",
    # work that takes time
    "compile", "progress", "data_wait", "validation", "pause",
    # a checkpoint or snapshot begins, training continues, its files are durable
    "checkpoint_begin", "checkpoint", "snapshot", "checkpoint_durable",
    # faults and recoveries
    "fault", "detected", "restart", "restored", "straggler", "skipped", "degraded",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(EventKind)
_KNOWN = frozenset(KINDS)
_LARGEST = 10**12  # largest time in seconds (30,000 years) and step; a line with a larger value is damaged


class Event(BaseModel):
    """One event: ``time_s`` since the Unix epoch, ``step`` counts finished steps.

    ``progress`` carries ``duration_s`` for the steps since the last one, of which ``data_wait`` events are a part;
    ``validation``, ``checkpoint`` and ``compile`` carry the seconds they took from training; ``stop`` is an orderly
    interruption, ``pause`` the time from there to the next start, ``fault`` an unplanned interruption. docs/goodput.md
    has all kinds.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = Field(default=FORMAT, ge=1)
    minor: int = Field(default=MINOR, ge=0)
    time_s: float = Field(ge=-_LARGEST, le=_LARGEST)
    run: str
    kind: EventKind
    step: int = Field(ge=0, le=_LARGEST)
    rank: int = Field(default=0, ge=0)
    duration_s: float | None = Field(default=None, ge=0, le=_LARGEST)
    data: dict[str, Any] = Field(default_factory=dict)


class EventWriter:
    """Appends events of one run to a file; each call writes its line before it returns, in one system call.

    Raises:
        ArmillaryError: the file cannot be written (a full disk, no access); earlier lines are kept.
    """

    def __init__(self, path: Path, run: str, rank: int = 0) -> None:
        self.path, self.run, self.rank = path, run, rank
        with self._writing():
            # Unbuffered, so that a line that failed on a full disk is not written again when the file is closed.
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            # A kill may have left half a line; a line break keeps the next event intact.
            if os.fstat(self._file).st_size > 0:
                with open(path, "rb") as written:
                    written.seek(-1, os.SEEK_END)
                    if written.read() != b"\n":
                        os.write(self._file, b"\n")

    def write(self, kind: EventKind, step: int, duration_s: float | None = None, **data: Any) -> None:
        """Append one event that happens now.

        Raises:
            ValidationError: it is not an event; nothing was written.
        """
        fields = {
            "format": FORMAT, "minor": MINOR, "time_s": time.time(), "run": self.run, "kind": kind, "step": step,
            "rank": self.rank, "duration_s": duration_s, "data": data,
        }  # fmt: skip
        # Three quarters of the cost would be the model. These comparisons find the same mistakes.
        duration = 0.0 if duration_s is None else duration_s
        if kind not in _KNOWN or not 0 <= step <= _LARGEST or not 0 <= duration <= _LARGEST:
            Event.model_validate(fields)
        line = to_json(fields, inf_nan_mode="null") + b"\n"
        try:
            if os.write(self._file, line) == len(line):
                return
        except OSError as error:
            raise self._failed(error) from error
        raise self._failed(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))  # a part was written

    def close(self) -> None:
        """Flush the file to storage."""
        try:
            with self._writing():
                os.fsync(self._file)
        finally:
            os.close(self._file)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> ArmillaryError:
        return ArmillaryError(
            f"{self.path}: could not be written ({error.strerror or error}); free space or fix permissions, then "
            "start the run again: it resumes from its last checkpoint"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_events(path: Path, events: Iterable[Event]) -> None:
    """Write a file of events atomically: after a kill it is either the old file or the new one.

    Raises:
        ArmillaryError: it cannot be written.
    """
    hidden = aside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(hidden, "wb") as file:
            for event in events:
                file.write(event.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
        sync(path.parent)
    except OSError as error:
        hidden.unlink(missing_ok=True)
        raise ArmillaryError(
            f"{path}: could not be written ({error.strerror or error}); free space or fix permissions"
        ) from (error)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


def read_events(path: Path) -> Iterator[Event]:
    """Events of a file in order; lines torn by a kill are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: a whole line that is not an event, with file and line; or the file cannot be read.
        ForeignFileError: a line of a newer format, with file and line.
        ArmillaryError: the file cannot be read now, for a transient cause.
    """
    remedy = "remove the line, or restore the file from a copy"
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                try:
                    fields = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                # Compared first, because this version would report a field of a newer format as wrong.
                version = fields.get("format") if isinstance(fields, dict) else None
                if isinstance(version, int) and version > FORMAT:
                    raise ForeignFileError(
                        f"{path}:{number}: event format {version} is newer than this version reads ({FORMAT}); "
                        "update armillary. The file was not changed"
                    )
                if isinstance(fields, dict) and _is_newer(fields.get("minor")):
                    if fields.get("kind") not in KINDS:
                        continue
                    fields = {name: fields[name] for name in Event.model_fields if name in fields}
                try:
                    yield Event.model_validate(fields)
                except ValidationError as error:
                    reason = first_problem(error)
                    raise DamagedFileError(f"{path}:{number}: not an event: {reason}; {remedy}") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in PASSING:
            raise ArmillaryError(f"{path}: cannot be read now ({error.strerror}); make it readable") from error
        raise DamagedFileError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error


def recent_events(path: Path, size: int = 2**18) -> list[Event]:
    """The events in the last ``size`` bytes of a file, without lines that are not whole events; none without a file.

    A run reads them whenever it resumes, however long it has been training.
    """
    with contextlib.suppress(OSError), open(path, "rb") as file:
        begin = max(0, file.seek(0, os.SEEK_END) - size)
        file.seek(begin)
        lines = file.read().split(b"\n")
        found = []
        for line in lines[1 if begin else 0 :]:
            with contextlib.suppress(ValidationError):
                found.append(Event.model_validate_json(line))
        return found
    return []


def _is_newer(minor: object) -> bool:
    return isinstance(minor, int) and minor > MINOR


def event_files(run: Path) -> dict[int, Path]:
    """The files of a run's folder that hold events, by rank: ``events.jsonl`` and ``events-00001.jsonl`` and so on.

    Raises:
        UsageError: the folder holds none; the message names the right argument.
    """
    found = {0: run / "events.jsonl"} if (run / "events.jsonl").exists() else {}
    for path in sorted(run.glob("events-*.jsonl")):
        number = path.stem.removeprefix("events-")
        if number.isascii() and number.isdigit():
            found[int(number)] = path
    if not found:
        raise UsageError(f"{run}: has no events.jsonl; give the folder of a run, or a file of events")
    return found


def first_start_s(folder: Path) -> float | None:
    """The first start of the run in ``folder`` by its own events, in seconds since the Unix epoch.

    The earliest of all attempts counts: a study's worker, ranks started here, or a launcher. If the first lines of a
    file are lost, the earliest time in the rest counts. None: ``events.jsonl`` is missing or empty.

    Raises:
        ArmillaryError: as ``read_events``.
    """
    try:
        events = list(read_events(folder / "events.jsonl"))
    except FileNotFoundError:
        return None
    begun = [event.time_s for event in events if event.kind in ("start", "resume")]
    return min(begun or [event.time_s - (event.duration_s or 0.0) for event in events], default=None)

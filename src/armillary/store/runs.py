"""The runs of a store: requested by studies, started, ended and retried; a recorded result never changes."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from armillary.files import aside, sync
from armillary.goodput import first_start_s
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    ForeignFileError,
    RunResult,
    RunSpec,
    first_problem,
    lock,
    read_result,
)
from armillary.store import chain as journal
from armillary.store import schema
from armillary.store.base import Base, to_json
from armillary.store.facts import facts_of
from armillary.store.locks import in_use, is_locked

# The files of a finished run that others read; ``result.json`` is last, since it marks the run as done.
FILES = ("spec.json", "events.jsonl", "metrics.parquet", "model.safetensors", "result.json")


@dataclass(frozen=True)
class State:
    """The state of a run: ``status`` as in the table, the last ``error``, and the ``result`` as first recorded."""

    status: str
    error: str | None
    result: RunResult | None


class Runs(Base):
    """The runs of a store. ``_held`` are the open files whose locks show that this process is alive."""

    _owner: str | None = None
    _held: list[Any]

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        """One process at a time, since only one of two processes may create missing tables."""
        path = self.folder / ".lock"
        with contextlib.ExitStack() as closing:
            with self.database.translated():
                (self.folder / "runs").mkdir(parents=True, exist_ok=True)
                file = closing.enter_context(open(path, "a"))
                lock(file.fileno(), path, wait=True)
            yield

    def add(self, study: str, specs: Iterable[RunSpec]) -> None:
        """Record that ``study`` needs these runs; a known run keeps its state."""
        wanted = {spec.id: spec for spec in specs}
        with self.database.writing() as db:
            known = set(db.execute(sa.select(schema.runs.c.id)).scalars())
            paired = set(db.execute(sa.select(schema.study_runs.c.run).filter_by(study=study)).scalars())
            for run, spec in wanted.items():
                if run not in known:
                    row = {"id": run, "spec": spec.model_dump(mode="json"), "status": "pending", "attempts": 0}
                    row["parents"] = list(spec.parents) or None
                    db.execute(sa.insert(schema.runs).values(created_at=time.time(), **row))
                    db.execute(sa.insert(schema.run_facts).values(run=run, **facts_of(spec)))
                if run not in paired:
                    db.execute(sa.insert(schema.study_runs).values(study=study, run=run))

    def mark_running(self, run: str) -> None:
        """Record the start of an attempt at the run; ``started_at`` keeps the time of the first one.

        If a launcher has begun the run in its folder, its events give the time.
        """
        owner = self._claim()
        with self.database.writing() as db:
            row = db.execute(sa.select(schema.runs).filter_by(id=run)).first()
            if row is None or row.status == "done":
                return
            self._note_start(db, row, time.time())
            values = {"status": "running", "attempts": row.attempts + 1, "owner": owner, "folder": self._place}
            db.execute(sa.update(schema.runs).filter_by(id=run).values(**values))

    def _note_start(self, db: sa.Connection, row: Any, now: float | None) -> None:
        """Record the first start of a run, unless it is recorded: ``now``, or the earlier time in its events."""
        if row.started_at is not None:
            return
        events = None
        with contextlib.suppress(ArmillaryError, OSError):  # the trainer reports problems of the events
            events = first_start_s(self.run_folder(row.id))
        times = [value for value in (events, now) if value is not None]
        if times:
            begun = min(times)
            db.execute(sa.update(schema.runs).filter_by(id=row.id).values(started_at=begun))
            by = "store" if begun == now else "events"
            journal.append(db, "start", row.id, time.time(), started_at=begun, by=by)

    def mark_failed(self, run: str, status: str, error: str) -> None:
        """Record that a run ended without a result: ``failed``, ``refused``, ``diverged``, or ``pending`` (retry)."""
        values = {"status": status, "error": error, "finished_at": time.time()}
        with self.database.writing() as db:
            db.execute(sa.update(schema.runs).where(schema.runs.c.id == run, _OPEN).values(**values))

    def mark_done(self, result: RunResult) -> str | None:
        """Record the result of a run; an earlier result is never changed.

        Returns the difference if a run that was trained again gave other numbers than those recorded, else None.
        """
        content = to_json(asdict(result))
        with self.database.writing() as db:
            row = db.execute(sa.select(schema.runs).where(schema.runs.c.id == result.run, _OPEN)).first()
            if row is None:
                return None
            now = time.time()
            values: dict[str, Any] = {"status": "done", "error": None, "finished_at": now, "folder": self._place}
            if row.result is None:
                self._note_start(db, row, None)
                journal.append(db, "result", result.run, now, result=journal.digest(content))
                db.execute(sa.update(schema.runs).filter_by(id=result.run).values(**values, result=content))
                return None
            values["error"] = difference(result.run, row.result, content)
            journal.append(
                db, "repeated", result.run, now, result=journal.digest(content), same=values["error"] is None
            )
            db.execute(sa.update(schema.runs).filter_by(id=result.run).values(**values))
            return str(values["error"]) if values["error"] else None

    def state(self, run: str) -> State | None:
        """The state of a run, or None if it is unknown; reads the result from the folder if the database lacks it."""
        with self.database.reading() as db:
            row = db.execute(sa.select(schema.runs).filter_by(id=run)).first()
        if row is None:
            return None
        result = None if row.result is None else self._result_of(run, row.result)
        if row.status != "done":
            found = self._result_in_folder(run)
            if found is not None:
                self.mark_done(found)
                return self.state(run)
        return State(row.status, row.error, result)

    def result(self, run: str) -> RunResult | None:
        """The result of a run as first recorded, or None."""
        state = self.state(run)
        return self._result_in_folder(run) if state is None else state.result

    def _result_of(self, run: str, content: Any) -> RunResult:
        try:
            return RunResult(**{**content, "skipped": tuple(content.get("skipped", ()))})
        except TypeError as error:
            raise DamagedFileError(
                f"{self.database.name}: this version cannot read the result of run {run} ({error}); restore the "
                "database from a backup"
            ) from error

    def _result_in_folder(self, run: str) -> RunResult | None:
        with self.database.translated():
            return read_result(self.run_folder(run), run)

    def missing_files(self, run: str) -> bool:
        """Whether the run is done but its folder lacks its result, weights or metrics."""
        state = self.state(run)
        if state is None or state.result is None:
            return False
        return not all((self.run_folder(run) / name).is_file() for name in FILES)

    def reopen(self, run: str, reason: str = "its files are missing") -> None:
        """Make the files of a run available again, or allow a retry of a diverged run.

        If the run was written in another workspace with the same database, its files are copied from there. If that is
        not possible, the next call trains the run again; the recorded result stays and is compared with the new one
        (``mark_done``).

        Raises:
            ArmillaryError: the run is unknown, or another process is training it.
        """
        state = self.state(run)
        if state is None:
            raise ArmillaryError(f"run {run} is not in {self.database.name}; run its study again, which adds it")
        if state.result is not None and self.missing_files(run) and self._fetch(run, state.result):
            return
        own = self.run_folder(run) / "result.json"
        if in_use(own.parent):
            raise ArmillaryError(f"{own.parent}: another process is training this run; wait for it")
        with self.database.translated():
            if own.exists():  # otherwise the run would count as done
                own.replace(own.with_name("result.before.json"))
        with self.database.writing() as db:
            journal.append(db, "reopened", run, time.time(), reason=reason)
            db.execute(sa.update(schema.runs).filter_by(id=run).values(status="pending", error=reason))

    def _fetch(self, run: str, result: RunResult) -> bool:
        """Copy the missing files of a run from the store where it was last written; return whether all are present."""
        with self.database.reading() as db:
            place = db.execute(sa.select(schema.runs.c.folder).filter_by(id=run)).scalar()
        if place is None or place == self._place:
            return False
        there, here = Path(place) / "runs" / run, self.run_folder(run)
        try:
            if read_result(there, run) != result or not all((there / name).is_file() for name in FILES):
                return False
            with self.database.translated():
                here.mkdir(parents=True, exist_ok=True)
                for name in FILES:
                    if not (here / name).is_file():
                        hidden = aside(here / name)
                        try:
                            shutil.copyfile(there / name, hidden)
                            sync(hidden)
                            hidden.rename(here / name)
                        finally:
                            hidden.unlink(missing_ok=True)
                sync(here)
        except (DamagedFileError, ForeignFileError):  # the other folder is unusable, so the run is trained again
            return False
        return True

    def started_at(self, run: str) -> float | None:
        """The start of the first attempt at the run (seconds since the epoch), or None."""
        with self.database.reading() as db:
            return db.execute(sa.select(schema.runs.c.started_at).filter_by(id=run)).scalar()

    def study_runs(self, study: str) -> list[str]:
        """Ids of the runs that a study requested."""
        with self.database.reading() as db:
            return list(db.execute(sa.select(schema.study_runs.c.run).filter_by(study=study)).scalars())

    def _lives(self, row: Any) -> bool:
        """Whether a process trains the run of a row, or is about to; True if this machine cannot tell."""
        if row.folder is None:  # begun by a version that did not record the place
            return False
        there = Path(row.folder)
        if not there.is_dir():  # moved since then, or mounted elsewhere on that machine
            if not self.run_folder(row.id).is_dir():
                return True
            there = self.folder
        return in_use(there / "runs" / row.id) or is_locked(there / ".owners" / str(row.owner))

    def run_spec(self, run: str) -> RunSpec:
        """The specification of a run in the store.

        Raises:
            ArmillaryError: the run is not known.
        """
        return self._spec_of(run, self._known(run).spec)

    def _known(self, run: str) -> Any:
        """The row of a run; ArmillaryError if the run is unknown."""
        with self.database.reading() as db:
            row = db.execute(sa.select(schema.runs).filter_by(id=run)).first()
        if row is None:
            raise ArmillaryError(f"run {run} is not in {self.database.name}; `armillary runs` lists the runs")
        return row

    def _spec_of(self, run: str, content: Any) -> RunSpec:
        try:
            return RunSpec.model_validate(content)
        except ValidationError as error:
            raise DamagedFileError(
                f"{self.database.name}: this version cannot read the specification of run {run}: "
                f"{first_problem(error)}; restore it from a backup"
            ) from error

    def _claim(self) -> str:
        """The name under which this process starts runs: a file that it keeps locked while it lives."""
        if self._owner is None:
            folder, name = self.folder / ".owners", secrets.token_hex(8)
            with self._opening(), self.database.translated():
                folder.mkdir(exist_ok=True)
                for path in folder.iterdir():  # files of processes that have ended
                    if not is_locked(path):
                        path.unlink(missing_ok=True)
                file = open(folder / name, "w")  # noqa: SIM115 (closed by _close)
                lock(file.fileno(), folder / name, wait=False)
            self._held.append(file)
            self._owner = name
        return self._owner

    def _rows(self) -> list[Any]:
        with self.database.reading() as db:
            return list(db.execute(sa.select(schema.runs).order_by(schema.runs.c.created_at)).all())


# Without a result, or reopened to be trained again.
_OPEN = sa.or_(schema.runs.c.result.is_(None), schema.runs.c.status != "done")


def difference(run: str, recorded: dict[str, Any], found: dict[str, Any]) -> str | None:
    """The difference between two results of one run, apart from their durations, or None."""
    for name in sorted({*recorded, *found} - {"wall_s"}):
        # fields that an older version did not record are empty
        if (recorded.get(name) or None) != (found.get(name) or None):
            return (
                f"run {run}: {name} is {found.get(name)} in its folder, but {recorded.get(name)} was recorded first; "
                "the recorded result stays (another device or version of torch, or a changed file)"
            )
    return None

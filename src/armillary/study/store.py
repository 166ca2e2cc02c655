"""The run store: what was trained, for which study, with which result; predictions and verdicts (contracts 1 and 4).

A store is a folder and a database beside it. The folder ``runs/ID`` holds what a run wrote; its ``result.json`` is what
makes the run done. The database is the index over them, plus what lives nowhere else: which study asked for a run, the
result of each stage, predictions, verdicts, and the journal that proves their order (`chain`). SQLite in WAL mode by
default, any SQLAlchemy URL (PostgreSQL for a team) instead; `database` has the connection, `schema` the tables.

Trade-off: results are read from the database and taken from the folder where the database does not have them yet (a
kill between the two writes), so neither has to be trusted alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from armillary.files import aside, sync
from armillary.goodput import first_start_s
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    Edge,
    ForeignFileError,
    RunSpec,
    canonical_hash,
    first_problem,
    lock,
)
from armillary.study import chain as journal
from armillary.study import schema
from armillary.study.chain import Chain
from armillary.study.database import Database
from armillary.train import RunResult, read_result

# What others read of a finished run; ``result.json`` last, since it makes a run done.
EXAMINATION = "examination"  # the stage whose outcomes are the examinations of models
_FILES = ("spec.json", "events.jsonl", "metrics.parquet", "model.safetensors", "result.json")


@dataclass(frozen=True)
class State:
    """Where a run stands: ``status`` as in the table, ``error`` its last one, ``result`` as first recorded."""

    status: str
    error: str | None
    result: RunResult | None


@dataclass(frozen=True)
class Order:
    """What proves that a prediction came before its run: places in the journal (see `chain`).

    ``start`` is None while the run has not begun. ``by`` is ``store`` where the store recorded the start as it
    happened; ``events`` where the run was trained without the store (a launcher), which then took the start from the
    run's events; ``clock`` where the entries were taken over from a store without a journal.
    """

    prediction: int
    start: int | None
    by: str
    predicted_at: float
    started_at: float | None

    @property
    def holds(self) -> bool:
        """Whether the prediction came first: by the journal, and where the journal saw no start, by the clock too."""
        if self.start is None or self.started_at is None:
            return True
        return self.prediction < self.start and (self.by == "store" or self.predicted_at < self.started_at)


def verify_database(file: Path) -> list[str]:
    """All that is wrong with a store's SQLite file or a backup of one, a line each; it is left as it is.

    What is checked is a copy, so that opening it neither migrates the file nor writes a log beside it.

    Raises:
        DamagedFileError: it is torn, or not a database.
        ForeignFileError: it belongs to another program, or to a newer version.
    """
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "store.sqlite"
        try:
            for suffix in ("", "-wal"):
                if (part := file.with_name(file.name + suffix)).exists():
                    shutil.copyfile(part, copy.with_name(copy.name + suffix))
            store = Store(Path(place), f"sqlite:///{copy}")
            try:
                return [line.replace(str(copy), str(file)) for line in store.verify_records()]
            finally:
                store.close()
        except ArmillaryError as error:
            raise type(error)(str(error).replace(str(copy), str(file))) from error


class Store:
    """Opens, and where needed creates or migrates, the store in ``folder``.

    Raises:
        UsageError: ``url`` is no database that can be used here.
        DamagedFileError: the database is empty, torn, or not one.
        ForeignFileError: it belongs to another program, or to a newer version; it is left as it is.
        ArmillaryError: it cannot be reached or written, or the folder has no locks.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self._owner: str | None = None
        self.database = Database(url or f"sqlite:///{folder / 'store.sqlite'}")
        self.engine = self.database.engine
        try:
            with self._opening():
                self.database.open()
                self._begin_journal()
        except BaseException:
            self.engine.dispose()
            raise
        self._held: list[Any] = []
        # Without it a program that just ends would leave most of the store in SQLite's log.
        self._end = weakref.finalize(self, _close, self.database, self._held)

    def close(self) -> None:
        """Write everything into the database's file and let go of it; a later call opens it again."""
        _close(self.database, self._held)
        self._owner = None

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        """One process at a time: of two that find no tables only one can create them."""
        path = self.folder / ".lock"
        with contextlib.ExitStack() as closing:
            with self.database.translated():
                (self.folder / "runs").mkdir(parents=True, exist_ok=True)
                file = closing.enter_context(open(path, "a"))
                lock(file.fileno(), path, wait=True)
            yield

    def _begin_journal(self) -> None:
        """Begin the chain; in a store of format 1 with entries for all that was there, in the order of its clock."""
        with self.database.writing() as db:
            found = schema.version(db)
            if db.execute(sa.select(sa.func.count()).select_from(schema.journal)).scalar():
                if isinstance(found, int) and found < schema.FORMAT:  # its journal has no stages
                    for row in db.execute(sa.select(schema.stages).order_by(schema.stages.c.recorded_at)).all():
                        about = {"stage": row.name, "content": _stage_digest(row), "taken_over": True}
                        journal.append(db, "stage", row.key, time.time(), **about)
                    db.execute(sa.update(schema.form).values(version=schema.FORMAT))
                return
            if found == schema.FORMAT:  # new; or emptied by hand, and then nothing that is there fits the journal
                journal.append(db, "chain", "", time.time(), format=found)
                return
            old: list[tuple[float, str, str, dict[str, Any]]] = []
            for row in db.execute(sa.select(schema.predictions)):
                old.append((row.recorded_at, "prediction", row.run, {"content": journal.digest(row.content)}))
            results = {}
            for row in db.execute(sa.select(schema.runs)):
                if row.started_at is not None:
                    old.append((row.started_at, "start", row.id, {"started_at": row.started_at, "by": "clock"}))
                if row.result is not None:
                    results[row.id] = journal.digest(row.result)
                    old.append((row.finished_at or 0.0, "result", row.id, {"result": results[row.id]}))
            for row in db.execute(sa.select(schema.verdicts)):
                about = {"content": journal.digest(row.content), "result": results.get(row.run)}
                old.append((row.recorded_at, "verdict", row.run, about))
            for row in db.execute(sa.select(schema.stages)):
                about = {"stage": row.name, "content": _stage_digest(row)}
                old.append((row.recorded_at, "stage", row.key, about))
            journal.append(db, "chain", "", time.time(), format=found, taken_over=len(old))
            for recorded_at, kind, run, about in sorted(old, key=lambda entry: entry[0]):
                journal.append(db, kind, run, recorded_at, **about, taken_over=True)
            db.execute(sa.delete(schema.rates))  # of any optimizer
            db.execute(sa.update(schema.form).values(version=schema.FORMAT))

    def run_folder(self, run: str) -> Path:
        """Where the run of that id keeps its files."""
        return self.folder / "runs" / run

    def add(self, study: str, specs: Iterable[RunSpec]) -> None:
        """Say that ``study`` needs these runs; a run that is already known keeps its state."""
        wanted = {spec.id: spec for spec in specs}
        with self.database.writing() as db:
            known = set(db.execute(sa.select(schema.runs.c.id)).scalars())
            paired = set(db.execute(sa.select(schema.study_runs.c.run).filter_by(study=study)).scalars())
            for run, spec in wanted.items():
                if run not in known:
                    row = {"id": run, "spec": spec.model_dump(mode="json"), "status": "pending", "attempts": 0}
                    row["parents"] = list(spec.parents) or None
                    db.execute(sa.insert(schema.runs).values(created_at=time.time(), **row))
                if run not in paired:
                    db.execute(sa.insert(schema.study_runs).values(study=study, run=run))

    def mark_running(self, run: str) -> None:
        """One more attempt at the run begins now; ``started_at`` keeps the time of the first.

        A run that a launcher has begun in its folder started when its events say so.
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
        """Record the first start of a run, unless it is recorded: ``now``, or earlier if its events say so."""
        if row.started_at is not None:
            return
        events = None
        with contextlib.suppress(ArmillaryError, OSError):  # the trainer reports what is wrong with its events
            events = first_start_s(self.run_folder(row.id))
        times = [value for value in (events, now) if value is not None]
        if times:
            begun = min(times)
            db.execute(sa.update(schema.runs).filter_by(id=row.id).values(started_at=begun))
            by = "store" if begun == now else "events"
            journal.append(db, "start", row.id, time.time(), started_at=begun, by=by)

    def mark_failed(self, run: str, status: str, error: str) -> None:
        """The run ended without a result: ``failed``, ``refused`` or ``diverged``, or ``pending`` to be tried again."""
        values = {"status": status, "error": error, "finished_at": time.time()}
        with self.database.writing() as db:
            db.execute(sa.update(schema.runs).where(schema.runs.c.id == run, _OPEN).values(**values))

    def mark_done(self, result: RunResult) -> str | None:
        """The run has its result; a result that is there is never changed.

        Returns what differs where a run that was trained again gave other numbers than those recorded, else None.
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
            values["error"] = _difference(result.run, row.result, content)
            journal.append(
                db, "repeated", result.run, now, result=journal.digest(content), same=values["error"] is None
            )
            db.execute(sa.update(schema.runs).filter_by(id=result.run).values(**values))
            return str(values["error"]) if values["error"] else None

    def state(self, run: str) -> State | None:
        """Where a run stands, or None if it is not known; a result that only its folder has is taken from there."""
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
        """The result of a run as it was first recorded, or None while it has none."""
        state = self.state(run)
        return self._result_in_folder(run) if state is None else state.result

    def _result_of(self, run: str, content: Any) -> RunResult:
        try:
            return RunResult(**content)
        except TypeError as error:
            raise DamagedFileError(
                f"{self.database.name}: the result of run {run} is not one of this version ({error}); put a backup in "
                "its place"
            ) from error

    def _result_in_folder(self, run: str) -> RunResult | None:
        with self.database.translated():
            return read_result(self.run_folder(run), run)

    def missing_files(self, run: str) -> bool:
        """Whether the run is done and its folder lacks what others read of it: result, weights or metrics."""
        state = self.state(run)
        if state is None or state.result is None:
            return False
        return not all((self.run_folder(run) / name).is_file() for name in _FILES)

    def reopen(self, run: str, reason: str = "its files are missing") -> None:
        """Make the files of a run available again, or have one that diverged tried again.

        Files that lie in the folder the run was written in (another workspace with the same database) are copied from
        there. Where that is not possible the next call trains the run again; its recorded result stays and is compared
        with the new one (``mark_done``).

        Raises:
            ArmillaryError: the run is not known, or another process trains it.
        """
        state = self.state(run)
        if state is None:
            raise ArmillaryError(f"run {run} is not in {self.database.name}; its study adds it when it is given again")
        if state.result is not None and self.missing_files(run) and self._fetch(run, state.result):
            return
        own = self.run_folder(run) / "result.json"
        if in_use(own.parent):
            raise ArmillaryError(f"{own.parent}: another process trains this run; wait for it")
        with self.database.translated():
            if own.exists():  # it would make the run done
                own.replace(own.with_name("result.before.json"))
        with self.database.writing() as db:
            journal.append(db, "reopened", run, time.time(), reason=reason)
            db.execute(sa.update(schema.runs).filter_by(id=run).values(status="pending", error=reason))

    def _fetch(self, run: str, result: RunResult) -> bool:
        """Copy the missing files of a run from the store that it was last written in; whether all are here now."""
        with self.database.reading() as db:
            place = db.execute(sa.select(schema.runs.c.folder).filter_by(id=run)).scalar()
        if place is None or place == self._place:
            return False
        there, here = Path(place) / "runs" / run, self.run_folder(run)
        try:
            if read_result(there, run) != result or not all((there / name).is_file() for name in _FILES):
                return False
            with self.database.translated():
                here.mkdir(parents=True, exist_ok=True)
                for name in _FILES:
                    if not (here / name).is_file():
                        hidden = aside(here / name)
                        try:
                            shutil.copyfile(there / name, hidden)
                            sync(hidden)
                            hidden.rename(here / name)
                        finally:
                            hidden.unlink(missing_ok=True)
                sync(here)
        except (DamagedFileError, ForeignFileError):  # what lies there cannot be used; the run is trained again
            return False
        return True

    @property
    def _place(self) -> str:
        return str(self.folder.absolute())

    def started_at(self, run: str) -> float | None:
        """When the first attempt at the run began (seconds since the epoch), or None."""
        with self.database.reading() as db:
            return db.execute(sa.select(schema.runs.c.started_at).filter_by(id=run)).scalar()

    def study_runs(self, study: str) -> list[str]:
        """Ids of the runs that a study asked for."""
        with self.database.reading() as db:
            return list(db.execute(sa.select(schema.study_runs.c.run).filter_by(study=study)).scalars())

    def overview(self) -> list[dict[str, Any]]:
        """A row per run and study: run, study, status, attempts, parameters, tokens, examined and error.

        ``status`` is that of the table, with ``interrupted`` for a run that was begun and that no process trains.
        ``examined`` is a text with the scores of the run's model, the last of each task; None without examination.
        """
        examined = self.examinations()
        query = sa.select(schema.runs, schema.study_runs.c.study).join(schema.study_runs)
        with self.database.reading() as db:
            found = db.execute(query.order_by(schema.runs.c.created_at)).all()
        rows = []
        for row in found:
            spec = self._spec_of(row.id, row.spec)
            rows.append(
                {
                    "run": row.id,
                    "study": row.study,
                    "status": "interrupted" if row.status == "running" and not self._lives(row) else row.status,
                    "attempts": row.attempts,
                    "parameters": spec.model.parameters,
                    "tokens": spec.tokens,
                    "examined": _scores(examined.get(row.id, [])),
                    "error": row.error,
                }
            )
        return rows

    def _lives(self, row: Any) -> bool:
        """Whether a process trains the run of a row, or is about to; True where that cannot be seen from here."""
        if row.folder is None:  # begun by a version that did not say where
            return False
        there = Path(row.folder)
        if not there.is_dir():  # moved since, or mounted elsewhere on that machine
            if not self.run_folder(row.id).is_dir():
                return True
            there = self.folder
        return in_use(there / "runs" / row.id) or _is_locked(there / ".owners" / str(row.owner))

    def run_spec(self, run: str) -> RunSpec:
        """The specification of a known run.

        Raises:
            ArmillaryError: the run is not known.
        """
        return self._spec_of(run, self._known(run).spec)

    def parents(self, run: str) -> list[str]:
        """Ids of the runs whose weights a known run starts from.

        Raises:
            ArmillaryError: the run is not known.
        """
        return self._parents_of(run, self._known(run).parents)

    def edges(self, runs: Iterable[str]) -> list[Edge]:
        """The lineage of ``runs`` as far as the store has it: an edge for each thing that made another one.

        A run leads to the runs and weights that it starts from, its corpus, its predictions and its examinations, and
        a prediction to the runs that argued for it. A run that is not in the store is a node without edges.
        """
        examined = self.examinations()
        with self.database.reading() as db:
            rows = db.execute(sa.select(schema.runs.c.id, schema.runs.c.spec, schema.runs.c.parents)).all()
            contents = db.execute(sa.select(schema.predictions.c.run, schema.predictions.c.content)).all()
        known = {row.id: row for row in rows}
        predicted: dict[str, list[tuple[str, list[str]]]] = {}
        for key, content in contents:
            if isinstance(content, dict):  # else it is damaged, which `chain` reports
                about = (key, content.get("from_runs", []))
                predicted.setdefault(content.get("run", key), []).append(about)
        edges: list[Edge] = []
        waiting, seen = list(runs), set()
        while waiting:
            run = waiting.pop(0)
            if run in seen:
                continue
            seen.add(run)
            if run in known:
                spec, parents = self._spec_of(run, known[run].spec), self._parents_of(run, known[run].parents)
                edges += [Edge(f"run:{run}", "starts from", f"run:{parent}") for parent in parents]
                if spec.start is not None and not parents:
                    edges.append(Edge(f"run:{run}", "starts from", f"weights:{spec.start.sha256}"))
                edges.append(Edge(f"run:{run}", "trained on", f"corpus:{spec.corpus}"))
                waiting += parents
            edges += [Edge(f"run:{run}", "examined by", f"examination:{key}") for key, _ in examined.get(run, ())]
            for key, argued in predicted.get(run, ()):
                edges.append(Edge(f"run:{run}", "predicted by", f"prediction:{key}"))
                edges += [Edge(f"prediction:{key}", "argued by", f"run:{other}") for other in argued]
                waiting += argued
        return edges

    def _parents_of(self, run: str, content: Any) -> list[str]:
        if content is not None and not (isinstance(content, list) and all(isinstance(one, str) for one in content)):
            raise DamagedFileError(
                f"{self.database.name}: the parents of run {run} are not a list of ids; put a backup in its place"
            )
        return content or []

    def _known(self, run: str) -> Any:
        """The row of a run; an ArmillaryError where there is none."""
        with self.database.reading() as db:
            row = db.execute(sa.select(schema.runs).filter_by(id=run)).first()
        if row is None:
            raise ArmillaryError(f"run {run} is not in {self.database.name}; armillary runs lists those that are")
        return row

    def _spec_of(self, run: str, content: Any) -> RunSpec:
        try:
            return RunSpec.model_validate(content)
        except ValidationError as error:
            raise DamagedFileError(
                f"{self.database.name}: the specification of run {run} is not one of this version: "
                f"{first_problem(error)}; put a backup in its place"
            ) from error

    def _claim(self) -> str:
        """The name under which this process begins runs: a file that it holds locked for as long as it lives."""
        if self._owner is None:
            folder, name = self.folder / ".owners", secrets.token_hex(8)
            with self._opening(), self.database.translated():
                folder.mkdir(exist_ok=True)
                for path in folder.iterdir():  # those whose process has ended
                    if not _is_locked(path):
                        path.unlink(missing_ok=True)
                file = open(folder / name, "w")  # noqa: SIM115 (closed by _close)
                lock(file.fileno(), folder / name, wait=False)
            self._held.append(file)
            self._owner = name
        return self._owner

    def stage(self, name: str, key: str) -> Any | None:
        """What the stage of that name found for inputs that hash to ``key``, or None.

        Raises:
            DamagedFileError: it is not what was recorded.
        """
        with self.database.reading() as db:
            row = db.execute(sa.select(schema.stages).filter_by(name=name, key=key)).first()
            entries = journal.read(db, key)
        if row is None:
            return None
        problem = _stage_problem(name, key, row, entries)
        if problem is not None:
            raise DamagedFileError(f"{self.database.name}: {problem}; put a backup of the store in its place")
        return row.content

    def examinations(self) -> dict[str, list[tuple[str, dict[str, Any]]]]:
        """Key and row of each examination (``study.examined``), oldest first, by the run whose model was examined.

        Examinations of models without a run are under the empty name.
        """
        query = sa.select(schema.stages.c.key, schema.stages.c.content).filter_by(name=EXAMINATION)
        with self.database.reading() as db:
            found = db.execute(query.order_by(schema.stages.c.recorded_at)).all()
        by_run: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for key, content in found:
            if isinstance(content, dict):  # else it is damaged, which `chain` reports
                by_run.setdefault(str(content.get("run") or ""), []).append((key, content))
        return by_run

    def record_stage(self, name: str, key: str, content: Any) -> None:
        """Keep what a stage found; a second result for the same inputs is not taken."""
        with self.database.writing() as db:
            if db.execute(sa.select(schema.stages.c.key).filter_by(name=name, key=key)).first() is None:
                now = time.time()
                values = {"name": name, "key": key, "recorded_at": now, "content": content}
                db.execute(sa.insert(schema.stages).values(**values))
                row = db.execute(sa.select(schema.stages).filter_by(name=name, key=key)).one()
                journal.append(db, "stage", key, now, stage=name, content=_stage_digest(row))
        self.flush()

    def rates(self, **where: str | int) -> list[dict[str, Any]]:
        """Rates that were measured, those whose columns have the given values: a row of the table each.

        ``machine`` and ``shape`` are hashes of what stands in ``about``; ``how`` is ``probe`` or ``runs``;
        ``tokens_per_s`` is that of all workers together, ``seconds`` how long it was measured.
        """
        query = sa.select(schema.rates).filter_by(**where).order_by(schema.rates.c.recorded_at)
        with self.database.reading() as db:
            return [dict(row) for row in db.execute(query).mappings()]

    def rates_overview(self) -> list[dict[str, Any]]:
        """Rates as a person reads them: device, workers, the model's layers and width, tokens per second, when."""
        return [
            {
                "device": row["about"]["machine"]["device"],
                "workers": row["about"]["machine"]["workers"],
                "layers": row["about"]["model"]["n_layers"],
                "d_model": row["about"]["model"]["d_model"],
                "optimizer": row["about"].get("work", {}).get("optimizer", "adamw"),
                **{name: row[name] for name in ("context_length", "batch_sequences", "precision", "how")},
                "tokens_per_s": row["tokens_per_s"],
                "seconds": row["seconds"],
                "recorded_at": iso_time(row["recorded_at"]),
            }
            for row in self.rates()
        ]

    def record_rate(self, key: dict[str, str | int], **values: Any) -> None:
        """Keep a rate in place of the one that was known for ``key`` (machine to how)."""
        with self.database.writing() as db:
            if not db.execute(sa.update(schema.rates).filter_by(**key).values(**values)).rowcount:
                db.execute(sa.insert(schema.rates).values(**key, **values))

    def record_prediction(self, run: str, content: dict[str, Any]) -> None:
        """Write down what ``run`` will reach, before it exists (contract 4).

        Raises:
            ArmillaryError: the run has begun, or a prediction of it is there and says something else.
        """
        known = self.prediction(run)
        if known is None:
            with self.database.writing() as db:
                if db.execute(sa.select(schema.predictions.c.run).filter_by(run=run)).first() is None:
                    row = db.execute(sa.select(schema.runs).filter_by(id=run)).first()
                    begun = row is not None and (row.started_at is not None or row.result is not None)
                    begun = begun or any(entry.kind == "start" and entry.run == run for entry in journal.read(db))
                    if begun or (self.run_folder(run) / "spec.json").exists():
                        raise ArmillaryError(
                            f"{self.run_folder(run)}: the run has already begun, and {self.database.name} holds no "
                            "prediction of it; a prediction can only be made before its run: put a backup of the "
                            "database in its place, or move the run's folder away to predict and train it again"
                        )
                    now = time.time()
                    values = {"run": run, "sha256": canonical_hash(content), "content": content, "recorded_at": now}
                    db.execute(sa.insert(schema.predictions).values(**values))
                    journal.append(db, "prediction", run, now, content=journal.digest(content))
            known = self.prediction(run)
            assert known is not None
        if known["sha256"] != canonical_hash(content):
            raise ArmillaryError(f"run {run} has a prediction of {known['recorded_at']}; it is never rewritten")

    def prediction(self, run: str) -> dict[str, Any] | None:
        """The content of the prediction of ``run`` with ``recorded_at`` (ISO 8601) and ``sha256``, or None.

        Raises:
            ArmillaryError: the content, its time or its place in the journal is no longer what was recorded.
        """
        with self.database.reading() as db:
            row = db.execute(sa.select(schema.predictions).filter_by(run=run)).first()
            entries = journal.read(db)
        problem = _prediction_problem(run, row, entries)
        if problem is not None:
            raise ArmillaryError(f"{problem}; it cannot be judged")
        if row is None:
            return None
        return {**row.content, "recorded_at": iso_time(row.recorded_at), "sha256": row.sha256}

    def record_verdict(self, run: str, content: dict[str, Any]) -> None:
        """Append the outcome to a prediction; the first verdict stays.

        ``content`` names under ``run`` the run that was judged, where ``run`` is the id of another question about it.
        The journal holds the hash of that run's result.

        Raises:
            ArmillaryError: there is no prediction of this run.
        """
        if self.prediction(run) is None:
            raise ArmillaryError(f"run {run} has no prediction, so there is nothing to judge")
        with self.database.writing() as db:
            if db.execute(sa.select(schema.verdicts.c.run).filter_by(run=run)).first() is None:
                now = time.time()
                of = content.get("run", run)
                result = db.execute(sa.select(schema.runs.c.result).filter_by(id=of)).scalar()
                db.execute(sa.insert(schema.verdicts).values(run=run, recorded_at=now, content=content))
                about = {
                    "content": journal.digest(to_json(content)),
                    "result": None if result is None else journal.digest(result),
                    **({} if of == run else {"of": of}),
                }
                journal.append(db, "verdict", run, now, **about)

    def verdict(self, run: str) -> dict[str, Any] | None:
        """The verdict on the prediction of ``run`` with ``recorded_at``, or None.

        Raises:
            ArmillaryError: the verdict, or the result that it judges, is no longer what was recorded.
        """
        with self.database.reading() as db:
            row = db.execute(sa.select(schema.verdicts).filter_by(run=run)).first()
            entries = journal.read(db)
            entry = next((entry for entry in entries if (entry.kind, entry.run) == ("verdict", run)), None)
            judged = run if entry is None else entry.about.get("of", run)
            results = {judged: db.execute(sa.select(schema.runs.c.result).filter_by(id=judged)).scalar()}
        problem = _verdict_problem(run, row, results, entries)
        if problem is not None:
            raise ArmillaryError(f"{problem}; put a backup of the store in its place")
        return None if row is None else {**row.content, "recorded_at": iso_time(row.recorded_at)}

    def chain(self) -> Chain:
        """The journal, and what of the store no longer fits it: the evidence for the order of what was recorded."""
        with self.database.reading() as db:
            entries = journal.read(db)
            predictions = {row.run: row for row in db.execute(sa.select(schema.predictions))}
            verdicts = {row.run: row for row in db.execute(sa.select(schema.verdicts))}
            runs = {row.id: row for row in db.execute(sa.select(schema.runs))}
            stages = {(row.name, row.key): row for row in db.execute(sa.select(schema.stages))}
        problems = journal.broken(entries)
        recorded_stages = {(str(entry.about.get("stage")), entry.run) for entry in entries if entry.kind == "stage"}
        for name, key in sorted(set(stages) | recorded_stages):
            problems.append(_stage_problem(name, key, stages.get((name, key)), entries) or "")
        results = {run: row.result for run, row in runs.items()}
        named = {kind: {entry.run for entry in entries if entry.kind == kind} for kind in ("prediction", "verdict")}
        for run in sorted(set(predictions) | named["prediction"]):
            problems.append(_prediction_problem(run, predictions.get(run), entries) or "")
        for run in sorted(set(verdicts) | named["verdict"]):
            problems.append(_verdict_problem(run, verdicts.get(run), results, entries) or "")
        started = {entry.run: entry for entry in reversed(entries) if entry.kind == "start"}
        recorded = {entry.run: entry for entry in reversed(entries) if entry.kind == "result"}
        for run, row in runs.items():
            start, result = started.get(run), recorded.get(run)
            if row.started_at != (start.about.get("started_at") if start is not None else None):
                problems.append(f"run {run}: its start is not the one that was recorded")
            if row.result is not None and (result is None or journal.digest(row.result) != result.about.get("result")):
                problems.append(f"run {run}: its result was changed after it was recorded")
        for run in sorted((set(started) | set(recorded)) - set(runs)):
            problems.append(f"run {run}: it was removed after it was recorded")
        for run in recorded:
            if run in runs and runs[run].result is None:
                problems.append(f"run {run}: its result was removed after it was recorded")
        return Chain(entries, tuple(filter(None, problems)), tuple(journal.set_back(entries)))

    def order(self, run: str) -> Order | None:
        """What proves that the prediction of ``run`` came before the run; None where there is no prediction."""
        with self.database.reading() as db:
            entries = journal.read(db)
        first = {(entry.kind, entry.run): entry for entry in reversed(entries)}
        said, start = first.get(("prediction", run)), first.get(("start", run))
        if said is None:
            return None
        by = "store" if start is None else str(start.about.get("by"))
        at = None if start is None else start.about.get("started_at")
        return Order(said.seq, start.seq if start else None, by, said.recorded_at, at)

    def verify(self) -> list[str]:
        """All that is wrong with the store, a line each: what ``verify_records`` finds, and the folders of done runs.

        A line on a file begins with its path.
        """
        problems = self.verify_records()
        for row in self._rows():
            if row.result is None:
                continue
            folder = self.run_folder(row.id)
            if not folder.is_dir():
                problems.append(f"{folder}: is missing, and run {row.id} is done")
                continue
            try:
                recorded = self._result_of(row.id, row.result)
                lacking = [folder / name for name in _FILES if not (folder / name).is_file()]
                problems += [f"{file}: is missing, and run {row.id} is done" for file in lacking]
                found = self._result_in_folder(row.id)
                differs = None if found is None else _difference(row.id, asdict(recorded), asdict(found))
                if differs is not None:
                    problems.append(f"{folder / 'result.json'}: {differs}")
            except ArmillaryError as error:
                problems.append(str(error))
        return problems

    def verify_records(self) -> list[str]:
        """All that is wrong with the database and the journal, a line each; run folders are not looked at."""
        problems = [*self.database.problems(), *self.chain().problems]
        for row in self._rows():
            try:
                spec = self._spec_of(row.id, row.spec)
            except ArmillaryError as error:
                problems.append(str(error))
                continue
            if spec.id != row.id:
                problems.append(f"run {row.id}: its specification was changed: it is that of another run")
            if (row.parents or []) != list(spec.parents):
                problems.append(f"run {row.id}: its parents are not those of its specification: they were changed")
        return problems

    def _rows(self) -> list[Any]:
        with self.database.reading() as db:
            return list(db.execute(sa.select(schema.runs).order_by(schema.runs.c.created_at)).all())

    def flush(self) -> None:
        """Move what SQLite keeps in its log into ``store.sqlite``, so that the file alone is the whole database."""
        self.database.flush()

    def backup(self, path: Path) -> None:
        """Write a checked copy of the database to the new file ``path``; run folders are not part of it.

        Raises:
            UsageError: ``path`` exists, or the database is on a server.
            ArmillaryError: the copy could not be written, or is not sound.
        """
        self.database.backup(path)


# Without a result, or reopened to be trained again.
_OPEN = sa.or_(schema.runs.c.result.is_(None), schema.runs.c.status != "done")


def _scores(examinations: list[tuple[str, dict[str, Any]]]) -> str | None:
    """Task, metric and value of each whole task, the last examination's."""
    results = [result for _, row in examinations for result in row.get("results", ())]
    values = {f"{one['task']} {one['metric']}": one["value"] for one in results if one["subset"] == one["task"]}
    return "; ".join(f"{name} {value:.3f}" for name, value in values.items()) or None


def _close(database: Database, held: list[Any]) -> None:
    for file in held:
        with contextlib.suppress(OSError):
            Path(file.name).unlink()
            file.close()
    held.clear()
    database.close()


def _prediction_problem(run: str, row: Any, entries: Sequence[journal.Entry]) -> str | None:
    entry = next((entry for entry in entries if (entry.kind, entry.run) == ("prediction", run)), None)
    if row is None:
        return None if entry is None else f"the prediction of run {run} was removed after it was recorded"
    if entry is None or entry.sha256 != entry.right:
        return f"the prediction of run {run} is not the one in the journal: it was changed after it was recorded"
    same = canonical_hash(row.content) == row.sha256 and journal.digest(row.content) == entry.about.get("content")
    if not same or row.recorded_at != entry.recorded_at:
        return f"the prediction of run {run} was changed after it was recorded"
    return None


def _stage_problem(name: str, key: str, row: Any, entries: Sequence[journal.Entry]) -> str | None:
    mine = [e for e in entries if (e.kind, e.run, e.about.get("stage")) == ("stage", key, name)]
    if row is None:
        return f"the outcome {key} of stage {name} was removed after it was recorded" if mine else None
    # The last entry counts: an outcome that was removed has been found again.
    if not mine or mine[-1].sha256 != mine[-1].right:
        return f"the outcome {key} of stage {name} is not the one in the journal: it was changed after it was recorded"
    if _stage_digest(row) != mine[-1].about.get("content"):
        return f"the outcome {key} of stage {name} was changed after it was recorded"
    return None


def _stage_digest(row: Any) -> str:
    return journal.digest([row.recorded_at, row.content])


def _verdict_problem(run: str, row: Any, results: Mapping[str, Any], entries: Sequence[journal.Entry]) -> str | None:
    entry = next((entry for entry in entries if (entry.kind, entry.run) == ("verdict", run)), None)
    if row is None:
        return None if entry is None else f"the verdict on run {run} was removed after it was recorded"
    if entry is None or entry.sha256 != entry.right:
        return f"the verdict on run {run} is not the one in the journal: it was changed after it was recorded"
    if journal.digest(row.content) != entry.about.get("content") or row.recorded_at != entry.recorded_at:
        return f"the verdict on run {run} was changed after it was recorded"
    # Stores of older versions do not name the run that a verdict on a second question judges, nor its result.
    judged = str(entry.about.get("of", run))
    if entry.about.get("result") is None and any(
        e.kind == "result" and e.run == judged and e.seq > entry.seq for e in entries
    ):
        return None  # it diverged, was judged so, and has got a result since
    result = results.get(judged)
    if (None if result is None else journal.digest(result)) != entry.about.get("result"):
        return f"the result of run {judged} is not the one that its verdict judges: it was changed afterwards"
    return None


def _difference(run: str, recorded: dict[str, Any], found: dict[str, Any]) -> str | None:
    """What of two results of one run differs, apart from the time they took; None where nothing does."""
    for name in sorted({*recorded, *found} - {"wall_s"}):
        if recorded.get(name) != found.get(name):
            return (
                f"run {run}: {name} is {found.get(name)} in its folder, and {recorded.get(name)} was recorded first; "
                "the recorded result stays (another device or version of torch, or a changed file)"
            )
    return None


def in_use(folder: Path) -> bool:
    """Whether a process trains in the run's folder."""
    return _is_locked(folder / ".lock")


def _is_locked(path: Path) -> bool:
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no file, or none that may be looked at
        return False
    return False


def iso_time(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def to_json(value: Any) -> Any:
    """``value`` as it comes back from the database, so that what is used is what is stored."""
    return json.loads(json.dumps(value, allow_nan=False))

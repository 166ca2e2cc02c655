"""The run store: what was trained, for which study, with which result; predictions and verdicts (contracts 1 and 4).

A store is a folder and a database beside it. The folder ``runs/ID`` holds what a run wrote; its ``result.json`` is what
makes the run done. The database is the index over them, plus the few things that live nowhere else: which study asked
for a run, the result of each stage, predictions and verdicts. SQLite in WAL mode by default, any SQLAlchemy URL
(PostgreSQL for a team) instead.

Trade-off: results are read from the database and taken from the folder where the database does not have them yet (a
kill between the two writes), so neither has to be trusted alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from armillary.recipe import ArmillaryError, RunSpec, UsageError, canonical_hash
from armillary.train import RunResult, read_result

FORMAT = 1

_schema = sa.MetaData()

_format = sa.Table("format", _schema, sa.Column("version", sa.Integer, primary_key=True))

_runs = sa.Table(
    "runs",
    _schema,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),  # pending, running, done, failed, refused, diverged
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("error", sa.Text),
    sa.Column("result", sa.JSON),
)

_study_runs = sa.Table(
    "study_runs",
    _schema,
    sa.Column("study", sa.String(64), primary_key=True),
    sa.Column("run", sa.String(16), sa.ForeignKey("runs.id"), primary_key=True),
)

_stages = sa.Table(
    "stages",
    _schema,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(16), primary_key=True),
    sa.Column("recorded_at", sa.Float, nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
)

_predictions = sa.Table(
    "predictions",
    _schema,
    sa.Column("run", sa.String(16), primary_key=True),
    sa.Column("recorded_at", sa.Float, nullable=False),
    sa.Column("sha256", sa.String(16), nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
)

_verdicts = sa.Table(
    "verdicts",
    _schema,
    sa.Column("run", sa.String(16), sa.ForeignKey("predictions.run"), primary_key=True),
    sa.Column("recorded_at", sa.Float, nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
)

# Added to format 1 later: it is created on opening, and versions that do not know it leave it alone.
_rates = sa.Table(
    "rates",
    _schema,
    sa.Column("machine", sa.String(16), primary_key=True),
    sa.Column("shape", sa.String(16), primary_key=True),
    sa.Column("context_length", sa.Integer, primary_key=True),
    sa.Column("batch_sequences", sa.Integer, primary_key=True),
    sa.Column("precision", sa.String(8), primary_key=True),
    sa.Column("how", sa.String(8), primary_key=True),  # probe, runs
    sa.Column("tokens_per_s", sa.Float, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("recorded_at", sa.Float, nullable=False),
    sa.Column("about", sa.JSON, nullable=False),
)

# What was predicted stays as it was written (contract 4): the database itself refuses to change it. In SQLite INSERT is
# watched too, because INSERT OR REPLACE deletes without asking the trigger for deletion.
_REFUSE = {
    "sqlite": [
        f"CREATE TRIGGER %(table)s_{verb} BEFORE {verb} ON %(table)s {condition} "
        "BEGIN SELECT RAISE(ABORT, '%(table)s are never rewritten'); END"
        for verb, condition in (
            ("UPDATE", ""),
            ("DELETE", ""),
            ("INSERT", "WHEN EXISTS (SELECT 1 FROM %(table)s WHERE run = NEW.run)"),
        )
    ],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION %(table)s_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '%(table)s are never rewritten'; END $$",
        "CREATE TRIGGER %(table)s_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON %(table)s "
        "EXECUTE FUNCTION %(table)s_refuse()",
    ],
}
for _table in (_predictions, _verdicts):
    for _dialect, _statements in _REFUSE.items():
        for _statement in _statements:
            _rule = sa.DDL(_statement)  # type: ignore[no-untyped-call]
            sa.event.listen(_table, "after_create", _rule.execute_if(dialect=_dialect))

_LOCK = 0x61726D69  # any number that nobody else takes for a lock in this database


class Store:
    """Opens, and where needed creates, the store in ``folder``.

    Raises:
        UsageError: ``url`` is no database that can be used here.
        ArmillaryError: the database is of another format, or cannot be reached.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        try:
            # A study may be silent for hours, and its server may have been restarted meanwhile.
            self.engine = sa.create_engine(url or f"sqlite:///{folder / 'store.sqlite'}", pool_pre_ping=True)
        except (sa.exc.ArgumentError, ImportError) as error:
            raise UsageError(
                f"database: {error}; give an SQLAlchemy URL such as postgresql+psycopg://USER@HOST/NAME, and install "
                "the driver that it names"
            ) from error
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _sqlite_pragmas)
        try:
            # One process at a time: of two that find no tables only one can create them.
            with open(folder / ".lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._open()
        except sa.exc.SQLAlchemyError as error:
            raise ArmillaryError(f"{self.engine.url}: the store's database cannot be used: {error}") from error

    def _open(self) -> None:
        with self.engine.begin() as db:
            _one_at_a_time(db)  # others may come from folders of their own
            _format.create(db, checkfirst=True)
            version = db.execute(sa.select(_format.c.version)).scalar()
            if version not in (None, FORMAT):
                raise ArmillaryError(f"{self.engine.url}: store format {version}; this version reads {FORMAT}")
            _schema.create_all(db)
            if version is None:
                db.execute(sa.insert(_format).values(version=FORMAT))

    def run_folder(self, run: str) -> Path:
        """Where the run of that id keeps its files."""
        return self.folder / "runs" / run

    def add(self, study: str, specs: Iterable[RunSpec]) -> None:
        """Say that ``study`` needs these runs; a run that is already known keeps its state."""
        wanted = {spec.id: spec for spec in specs}
        try:
            with self.engine.begin() as db:
                _one_at_a_time(db)  # two that insert the same runs in another order would wait for each other
                known = set(db.execute(sa.select(_runs.c.id)).scalars())
                paired = set(db.execute(sa.select(_study_runs.c.run).filter_by(study=study)).scalars())
                for run, spec in wanted.items():
                    if run not in known:
                        row = {"id": run, "spec": spec.model_dump(mode="json"), "status": "pending", "attempts": 0}
                        db.execute(sa.insert(_runs).values(created_at=time.time(), **row))
                    if run not in paired:
                        db.execute(sa.insert(_study_runs).values(study=study, run=run))
        except sa.exc.IntegrityError:
            self.add(study, wanted.values())  # another process has added one of them since we looked

    def mark_running(self, run: str) -> None:
        """One more attempt at the run begins now; ``started_at`` keeps the time of the first."""
        with self.engine.begin() as db:
            started = sa.func.coalesce(_runs.c.started_at, time.time())
            values = {"status": "running", "started_at": started, "attempts": _runs.c.attempts + 1}
            db.execute(sa.update(_runs).where(_runs.c.id == run, _runs.c.result.is_(None)).values(**values))

    def mark_failed(self, run: str, status: str, error: str) -> None:
        """The run ended without a result: ``failed``, ``refused`` or ``diverged``, or ``pending`` to be tried again."""
        with self.engine.begin() as db:
            values = {"status": status, "error": error, "finished_at": time.time()}
            db.execute(sa.update(_runs).where(_runs.c.id == run, _runs.c.result.is_(None)).values(**values))

    def mark_done(self, result: RunResult) -> None:
        """The run has its result; a result that is there is never changed."""
        with self.engine.begin() as db:
            values = {"status": "done", "error": None, "finished_at": time.time(), "result": result.__dict__}
            db.execute(sa.update(_runs).where(_runs.c.id == result.run, _runs.c.result.is_(None)).values(**values))

    def result(self, run: str) -> RunResult | None:
        """The result of a run, or None while it has none."""
        with self.engine.connect() as db:
            row = db.execute(sa.select(_runs.c.result).where(_runs.c.id == run)).first()
        if row is not None and row.result is not None:
            return RunResult(**row.result)
        result = read_result(self.run_folder(run))
        if result is not None and row is not None:
            self.mark_done(result)
        return result

    def diverged(self, run: str) -> str | None:
        """What was recorded of a run that diverged, or None."""
        query = sa.select(_runs.c.error).filter_by(id=run, status="diverged").where(_runs.c.result.is_(None))
        with self.engine.connect() as db:
            return db.execute(query).scalar()

    def reopen(self, run: str, reason: str) -> None:
        """Have the next call train ``run`` again, also where it has diverged; ``reason`` is kept with it."""
        self.mark_failed(run, "pending", reason)

    def started_at(self, run: str) -> float | None:
        """When the first attempt at the run began (seconds since the epoch), or None."""
        with self.engine.connect() as db:
            return db.execute(sa.select(_runs.c.started_at).where(_runs.c.id == run)).scalar()

    def study_runs(self, study: str) -> list[str]:
        """Ids of the runs that a study asked for."""
        with self.engine.connect() as db:
            return list(db.execute(sa.select(_study_runs.c.run).where(_study_runs.c.study == study)).scalars())

    def overview(self) -> list[dict[str, Any]]:
        """A row per run and study: run, study, status, attempts, parameters, tokens and error."""
        query = sa.select(_runs, _study_runs.c.study).join(_study_runs).order_by(_runs.c.created_at)
        rows = []
        with self.engine.connect() as db:
            for row in db.execute(query):
                spec = RunSpec.model_validate(row.spec)
                rows.append(
                    {
                        "run": row.id,
                        "study": row.study,
                        "status": row.status,
                        "attempts": row.attempts,
                        "parameters": spec.model.parameters,
                        "tokens": spec.tokens,
                        "error": row.error,
                    }
                )
        return rows

    def run_spec(self, run: str) -> RunSpec:
        """The specification of a known run."""
        with self.engine.connect() as db:
            return RunSpec.model_validate(db.execute(sa.select(_runs.c.spec).where(_runs.c.id == run)).scalar_one())

    def stage(self, name: str, key: str) -> Any | None:
        """What the stage of that name found for inputs that hash to ``key``, or None."""
        with self.engine.connect() as db:
            return db.execute(sa.select(_stages.c.content).filter_by(name=name, key=key)).scalar()

    def record_stage(self, name: str, key: str, content: Any) -> None:
        """Keep what a stage found; a second result for the same inputs is not taken."""
        if self.stage(name, key) is None:
            self._insert_first(_stages, name=name, key=key, recorded_at=time.time(), content=content)

    def _insert_first(self, table: sa.Table, **row: Any) -> None:
        """Insert a row, unless another process was first."""
        with contextlib.suppress(sa.exc.IntegrityError), self.engine.begin() as db:
            db.execute(sa.insert(table).values(**row))

    def rates(self, **where: str | int) -> list[dict[str, Any]]:
        """Rates that were measured, those whose columns have the given values: a row of the table each.

        ``machine`` and ``shape`` are hashes of what stands in ``about``; ``how`` is ``probe`` or ``runs``;
        ``tokens_per_s`` is that of all workers together, ``seconds`` how long it was measured.
        """
        with self.engine.connect() as db:
            rows = db.execute(sa.select(_rates).filter_by(**where).order_by(_rates.c.recorded_at)).mappings()
            return [dict(row) for row in rows]

    def rates_overview(self) -> list[dict[str, Any]]:
        """Rates as a person reads them: device, workers, the model's layers and width, tokens per second, when."""
        return [
            {
                "device": row["about"]["machine"]["device"],
                "workers": row["about"]["machine"]["workers"],
                "layers": row["about"]["model"]["n_layers"],
                "d_model": row["about"]["model"]["d_model"],
                **{name: row[name] for name in ("context_length", "batch_sequences", "precision", "how")},
                "tokens_per_s": row["tokens_per_s"],
                "seconds": row["seconds"],
                "recorded_at": iso_time(row["recorded_at"]),
            }
            for row in self.rates()
        ]

    def record_rate(self, key: dict[str, str | int], **values: Any) -> None:
        """Keep a rate in place of the one that was known for ``key`` (machine to how)."""
        with self.engine.begin() as db:
            known = db.execute(sa.update(_rates).filter_by(**key).values(**values)).rowcount
        if not known:
            self._insert_first(_rates, **key, **values)

    def record_prediction(self, run: str, content: dict[str, Any]) -> None:
        """Write down what ``run`` will reach, before it exists (contract 4).

        Raises:
            ArmillaryError: the run has begun, or a prediction of it is there and says something else.
        """
        known = self.prediction(run)
        if known is None:
            if self.started_at(run) is not None or (self.run_folder(run) / "spec.json").exists():
                raise ArmillaryError(f"run {run} has already begun; a prediction can only be made before its run")
            row = {"run": run, "sha256": canonical_hash(content), "content": content}
            self._insert_first(_predictions, recorded_at=time.time(), **row)
            known = self.prediction(run)
            assert known is not None
        if known["sha256"] != canonical_hash(content):
            raise ArmillaryError(f"run {run} has a prediction of {known['recorded_at']}; it is never rewritten")

    def prediction(self, run: str) -> dict[str, Any] | None:
        """The content of the prediction of ``run`` with ``recorded_at`` (ISO 8601) and ``sha256``, or None.

        Raises:
            ArmillaryError: the content is no longer what was recorded.
        """
        with self.engine.connect() as db:
            row = db.execute(sa.select(_predictions).where(_predictions.c.run == run)).first()
        if row is None:
            return None
        if canonical_hash(row.content) != row.sha256:
            raise ArmillaryError(f"the prediction of run {run} was changed after it was recorded; it cannot be judged")
        return {**row.content, "recorded_at": iso_time(row.recorded_at), "sha256": row.sha256}

    def record_verdict(self, run: str, content: dict[str, Any]) -> None:
        """Append the outcome to a prediction; the first verdict stays.

        Raises:
            ArmillaryError: there is no prediction of this run.
        """
        if self.prediction(run) is None:
            raise ArmillaryError(f"run {run} has no prediction, so there is nothing to judge")
        if self.verdict(run) is None:
            self._insert_first(_verdicts, run=run, recorded_at=time.time(), content=content)

    def verdict(self, run: str) -> dict[str, Any] | None:
        """The verdict on the prediction of ``run`` with ``recorded_at``, or None."""
        with self.engine.connect() as db:
            row = db.execute(sa.select(_verdicts).where(_verdicts.c.run == run)).first()
        return None if row is None else {**row.content, "recorded_at": iso_time(row.recorded_at)}


def _one_at_a_time(db: sa.Connection) -> None:
    """Let no other transaction that asks for this begin before ours has ended; SQLite has one writer as it is."""
    if db.dialect.name == "postgresql":
        db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def iso_time(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def to_json(value: Any) -> Any:
    """``value`` as it comes back from the database, so that what is used is what is stored."""
    return json.loads(json.dumps(value, allow_nan=False))


def _sqlite_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()

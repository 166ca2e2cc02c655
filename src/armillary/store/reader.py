"""Read-only access to a store: the overview, pages of runs, studies, predictions, and the journal.

`Reader` opens a store for reading only, also one of an older format, which it does not change. `Store` adds writing.
Lists are paged by key: the key of the last row begins the next page. So every page of 100,000 runs costs the same, and
a new run does not move other rows.
"""

from __future__ import annotations

import contextlib
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from armillary.recipe import RunSpec
from armillary.store import chain as journal
from armillary.store import schema
from armillary.store.chain import Chain
from armillary.store.facts import facts_of
from armillary.store.lineage import Lineage
from armillary.store.predictions import Predictions, prediction_problem, verdict_problem
from armillary.store.rates import Rates
from armillary.store.reading import ReadOnlyDatabase
from armillary.store.stages import stage_problem

Key = tuple[float, str]  # the key of a row in a list sorted by time: its time and id

_SAME = 5e-4  # weights that differ by less are shown as the same number
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "=": lambda a, b: abs(a - b) < _SAME,
}
_MAX_SCANNED = 100_000  # rows that a filter reads for one page at most, in a store without facts


@dataclass(frozen=True)
class RunFilter:
    """A filter for a list of runs; an empty field matches all.

    ``run`` is the beginning of an id; ``shape`` is layers x width; ``tags`` are words of `facts_of`, all of which a run
    must have; ``mixture`` holds (domain, ``>=``, ``<=`` or ``=``, weight), all of which must hold in the first phase.
    """

    status: str = ""
    study: str = ""
    shape: str = ""
    run: str = ""
    tags: tuple[str, ...] = ()
    mixture: tuple[tuple[str, str, float], ...] = ()

    def fits(self, facts: Mapping[str, Any]) -> bool:
        """Whether a run with these facts matches."""
        weights = facts["mixture"]
        return (
            self.shape in ("", facts["shape"])
            and all(f" {tag} " in facts["tags"] for tag in self.tags)
            and all(_COMPARE[how](weights.get(domain, 0.0), value) for domain, how, value in self.mixture)
        )


@dataclass(frozen=True)
class ListedRun:
    """A run in a list. ``status`` is as in ``Reader.overview``, ``result`` as recorded in the store.

    Times are in seconds since the epoch. If the specification is damaged, ``shape`` is empty and sizes are 0.
    """

    run: str
    status: str
    attempts: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    error: str | None
    result: dict[str, Any] | None
    studies: tuple[str, ...]
    shape: str
    parameters: int
    tokens: int
    flops: float
    mixture: Mapping[str, float] = field(default_factory=dict)
    tags: str = ""


@dataclass(frozen=True)
class StudyState:
    """The state of a study: runs by status, the first start and the last end (seconds since the epoch)."""

    study: str
    runs: Mapping[str, int]
    started_at: float | None
    finished_at: float | None


@dataclass(frozen=True)
class Outcome:
    """An outcome of a stage, without its content."""

    name: str
    key: str
    recorded_at: float


@dataclass(frozen=True)
class RecordedPrediction:
    """A prediction with its verdict or None; ``problem`` describes a mismatch with the journal."""

    key: str
    recorded_at: float
    content: dict[str, Any]
    verdict: dict[str, Any] | None
    judged_at: float | None
    problem: str | None


class Reader(Lineage, Predictions, Rates):
    """A store opened for reading only. Opening it does not read anything; each call opens the database.

    Raises:
        UsageError: ``url`` is not a usable database. Methods raise the errors of ``ReadOnlyDatabase.reading``.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self.database = self._read_only = ReadOnlyDatabase(url or f"sqlite:///{folder / 'store.sqlite'}")
        self._held = []

    def close(self) -> None:
        """End all connections."""
        self._read_only.engine.dispose()

    def overview(self) -> list[dict[str, Any]]:
        """A row per run and study: run, study, status, attempts, parameters, tokens, examined and error.

        ``status`` is that of the table, or ``interrupted`` for a started run that no process trains. ``examined`` is a
        text with the last score of the run's model on each task, or None.
        """
        examined = self.examinations()
        runs, facts = schema.runs, schema.run_facts
        columns = [runs.c[name] for name in ("id", "status", "attempts", "error", "folder", "owner")]
        query = (
            sa.select(*columns, schema.study_runs.c.study, facts.c.parameters, facts.c.tokens)
            .join(schema.study_runs)
            .outerjoin(facts, facts.c.run == runs.c.id)
            .order_by(runs.c.created_at)
        )
        rows = []
        with self.database.reading() as db:
            for row in db.execute(query).all():
                parameters, tokens = row.parameters, row.tokens
                if parameters is None:  # a run without facts: written by an older version, or damaged
                    content = db.execute(sa.select(runs.c.spec).filter_by(id=row.id)).scalar()
                    spec = self._spec_of(row.id, content)
                    parameters, tokens = spec.model.parameters, spec.tokens
                rows.append(
                    {
                        "run": row.id,
                        "study": row.study,
                        "status": self._status(row) if row.status == "running" else row.status,
                        "attempts": row.attempts,
                        "parameters": parameters,
                        "tokens": tokens,
                        "examined": _scores(examined[row.id]) if row.id in examined else None,
                        "error": row.error,
                    }
                )
        return rows

    def counts(self) -> dict[str, int]:
        """The number of runs by recorded status, in which interrupted runs are still ``running``."""
        query = sa.select(schema.runs.c.status, sa.func.count()).group_by(schema.runs.c.status)
        with self.database.reading() as db:
            return {row[0]: row[1] for row in db.execute(query)}

    def page(self, wanted: RunFilter, limit: int, before: Key | None = None) -> list[ListedRun]:
        """At most ``limit`` matching runs, the newest first, that were added before the run with the key ``before``."""
        found: list[ListedRun] = []
        scanned = 0
        while len(found) < limit and scanned < _MAX_SCANNED:
            rows = self._listed(wanted, limit, before)
            scanned += len(rows)
            for row in rows:
                interrupted = wanted.status in ("running", "interrupted") and row.status != wanted.status
                if not interrupted and wanted.fits(row.__dict__):
                    found.append(row)
            if len(rows) < limit:
                break
            before = (rows[-1].created_at, rows[-1].run)
        return found[:limit]

    def listed(self, ids: Iterable[str]) -> list[ListedRun]:
        """The runs with these ids, in the order of ``ids``; unknown ids are left out."""
        wanted = list(dict.fromkeys(ids))
        rows = {row.run: row for row in self._rows_where(schema.runs.c.id.in_(wanted), len(wanted))}
        return [rows[run] for run in wanted if run in rows]

    def spec_contents(self, runs: Iterable[str]) -> dict[str, Any]:
        """The stored specifications of ``runs`` by run id; unknown runs are left out."""
        query = sa.select(schema.runs.c.id, schema.runs.c.spec).where(schema.runs.c.id.in_(list(runs)))
        with self.database.reading() as db:
            return {row[0]: row[1] for row in db.execute(query)}

    def state_of_file(self) -> tuple[int, ...] | None:
        """Inodes, times and sizes of an SQLite store's files, which differ after each change; None without a file."""
        file = self.database.file
        if file is None:
            return None
        states = []
        for path in (file, file.with_name(f"{file.name}-wal")):
            with contextlib.suppress(OSError):
                found = path.stat()
                states += [found.st_ino, found.st_mtime_ns, found.st_size]
        return tuple(states) or None

    def folder_of(self, run: str) -> Path:
        """The folder with the files of a run: in this store's folder, else in the store's folder that wrote it last."""
        own = self.run_folder(run)
        if own.is_dir():
            return own
        with self.database.reading() as db:
            (column,) = self._columns(schema.runs, "folder")
            place = db.execute(sa.select(column).where(schema.runs.c.id == run)).scalar()
        return own if place is None else Path(place) / "runs" / run

    def shapes(self) -> list[tuple[str, int]]:
        """The shapes of the runs and how many runs have each, the most frequent first; empty for an older store."""
        shape = schema.run_facts.c.shape
        query = sa.select(shape, sa.func.count()).group_by(shape).order_by(sa.func.count().desc()).limit(100)
        with self.database.reading() as db:
            return [(name, count) for name, count in db.execute(query)] if self._has_facts() else []

    def studies(self) -> list[StudyState]:
        """The studies of the store by name, with the states of their runs as in ``overview``."""
        runs, pairs = schema.runs, schema.study_runs
        query = (
            sa.select(
                pairs.c.study,
                runs.c.status,
                sa.func.count(),
                sa.func.min(runs.c.started_at),
                sa.func.max(runs.c.finished_at),
            )
            .join(runs, runs.c.id == pairs.c.run)
            .group_by(pairs.c.study, runs.c.status)
        )
        with self.database.reading() as db:
            rows = db.execute(query).all()
            dead = self._interrupted(db) if any(row[1] == "running" for row in rows) else Counter()
        groups: dict[str, list[Any]] = {}
        for row in rows:
            groups.setdefault(row[0], []).append(row)
        return [
            StudyState(
                study,
                _parted({row[1]: row[2] for row in own}, dead[study]),
                min((row[3] for row in own if row[3] is not None), default=None),
                max((row[4] for row in own if row[4] is not None), default=None),
            )
            for study, own in sorted(groups.items())
        ]

    def _interrupted(self, db: sa.Connection) -> Counter[str]:
        """The number of started runs that no process trains, by study."""
        runs = schema.runs.c
        query = (
            sa.select(schema.study_runs.c.study, runs.id, runs.status, *self._columns(schema.runs, "folder", "owner"))
            .join(schema.runs, runs.id == schema.study_runs.c.run)
            .where(runs.status == "running")
        )
        return Counter(row.study for row in db.execute(query) if not self._lives(row))

    def work(self, study: str) -> dict[str, float]:
        """The FLOPs of a study's runs, summed by status; empty for an older store."""
        runs, pairs, facts = schema.runs, schema.study_runs, schema.run_facts
        query = (
            sa.select(runs.c.status, sa.func.sum(facts.c.flops))
            .select_from(pairs)
            .join(runs, runs.c.id == pairs.c.run)
            .join(facts, facts.c.run == runs.c.id)
            .where(pairs.c.study == study)
            .group_by(runs.c.status)
        )
        with self.database.reading() as db:
            return {row[0]: row[1] for row in db.execute(query)} if self._has_facts() else {}

    def outcomes(self, name: str = "") -> list[Outcome]:
        """The outcomes of the stage ``name``, or of all stages, the newest first."""
        stages = schema.stages.c
        query = sa.select(stages.name, stages.key, stages.recorded_at).order_by(stages.recorded_at.desc(), stages.key)
        with self.database.reading() as db:
            return [Outcome(*row) for row in db.execute(query.filter_by(name=name) if name else query)]

    def outcome(self, name: str, key: str) -> Any | None:
        """The content of an outcome, or None. In a store of an older format, it is not compared with the journal.

        Raises:
            DamagedFileError: the content was changed.
        """
        with self.database.reading() as db:
            query = sa.select(schema.stages.c.content).filter_by(name=name, key=key)
            journaled = schema.version(db) == schema.FORMAT
            content = None if journaled else db.execute(query).scalar()
        return self.stage(name, key) if journaled else content

    def recorded_predictions(self, limit: int, before: Key | None = None) -> list[RecordedPrediction]:
        """At most ``limit`` predictions, the newest first, each with its verdict."""
        p, v = schema.predictions.c, schema.verdicts.c
        query = (
            sa.select(
                p.run, p.recorded_at, p.sha256, p.content, v.recorded_at.label("judged_at"), v.content.label("verdict")
            )
            .outerjoin(schema.verdicts, p.run == v.run)
            .order_by(p.recorded_at.desc(), p.run.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(sa.tuple_(p.recorded_at, p.run) < sa.tuple_(*map(sa.literal, before)))
        with self.database.reading() as db:
            rows = db.execute(query).all()
            entries = self._entries(db, [row.run for row in rows])
        return [
            RecordedPrediction(
                row.run,
                row.recorded_at,
                row.content if isinstance(row.content, dict) else {},
                row.verdict if isinstance(row.verdict, dict) else None,
                row.judged_at,
                None if entries is None else prediction_problem(row.run, row, entries),
            )
            for row in rows
        ]

    def verdicts(self) -> list[dict[str, Any]]:
        """The contents of all verdicts, the oldest first."""
        query = sa.select(schema.verdicts.c.content).order_by(schema.verdicts.c.recorded_at)
        with self.database.reading() as db:
            return [content for content in db.execute(query).scalars() if isinstance(content, dict)]

    def head(self) -> tuple[int, str]:
        """Number and hash of the journal's last entry; 0 without a journal (format 1)."""
        with self.database.reading() as db:
            if not self._has(schema.journal):
                return 0, journal.FIRST
            columns = (schema.journal.c.seq, schema.journal.c.sha256)
            row = db.execute(sa.select(*columns).order_by(schema.journal.c.seq.desc()).limit(1)).first()
        return (0, journal.FIRST) if row is None else (row.seq, row.sha256)

    def chain(self) -> Chain:
        """The journal, which proves the order of the records, and the records that do not fit it."""
        with self.database.reading() as db:
            if not self._has(schema.journal):
                return Chain((), (), ())
            entries = journal.read(db)
            predictions = {row.run: row for row in db.execute(sa.select(schema.predictions))}
            verdicts = {row.run: row for row in db.execute(sa.select(schema.verdicts))}
            columns = (schema.runs.c.id, schema.runs.c.started_at, schema.runs.c.result)
            runs = {row.id: row for row in db.execute(sa.select(*columns))}
            stages = {(row.name, row.key): row for row in db.execute(sa.select(schema.stages))}
        problems = journal.broken(entries)
        recorded_stages = {(str(entry.about.get("stage")), entry.run) for entry in entries if entry.kind == "stage"}
        for name, key in sorted(set(stages) | recorded_stages):
            problems.append(stage_problem(name, key, stages.get((name, key)), entries) or "")
        results = {run: row.result for run, row in runs.items()}
        named = {kind: {entry.run for entry in entries if entry.kind == kind} for kind in ("prediction", "verdict")}
        for run in sorted(set(predictions) | named["prediction"]):
            problems.append(prediction_problem(run, predictions.get(run), entries) or "")
        for run in sorted(set(verdicts) | named["verdict"]):
            problems.append(verdict_problem(run, verdicts.get(run), results, entries) or "")
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

    def _entries(self, db: sa.Connection, runs: Iterable[str]) -> tuple[journal.Entry, ...] | None:
        """Entries of the journal on these runs; None without a journal."""
        if not self._has(schema.journal):
            return None
        query = sa.select(schema.journal).where(schema.journal.c.run.in_(list(runs))).order_by(schema.journal.c.seq)
        return tuple(
            journal.Entry(**{**row, "about": row["about"] if isinstance(row["about"], dict) else {}})
            for row in db.execute(query).mappings()
        )

    def _listed(self, wanted: RunFilter, limit: int, before: Key | None) -> list[ListedRun]:
        """A page of matching rows by a database query; missing facts are not compared."""
        runs, facts = schema.runs, schema.run_facts
        conditions: list[Any] = []
        if wanted.status:
            conditions.append(runs.c.status == ("running" if wanted.status == "interrupted" else wanted.status))
        if wanted.run:
            conditions.append(runs.c.id.startswith(wanted.run, autoescape=True))
        if wanted.study:
            of_study = sa.select(schema.study_runs.c.run).where(schema.study_runs.c.study == wanted.study)
            conditions.append(runs.c.id.in_(of_study))
        if before is not None:
            conditions.append(sa.tuple_(runs.c.created_at, runs.c.id) < sa.tuple_(*map(sa.literal, before)))
        known: list[Any] = []
        if wanted.shape:
            known.append(facts.c.shape == wanted.shape)
        known += [facts.c.tags.contains(f" {tag} ", autoescape=True) for tag in wanted.tags]
        for domain, how, value in wanted.mixture:
            weight = sa.func.coalesce(facts.c.mixture[domain].as_float(), 0.0)
            known.append(sa.func.abs(weight - value) < _SAME if how == "=" else _COMPARE[how](weight, value))
        # `page` compares the runs without facts.
        return self._rows_where(sa.and_(sa.true(), *conditions), limit, sa.and_(*known) if known else None)

    def _rows_where(self, condition: Any, limit: int, known: Any = None) -> list[ListedRun]:
        runs, facts = schema.runs, schema.run_facts
        named = ("id", "status", "attempts", "created_at", "started_at", "finished_at", "error", "result")
        names = ("shape", "parameters", "tokens", "flops", "mixture", "tags")
        with self.database.reading() as db:
            query = sa.select(*(runs.c[name] for name in named), *self._columns(runs, "folder", "owner"))
            query = query.where(condition).order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(limit)
            if self._has_facts():
                query = query.add_columns(*(facts.c[name] for name in names))
                query = query.outerjoin(facts, facts.c.run == runs.c.id)
                if known is not None:
                    query = query.where(sa.or_(facts.c.run.is_(None), known))
            rows = db.execute(query).all()
            ids = [row.id for row in rows]
            bare = [row.id for row in rows if getattr(row, "shape", None) is None]
            specs = dict(db.execute(sa.select(runs.c.id, runs.c.spec).where(runs.c.id.in_(bare))).all() if bare else [])
            studies: dict[str, list[str]] = {}
            pairs = schema.study_runs
            for study, run in db.execute(sa.select(pairs.c.study, pairs.c.run).where(pairs.c.run.in_(ids))):
                studies.setdefault(run, []).append(study)
        found = []
        for row in rows:
            values = _facts(specs[row.id]) if row.id in specs else {name: getattr(row, name) for name in names}
            found.append(
                ListedRun(
                    row.id,
                    self._status(row),
                    row.attempts,
                    row.created_at,
                    row.started_at,
                    row.finished_at,
                    row.error,
                    row.result if isinstance(row.result, dict) else None,
                    tuple(sorted(studies.get(row.id, ()))),
                    **values,
                )
            )
        return found

    def _status(self, row: Any) -> str:
        return "interrupted" if row.status == "running" and not self._lives(row) else str(row.status)

    def _has(self, table: sa.Table) -> bool:
        return not isinstance(self.database, ReadOnlyDatabase) or self.database.has(table)

    def _has_facts(self) -> bool:
        return self._has(schema.run_facts)

    def _columns(self, table: sa.Table, *names: str) -> list[Any]:
        if isinstance(self.database, ReadOnlyDatabase):
            return self.database.columns_of(table, *names)
        return [table.c[name] for name in names]


def _parted(states: dict[str, int], dead: int) -> dict[str, int]:
    """The states with ``dead`` of the running ones as ``interrupted``."""
    parted = {**states, "running": states.get("running", 0) - dead, "interrupted": dead}
    return {status: count for status, count in parted.items() if count}


def _facts(content: Any) -> dict[str, Any]:
    try:
        return facts_of(RunSpec.model_validate(content))
    except ValidationError:
        return {"shape": "", "parameters": 0, "tokens": 0, "flops": 0.0, "mixture": {}, "tags": ""}


def _scores(examinations: list[tuple[str, dict[str, Any]]]) -> str | None:
    """One line with metric and value of each whole task, from its last evaluation; None without any."""
    results = [result for _, row in examinations for result in row.get("results", ())]
    values = {f"{one['task']} {one['metric']}": one["value"] for one in results if one["subset"] == one["task"]}
    return "; ".join(f"{name} {value:.3f}" for name, value in values.items()) or None

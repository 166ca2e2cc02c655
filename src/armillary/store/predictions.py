"""Predictions and verdicts in a store: recorded once, in an order that the journal proves (contract 4)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from armillary.recipe import ArmillaryError, canonical_hash
from armillary.store import chain as journal
from armillary.store import schema
from armillary.store.base import Base, iso_time, to_json


@dataclass(frozen=True)
class Order:
    """The evidence that a prediction came before its run: positions in the journal (see `chain`).

    ``start`` is None while the run has not begun. ``by`` names the source of the start. ``store``: the store recorded
    it as it happened. ``events``: the run was trained without the store (by a launcher), and its events gave the start.
    ``clock``: the entries come from a store without a journal.
    """

    prediction: int
    start: int | None
    by: str
    predicted_at: float
    started_at: float | None

    @property
    def holds(self) -> bool:
        """Whether the prediction came first: by the journal, and by the clock too if the journal recorded no start."""
        if self.start is None or self.started_at is None:
            return True
        return self.prediction < self.start and (self.by == "store" or self.predicted_at < self.started_at)


class Predictions(Base):
    """Predictions and verdicts of a store."""

    def record_prediction(self, run: str, content: dict[str, Any]) -> None:
        """Record a prediction of ``run`` before the run exists (contract 4).

        Raises:
            ArmillaryError: the run has begun, or a different prediction of it is recorded.
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
                            "prediction of it; a prediction can only be made before its run: restore the "
                            "database from a backup, move the run's folder away to predict and train again, or add "
                            "a new seed to training.seeds"
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
            ArmillaryError: the content, its time or its position in the journal was changed.
        """
        with self.database.reading() as db:
            row = db.execute(sa.select(schema.predictions).filter_by(run=run)).first()
            entries = journal.read(db)
        problem = prediction_problem(run, row, entries)
        if problem is not None:
            raise ArmillaryError(f"{problem}; it cannot be judged")
        if row is None:
            return None
        return {**row.content, "recorded_at": iso_time(row.recorded_at), "sha256": row.sha256}

    def record_verdict(self, run: str, content: dict[str, Any]) -> None:
        """Append the outcome to a prediction; the first verdict stays.

        If ``run`` is the id of another question about a run, ``content["run"]`` names the judged run. The journal holds
        the hash of that run's result.

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
            ArmillaryError: the verdict, or the result that it judges, was changed.
        """
        with self.database.reading() as db:
            row = db.execute(sa.select(schema.verdicts).filter_by(run=run)).first()
            entries = journal.read(db)
            entry = next((entry for entry in entries if (entry.kind, entry.run) == ("verdict", run)), None)
            judged = run if entry is None else entry.about.get("of", run)
            results = {judged: db.execute(sa.select(schema.runs.c.result).filter_by(id=judged)).scalar()}
        problem = verdict_problem(run, row, results, entries)
        if problem is not None:
            raise ArmillaryError(f"{problem}; restore the store from a backup")
        return None if row is None else {**row.content, "recorded_at": iso_time(row.recorded_at)}

    def order(self, run: str) -> Order | None:
        """The evidence that the prediction of ``run`` came before the run; None without a prediction."""
        with self.database.reading() as db:
            entries = journal.read(db)
        first = {(entry.kind, entry.run): entry for entry in reversed(entries)}
        prediction, start = first.get(("prediction", run)), first.get(("start", run))
        if prediction is None:
            return None
        by = "store" if start is None else str(start.about.get("by"))
        at = None if start is None else start.about.get("started_at")
        return Order(prediction.seq, start.seq if start else None, by, prediction.recorded_at, at)


def prediction_problem(run: str, row: Any, entries: Sequence[journal.Entry]) -> str | None:
    """The problem of a prediction or of its journal entry, or None."""
    entry = next((entry for entry in entries if (entry.kind, entry.run) == ("prediction", run)), None)
    if row is None:
        return None if entry is None else f"the prediction of run {run} was removed after it was recorded"
    if entry is None or entry.sha256 != entry.right:
        return f"the prediction of run {run} is not the one in the journal: it was changed after it was recorded"
    same = canonical_hash(row.content) == row.sha256 and journal.digest(row.content) == entry.about.get("content")
    if not same or row.recorded_at != entry.recorded_at:
        return f"the prediction of run {run} was changed after it was recorded"
    return None


def verdict_problem(run: str, row: Any, results: Mapping[str, Any], entries: Sequence[journal.Entry]) -> str | None:
    """The problem of a verdict, of its journal entry or of the result that it judges, or None."""
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
        return None  # it diverged, was judged as diverged, and has a result since then
    result = results.get(judged)
    if (None if result is None else journal.digest(result)) != entry.about.get("result"):
        return f"the result of run {judged} is not the one that its verdict judges: it was changed afterwards"
    return None

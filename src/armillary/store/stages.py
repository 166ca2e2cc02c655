"""Outcomes of stages in a store, and examinations, which are the outcomes of one stage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from armillary.recipe import DamagedFileError
from armillary.store import chain as journal
from armillary.store import schema
from armillary.store.base import Base

EXAMINATION = "examination"  # the stage whose outcomes are the examinations of models


class Stages(Base):
    """Outcomes of stages; the first outcome for the same inputs is final."""

    def stage(self, name: str, key: str) -> Any | None:
        """The outcome of the named stage for inputs that hash to ``key``, or None.

        Raises:
            DamagedFileError: the outcome was changed.
        """
        with self.database.reading() as db:
            row = db.execute(sa.select(schema.stages).filter_by(name=name, key=key)).first()
            entries = journal.read(db, key)
        if row is None:
            return None
        problem = stage_problem(name, key, row, entries)
        if problem is not None:
            raise DamagedFileError(f"{self.database.name}: {problem}; restore the store from a backup")
        return row.content

    def stage_contents(self, name: str) -> list[Any]:
        """All outcomes of the named stage, oldest first; their journal entries are not checked."""
        query = sa.select(schema.stages.c.content).filter_by(name=name).order_by(schema.stages.c.recorded_at)
        with self.database.reading() as db:
            return list(db.execute(query).scalars())

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
        """Record the outcome of a stage; a second outcome for the same inputs is ignored."""
        with self.database.writing() as db:
            if db.execute(sa.select(schema.stages.c.key).filter_by(name=name, key=key)).first() is None:
                now = time.time()
                values = {"name": name, "key": key, "recorded_at": now, "content": content}
                db.execute(sa.insert(schema.stages).values(**values))
                row = db.execute(sa.select(schema.stages).filter_by(name=name, key=key)).one()
                journal.append(db, "stage", key, now, stage=name, content=stage_digest(row))
        self.database.flush()


def stage_problem(name: str, key: str, row: Any, entries: Sequence[journal.Entry]) -> str | None:
    """The problem of an outcome or of its journal entry, or None."""
    mine = [e for e in entries if (e.kind, e.run, e.about.get("stage")) == ("stage", key, name)]
    if row is None:
        return f"the outcome {key} of stage {name} was removed after it was recorded" if mine else None
    # The last entry counts, since a removed outcome may have been recorded again.
    if not mine or mine[-1].sha256 != mine[-1].right:
        return f"the outcome {key} of stage {name} is not the one in the journal: it was changed after it was recorded"
    if stage_digest(row) != mine[-1].about.get("content"):
        return f"the outcome {key} of stage {name} was changed after it was recorded"
    return None


def stage_digest(row: Any) -> str:
    """The hash of an outcome's time and content, which its journal entry holds."""
    return journal.digest([row.recorded_at, row.content])

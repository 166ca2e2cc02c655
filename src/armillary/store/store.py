"""The run store: runs with their studies and results, predictions and verdicts (contracts 1 and 4).

A store is a folder with a database. The folder ``runs/ID`` holds the files of a run; its ``result.json`` marks the run
as done. The database is an index over the folders. It alone holds the studies that requested a run, the outcomes of
stages, predictions, verdicts, and the journal that proves their order (`chain`). The default is SQLite in WAL mode; any
SQLAlchemy URL (PostgreSQL for a team) works too. `database` has the connection and `schema` the tables; `runs`,
`stages`, `rates`, `predictions` and `lineage` read and write them. `reader` reads a store without changing it.

Trade-off: results are read from the database, or from the folder if the database lacks them (after a kill between the
two writes). So neither place needs to be complete.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from armillary.recipe import (
    ArmillaryError,
)
from armillary.store import chain as journal
from armillary.store import schema
from armillary.store.database import Database
from armillary.store.facts import complete
from armillary.store.reader import Reader
from armillary.store.runs import FILES, difference
from armillary.store.stages import stage_digest


def verify_database(file: Path) -> list[str]:
    """The problems of a store's SQLite file or of a backup, one line each; the file is not changed.

    A copy is checked, so that opening it neither migrates the file nor writes a log beside it.

    Raises:
        DamagedFileError: it is torn, or is not a database.
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


class Store(Reader):
    """The store in ``folder``, which is created or migrated if needed.

    Raises:
        UsageError: ``url`` is not a usable database.
        DamagedFileError: the database is empty, torn, or is not one.
        ForeignFileError: it belongs to another program, or to a newer version; it is not changed.
        ArmillaryError: it cannot be reached or written, or the folder has no locks.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self._owner = None
        self.database = Database(url or f"sqlite:///{folder / 'store.sqlite'}")
        self.engine = self.database.engine
        try:
            with self._opening():
                self.database.open()
                self._begin_journal()
                complete(self.database)
        except BaseException:
            self.engine.dispose()
            raise
        self._held = []
        # Otherwise a program that just ends would leave most of the store in SQLite's log.
        self._end = weakref.finalize(self, _close, self.database, self._held)

    def close(self) -> None:
        """Write everything into the database's file and close it; a later call opens it again."""
        _close(self.database, self._held)
        self._owner = None

    def _begin_journal(self) -> None:
        """Begin the journal; in a store of format 1, add entries for all records in the order of its clock."""
        with self.database.writing() as db:
            found = schema.version(db)
            if db.execute(sa.select(sa.func.count()).select_from(schema.journal)).scalar():
                if isinstance(found, int) and found < schema.FORMAT:  # its journal does not have stages
                    for row in db.execute(sa.select(schema.stages).order_by(schema.stages.c.recorded_at)).all():
                        about = {"stage": row.name, "content": stage_digest(row), "taken_over": True}
                        journal.append(db, "stage", row.key, time.time(), **about)
                    db.execute(sa.update(schema.form).values(version=schema.FORMAT))
                return
            if found == schema.FORMAT:  # new, or emptied by hand, in which case no record fits the journal
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
                about = {"stage": row.name, "content": stage_digest(row)}
                old.append((row.recorded_at, "stage", row.key, about))
            journal.append(db, "chain", "", time.time(), format=found, taken_over=len(old))
            for recorded_at, kind, run, about in sorted(old, key=lambda entry: entry[0]):
                journal.append(db, kind, run, recorded_at, **about, taken_over=True)
            db.execute(sa.delete(schema.rates))  # of any optimizer
            db.execute(sa.update(schema.form).values(version=schema.FORMAT))

    def verify(self) -> list[str]:
        """The problems of the store, one line each: those of ``verify_records``, and of the folders of done runs.

        A line on a file begins with its path.
        """
        problems = self.verify_records()
        for row in self._rows():
            if row.result is None:
                continue
            folder = self.run_folder(row.id)
            if not folder.is_dir():
                problems.append(f"{folder}: is missing, although run {row.id} is done")
                continue
            try:
                recorded = self._result_of(row.id, row.result)
                lacking = [folder / name for name in FILES if not (folder / name).is_file()]
                problems += [f"{file}: is missing, although run {row.id} is done" for file in lacking]
                found = self._result_in_folder(row.id)
                differs = None if found is None else difference(row.id, asdict(recorded), asdict(found))
                if differs is not None:
                    problems.append(f"{folder / 'result.json'}: {differs}")
            except ArmillaryError as error:
                problems.append(str(error))
        return problems

    def verify_records(self) -> list[str]:
        """The problems of the database and the journal, one line each; run folders are not checked."""
        problems = [*self.database.problems(), *self.chain().problems]
        for row in self._rows():
            try:
                spec = self._spec_of(row.id, row.spec)
            except ArmillaryError as error:
                problems.append(str(error))
                continue
            if spec.id != row.id:
                problems.append(f"run {row.id}: its specification was changed: it belongs to another run")
            if (row.parents or []) != list(spec.parents):
                problems.append(f"run {row.id}: its parents differ from those of its specification: they were changed")
        return problems

    def flush(self) -> None:
        """Move SQLite's log into ``store.sqlite``, so that this file is the whole database."""
        self.database.flush()

    def backup(self, path: Path) -> None:
        """Write a checked copy of the database to the new file ``path``; run folders are not part of it.

        Raises:
            UsageError: ``path`` exists, or the database is on a server.
            ArmillaryError: the copy could not be written, or is not sound.
        """
        self.database.backup(path)


def _close(database: Database, held: list[Any]) -> None:
    for file in held:
        with contextlib.suppress(OSError):
            Path(file.name).unlink()
            file.close()
    held.clear()
    database.close()

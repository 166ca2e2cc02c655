"""A read-only connection to a store's database, for instance for web pages. It never changes, migrates or creates one.

Each transaction opens the SQLite file again. So a deleted or replaced file is noticed, and a study that writes at the
same time never waits. The connection waits only one second for a lock, since a reader can retry.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from armillary.recipe import ArmillaryError
from armillary.store import schema
from armillary.store.database import Database, begin, connect_read_only

_WAIT_S = 1
_SERVER_WAIT_S = 3


class ReadOnlyDatabase(Database):
    """A store's database at ``url``, opened for reading.

    Raises:
        UsageError: ``url`` is not a usable database. Other errors are raised by ``reading``.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.engine.dispose()
        self.lock_s = self.waited_s = _WAIT_S
        self._seen: tuple[int, ...] = ()  # the file at the last transaction
        self._columns: dict[str, frozenset[str]] = {}
        if self.file is not None:
            file = self.file
            self.engine = sa.create_engine(
                "sqlite://", creator=lambda: connect_read_only(file, _WAIT_S), poolclass=sa.pool.NullPool
            )
            sa.event.listen(self.engine, "begin", begin)
        elif self.engine.dialect.name == "postgresql":
            self.engine = sa.create_engine(
                self.url,
                pool_pre_ping=True,
                connect_args={"connect_timeout": _SERVER_WAIT_S},
                execution_options={"postgresql_readonly": True},
            )

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that reads.

        Raises:
            DamagedFileError, ForeignFileError, UsageError: as ``Database.open``.
            ArmillaryError: the database is missing or unreadable.
        """
        with self.translated():
            if self.file is not None:
                self._look(self.file)
            with super().reading() as db:
                self.known_version(db)  # SQLite's log beside the file may hold a newer version
                if not self._columns:
                    self._learn(db)
                yield db

    def has(self, table: sa.Table) -> bool:
        """Whether the database has the table with all its columns; an older store may not."""
        return {column.name for column in table.columns} <= self._columns.get(table.name, frozenset())

    def columns_of(self, table: sa.Table, *names: str) -> list[Any]:
        """The columns of ``table`` with these names; null for columns that an older store lacks."""
        there = self._columns.get(table.name, frozenset())
        return [table.c[name] if name in there else sa.null().label(name) for name in names]

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Refuse writing."""
        raise ArmillaryError(f"{self.name}: the store is opened for reading only")
        yield

    def flush(self, wait_ms: int = 1000) -> None:
        """Nothing to flush, since nothing was written."""

    def _look(self, file: Path) -> None:
        try:
            status = file.stat()
        except FileNotFoundError as error:
            raise ArmillaryError(
                f"{file}: the store's database is missing (deleted, moved, or not created yet)"
            ) from error
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            self.check_file(file)
            self._columns, self._seen = {}, seen

    def _learn(self, db: sa.Connection) -> None:
        """Record the existing tables and columns."""
        inspector = sa.inspect(db)
        found = inspector.get_table_names()
        if schema.runs.name not in found:
            raise ArmillaryError(f"{self.name}: contains no store yet")
        self._columns = {
            name: frozenset(column["name"] for column in inspector.get_columns(name))
            for name in schema.metadata.tables
            if name in found
        }

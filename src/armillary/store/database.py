"""The connection to a store's database: opens only our databases, and reports every failure in one line.

A database can be locked, missing, full, read-only, damaged, or another program's. Each case raises an
``ArmillaryError`` with the file or the URL (without password), the cause and the remedy. For a transient cause, a lock
or a restarting server, the connection first waits and retries.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from armillary.files import aside, sync
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    ForeignFileError,
    UsageError,
    counted,
    without_passwords,
)
from armillary.store import schema

_BUSY_MS = 10_000  # milliseconds that SQLite waits for a lock, each time
_TRIES, _PAUSE_S = 3, 1.0
_LOCK = 0x61726D69  # an arbitrary number that identifies our lock in this database
_MAGIC = b"SQLite format 3\0"
_WRITE = "armillary_write"


def secrets(url: sa.URL) -> list[str]:
    """The secrets in a URL: the password, and parameters with names such as ``token``."""
    named = [value for name, value in url.query.items() if re.search("pass|pwd|secret|token", name, re.IGNORECASE)]
    values = [part for value in named for part in ([value] if isinstance(value, str) else value)]
    return [value for value in [str(url.password or ""), *values] if value]


class Database:
    """A store's database at ``url``.

    Raises:
        UsageError: ``url`` is not a usable database.
        DamagedFileError: the file is empty, torn, or not a database.
        ForeignFileError: it belongs to another program or to a newer version; it is not changed.
        ArmillaryError: it cannot be reached or written.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sa.make_url(url)
            # A study may send nothing for hours, and its server may restart meanwhile.
            self.engine = sa.create_engine(parsed, pool_pre_ping=True)
        except (sa.exc.ArgumentError, ImportError) as error:
            raise UsageError(
                f"database: {without_passwords(str(error))}; give an SQLAlchemy URL such as "
                "postgresql+psycopg://USER@HOST/NAME, and install its driver"
            ) from error
        except ValueError as error:  # its text quotes a part of the URL, possibly of the password
            raise UsageError(
                "database: the port in the URL is not a number; give an SQLAlchemy URL such as "
                "postgresql+psycopg://USER:PASSWORD@HOST:5432/NAME, with %40 for an @ in the password"
            ) from error
        self.url = parsed
        self.name = without_passwords(parsed.render_as_string(hide_password=True))
        self.file: Path | None = None
        self.lock_s, self.waited_s = _BUSY_MS / 1000, _TRIES * _BUSY_MS // 1000  # for a lock: each time, and in all
        self._known = False  # it has worked before, so a failure may be transient
        if self.engine.dialect.name == "sqlite":
            if str(parsed.database).startswith("file:"):
                raise UsageError(f"database: {self.name}: give the path of a file: sqlite:////FOLDER/store.sqlite")
            if parsed.database not in (None, "", ":memory:"):  # a database in memory, for tests, ends with its thread
                self.file = Path(str(parsed.database))
                self.name = str(self.file)
            sa.event.listen(self.engine, "connect", _prepare)
            sa.event.listen(self.engine, "begin", begin)
        self._writer = self.engine.execution_options(**{_WRITE: True})

    def open(self) -> None:
        """Create or migrate the store's tables; the caller ensures that one process per folder does so at a time.

        Raises:
            As the class.
        """
        with self.translated():
            if self.file is not None:
                self._open_file(self.file)
        with self.writing() as db:
            others = schema.strangers(db)
            if others:
                raise self._foreign(others)
            found = self.known_version(db)
            schema.metadata.create_all(db)
            schema.add_indexes(db)
            if found is None:
                db.execute(sa.insert(schema.form).values(version=schema.FORMAT))
                self._stamp(db)
            elif found < schema.FORMAT:
                schema.add_columns(db)
                self._stamp(db)  # `Store` writes the journal, the last part of the migration
        self._known = True

    def known_version(self, db: sa.Connection) -> int | None:
        """The format of the store; None for a new one.

        Raises:
            ForeignFileError: this version cannot read it.
        """
        found = schema.version(db)
        if found is None or (isinstance(found, int) and 1 <= found <= schema.FORMAT):
            return found
        raise ForeignFileError(
            f"{self.name}: store format {found}; this version reads 1 to {schema.FORMAT}; use the version that wrote "
            "it. It was not changed"
        )

    def _stamp(self, db: sa.Connection) -> None:
        if self.file is not None:
            db.execute(sa.text(f"PRAGMA application_id = {schema.APPLICATION}"))

    def _open_file(self, file: Path) -> None:
        """Check an SQLite file without writing to it; if it is missing, create a complete one atomically."""
        if file.is_symlink() and not file.exists():
            raise DamagedFileError(
                f"{file}: the store's database is a link to {file.readlink()}, which cannot be reached; mount the disk "
                "it is on, or remove the link to begin a new store"
            )
        if not file.exists():
            for left in (file.with_name(f"{file.name}-{suffix}") for suffix in ("wal", "journal")):
                if left.exists() and left.stat().st_size:
                    raise DamagedFileError(
                        f"{file}: the store's database is missing, but {left.name} has changes to it; restore the file "
                        f"or a backup, or move {left.name} away to begin a new store"
                    )
            hidden = aside(file)
            try:
                with contextlib.closing(sqlite3.connect(hidden)) as new:
                    new.execute(f"PRAGMA application_id = {schema.APPLICATION}")
                    new.execute("CREATE TABLE format (version INTEGER NOT NULL, PRIMARY KEY (version))")
                    new.commit()
                sync(hidden)
                hidden.rename(file)  # an empty file is not ours, since a kill never leaves one
                sync(file.parent)
            finally:
                hidden.unlink(missing_ok=True)
            return
        self.check_file(file)

    def check_file(self, file: Path) -> None:
        """Check that an SQLite file is intact, ours, and of a known format, without writing to it.

        Raises:
            As the class.
        """
        remedy = "restore it from a backup, or move it away to begin a new store"
        if not file.is_file():
            raise UsageError(f"{file}: not a file; give the path of the store's database")
        with open(file, "rb") as stream:
            head = stream.read(100)
        size = file.stat().st_size
        if not head:
            raise DamagedFileError(f"{file}: the store's database is empty; {remedy}")
        if not head.startswith(_MAGIC):
            raise DamagedFileError(
                f"{file}: the store's database cannot be used: the file is not a database (or its beginning was "
                f"overwritten); {remedy}"
            )
        log = file.with_name(f"{file.name}-wal")
        page, changed, pages, valid = (
            struct.unpack(">H", head[16:18])[0],
            head[24:28],
            struct.unpack(">I", head[28:32])[0],
            head[92:96],
        ) if len(head) == 100 else (0, b"", 1, b"")  # fmt: skip
        whole = (65536 if page == 1 else page) * pages
        torn = len(head) < 100 or (changed == valid and size < whole)
        if torn and not (log.exists() and log.stat().st_size):  # the log may hold data that the file lacks
            raise DamagedFileError(f"{file}: the store's database is truncated: {size} of {whole} bytes; {remedy}")
        application = struct.unpack(">I", head[68:72])[0]
        if application not in (0, schema.APPLICATION):
            raise self._foreign([f"application_id {application:#x}"])
        look = sa.create_engine(
            "sqlite://", creator=lambda: connect_read_only(file, self.lock_s), poolclass=sa.pool.NullPool
        )
        try:
            with look.connect() as db:
                others = schema.strangers(db)
                if others:
                    raise self._foreign(others)
                self.known_version(db)
        finally:
            look.dispose()

    def _foreign(self, others: list[str]) -> ForeignFileError:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        return ForeignFileError(
            f"{self.name}: this database belongs to another program ({shown}); it was not changed. Give a separate "
            "file or database (--database), or a separate schema on PostgreSQL (?options=-csearch_path%3DNAME)"
        )

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that reads.

        Raises:
            ArmillaryError: the database cannot be read.
        """
        with self.translated(), contextlib.ExitStack() as closing:
            yield self._begun(self.engine, closing)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that reads and writes; one process at a time can have it open.

        Raises:
            ArmillaryError: the database cannot be written; nothing of the transaction is kept.
        """
        with self.translated(), contextlib.ExitStack() as closing:
            db = self._begun(self._writer, closing)
            if db.dialect.name == "postgresql":
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            yield db

    def _begun(self, engine: sa.Engine, closing: contextlib.ExitStack) -> sa.Connection:
        for left in reversed(range(_TRIES)):
            try:
                return closing.enter_context(engine.begin())
            except sa.exc.OperationalError as error:
                locked = _sqlite_error(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
                if not left or not (locked or (self._known and self.file is None)):
                    raise
                time.sleep(0 if locked else _PAUSE_S)
        raise AssertionError

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Convert every error of the database to one line with the problem, the place and the remedy."""
        try:
            yield
        except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
            raise self._explained(error) from error
        except OSError as error:
            where = f"{error.filename or self.name}"
            remedy = "the store must be writable"
            if error.errno in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
                remedy = "something else is there, or a broken link; move it away, or mount its disk"
            raise ArmillaryError(f"{where}: {error.strerror or error}; {remedy}") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DamagedFileError(
                f"{self.name}: a record of the store is not JSON ({error}); restore it from a backup"
            ) from error

    def _explained(self, error: Exception) -> ArmillaryError:
        cause = getattr(error, "orig", None) or error
        reason = without_passwords(" ".join(str(cause).split()))
        code = _sqlite_error(error)
        again = "what was recorded is kept: run the same command again"
        if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            waited = self.waited_s
            return ArmillaryError(
                f"{self.name}: the store's database was locked for {waited} s{self._holders()}; end that process and "
                "run the same command again"
            )
        if code == "SQLITE_FULL":
            return ArmillaryError(f"{self.name}: the disk is full; free space; {again}")
        if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            return ArmillaryError(
                f"{self.name}: the store's database cannot be written ({reason}); make the file and its folder "
                f"writable; {again}"
            )
        if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return DamagedFileError(
                f"{self.name}: the store's database cannot be used: {reason}; restore it from a backup, or move it "
                "away to begin a new store: runs with a folder keep their results, predictions are lost"
            )
        if code.startswith("SQLITE_IOERR"):
            return ArmillaryError(
                f"{self.name}: the disk failed ({reason}): it is full, was removed, or lacks the locks and shared "
                f"memory that SQLite needs (NFS); {again}"
            )
        if self.file is None and isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
            return ArmillaryError(
                f"{self.name}: the store's database cannot be used: {reason}; is the server running, and may this user "
                f"connect? {again}"
            )
        return ArmillaryError(f"{self.name}: the store's database cannot be used: {reason}")

    def _holders(self) -> str:
        """The processes of this machine that have the database's file open, as far as this user can see them."""
        if self.file is None:
            return ""
        wanted, found = str(self.file.resolve()), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if any(str(entry.readlink()) == wanted for entry in (folder / "fd").iterdir()):
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found.append(f"process {folder.name} ({without_passwords(command)[:80]})")
        others = [text for text in found if not text.startswith(f"process {os.getpid()} ")]
        shown = others or [text.replace("process", "this process,", 1) for text in found]
        return f"; it is open in {'; '.join(shown[:3])}" if shown else ""

    def flush(self, wait_ms: int = 1000) -> None:
        """Move SQLite's log into the file, as far as no other process is using it."""
        if self.file is None or not self.file.exists():
            return
        # The rest stays in the log.
        with contextlib.suppress(sa.exc.SQLAlchemyError, sqlite3.Error):
            raw = self.engine.raw_connection()
            try:
                cursor = raw.cursor()
                cursor.execute(f"PRAGMA busy_timeout={wait_ms}")
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
                cursor.close()
            finally:
                raw.close()

    def backup(self, path: Path) -> None:
        """Write a complete, checked copy of an SQLite database to the new file ``path``.

        Raises:
            UsageError: ``path`` exists already, or the database is not a file.
            ArmillaryError: the copy could not be written, or is damaged.
        """
        if self.file is None:
            raise UsageError(f"{self.name}: back up a database server with its own tools, such as pg_dump")
        if path.exists():
            raise UsageError(f"{path}: already exists; give the name of a new file")
        hidden = aside(path)
        try:
            with self.translated():
                path.parent.mkdir(parents=True, exist_ok=True)
                source = sqlite3.connect(f"{self.file.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_MS / 1000)
                with contextlib.closing(source), contextlib.closing(sqlite3.connect(hidden)) as copy:
                    source.backup(copy)
                    copy.execute("PRAGMA journal_mode=DELETE")  # one file, with no log beside it
                    problems = [row[0] for row in copy.execute("PRAGMA integrity_check") if row[0] != "ok"]
                if problems:
                    raise DamagedFileError(f"{self.file}: the copy is damaged: {problems[0]}; nothing was written")
                sync(hidden)
                hidden.rename(path)
                sync(path.parent)
        finally:
            hidden.unlink(missing_ok=True)

    def problems(self) -> list[str]:
        """The problems that SQLite's own check finds in its file."""
        if self.file is None:
            return []
        with self.reading() as db:
            found = [str(row[0]) for row in db.execute(sa.text("PRAGMA integrity_check")) if row[0] != "ok"]
            pages, size = (db.execute(sa.text(f"PRAGMA {name}")).scalar_one() for name in ("page_count", "page_size"))
            log = self.file.with_name(f"{self.file.name}-wal")
            # SQLite ignores what follows its last page; while a log is open, pages may be cut off that are still there
            rest = self.file.stat().st_size - pages * size
            if rest > 0 and not (log.exists() and log.stat().st_size):
                found.append(f"{counted(rest, 'byte')} follow its last page, which never happens in an SQLite database")
            keys = db.execute(sa.text("PRAGMA foreign_key_check")).all()
        return [f"{self.file}: {text}" for text in found] + [
            f"{self.file}: table {row[0]}, row {row[1]}: refers to a missing row of {row[2]}" for row in keys
        ]

    def close(self) -> None:
        """Empty the log and end all connections."""
        self.flush()
        self.engine.dispose()


def connect_read_only(file: Path, wait_s: float = _BUSY_MS / 1000) -> sqlite3.Connection:
    """A connection to an SQLite file that cannot change it.

    Without a log, SQLite must not create any file beside it, not even briefly.
    """
    beside = [file.with_name(f"{file.name}-{suffix}") for suffix in ("wal", "journal")]
    mode = "mode=ro" if any(path.exists() for path in beside) else "mode=ro&immutable=1"
    uri = f"{file.absolute().as_uri()}?{mode}"
    return sqlite3.connect(uri, uri=True, timeout=wait_s, check_same_thread=False, isolation_level=None)


def _sqlite_error(error: Exception) -> str:
    return str(getattr(getattr(error, "orig", None) or error, "sqlite_errorname", ""))


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `begin` says so
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def begin(db: sa.Connection) -> None:
    """A writing transaction takes its lock at once, so that nothing changes between its read and its write."""
    db.exec_driver_sql("BEGIN IMMEDIATE" if db.get_execution_options().get(_WRITE) else "BEGIN")

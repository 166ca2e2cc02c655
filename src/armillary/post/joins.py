"""Joins and parts of files of items, line by line: the memory does not depend on the number of items.

Each file appears only when it is complete, and is a pure function of its inputs. So a call after a kill writes the same
bytes again.

Trade-off: a random order is a sort by the hash of each line in a temporary SQLite database, about 60 bytes per line on
disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from armillary.files import aside, sync
from armillary.recipe import ArmillaryError, UsageError

_CACHE_KIB = 8192


@dataclass(frozen=True)
class Written:
    """A file of lines: its path, the number of lines and its SHA-256."""

    path: Path
    lines: int
    sha256: str

    @property
    def node(self) -> str:
        """The file as a node of the lineage."""
        return f"data:{self.sha256}"


def lines_of(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield lines ``start`` to ``stop`` of a file, from 0; each ends with a line end.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            for line in itertools.islice(file, start, stop):
                yield line if line.endswith(b"\n") else line + b"\n"
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give an existing file") from None


def write_lines(path: Path, lines: Iterable[bytes]) -> Written:
    """Write ``lines``, which end with line ends; an older file of that name stays until the new one is complete.

    Raises:
        ArmillaryError: the file cannot be written.
    """
    hidden, count, total = aside(path), 0, hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(hidden, "wb") as file:
            for line in lines:
                file.write(line)
                total.update(line)
                count += 1
        sync(hidden)
        hidden.replace(path)
        sync(path.parent)
    except OSError as error:
        raise ArmillaryError(f"{path}: cannot be written ({error.strerror}); free space and call again") from error
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink()
    return Written(path, count, total.hexdigest())


def in_random_order(path: Path, most: int) -> Iterator[bytes]:
    """Yield ``most`` lines of a file in the order of their SHA-256, so a smaller part is the beginning of a larger one.

    Raises:
        UsageError: the file cannot be read.
        ArmillaryError: the folder of temporary files is full.
    """
    with temporary_table("lines (key blob, start integer, length integer)") as table:
        table.executemany("insert into lines values (?, ?, ?)", _places(path))
        places = table.execute("select start, length from lines order by key, start limit ?", (most,))
        with open(path, "rb") as file:
            for start, length in places:
                file.seek(start)
                line = file.read(length)
                yield line if line.endswith(b"\n") else line + b"\n"


@contextlib.contextmanager
def temporary_table(columns: str) -> Iterator[sqlite3.Connection]:
    """A database with one table in a temporary file, which disappears with the process.

    Raises:
        ArmillaryError: the folder of temporary files is full.
    """
    with contextlib.closing(sqlite3.connect("")) as database:
        database.execute(f"pragma cache_size = -{_CACHE_KIB}")
        database.execute("pragma temp_store = file")
        try:
            database.execute(f"create table {columns}")
            yield database
        except sqlite3.OperationalError as error:
            raise ArmillaryError(
                f"the temporary database failed ({error}); free space in the folder of temporary files, or name "
                "another one in SQLITE_TMPDIR"
            ) from error


def _places(path: Path) -> Iterator[tuple[bytes, int, int]]:
    start = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                yield hashlib.sha256(line).digest(), start, len(line)
                start += len(line)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give an existing file") from None

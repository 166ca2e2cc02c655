"""Brings a run in a tracker up to what the run's folder holds, once or again and again.

A lock in the run's folder keeps two processes from writing one run to one tracker. After an error the writer is opened
anew, which reads what the tracker has, since a request without an answer may have been carried out.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from armillary.recipe import ArmillaryError, BusyError, lock, passwords_in, without_passwords
from armillary.trackers.destination import Destination
from armillary.trackers.source import RunFiles
from armillary.trackers.writers import Writer, open_writer

_WHERE = "(raised as a result of Query-invoked autoflush"  # a line of SQLAlchemy before the error itself
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)


class TrackerError(ArmillaryError):
    """A tracker could not be written to; the text has no secret."""


class Mirror:
    """One run at one destination; ``close`` must be called once ``sync`` has been."""

    def __init__(self, source: RunFiles, where: Destination) -> None:
        self.source, self.where = source, where
        self._writer: Writer | None = None
        self._lock: Any = None

    def sync(self) -> int:
        """Add what the tracker lacks; return the number of rows.

        Raises:
            FileNotFoundError: the run's folder has no specification (yet).
            BusyError: another process writes this run to this tracker.
            TrackerError: the tracker failed; the next call opens it anew.
            ArmillaryError: a file of the run cannot be read.
        """
        if self._lock is None:
            _ = self.source.spec  # a folder that is not there yet cannot be locked
            self._lock = _locked(self.source.folder / f".tracker-{self.where.tracker}.lock")
        added = 0
        if self._writer is None:
            about = self.source.about()
            self._writer = self._guarded(lambda: open_writer(about, self.where))
        writer = self._writer
        for rows in self.source.rows_after(writer.last):
            self._guarded(lambda rows=rows: writer.write(rows))  # type: ignore[misc]
            added += len(rows)
        return added

    def close(self) -> None:
        """Tell the tracker how the run stands, and release it.

        Raises:
            TrackerError: the tracker failed.
        """
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                state = self.source.state()
                self._guarded(lambda: writer.close(state))
        finally:
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _guarded(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:
            self._writer = None
            raise TrackerError(described(error)) from error
        except SystemExit as error:  # of a package
            self._writer = None
            raise TrackerError("the package ended the program") from error


def described(error: BaseException, environment: Mapping[str, str] = os.environ) -> str:
    """The first line of an error, without secrets of the environment and without passwords of URLs."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(_WHERE)]
    text = (lines or [type(error).__name__])[0]
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    secrets = [value for name, value in environment.items() if _SECRET.search(name) and len(value) >= 6]
    secrets += [password for value in environment.values() for password in passwords_in(value) if len(password) >= 4]
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return without_passwords(text)[:300]


def _locked(path: Path) -> Any:
    """An open file that holds the lock; a folder that cannot be written to is read without one."""
    try:
        file = open(path, "a")  # noqa: SIM115 (closed by the caller)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return io.BytesIO()
    try:
        lock(file.fileno(), path, wait=False)
    except BlockingIOError as error:
        file.close()
        raise BusyError(f"{path.parent}: another process writes this run to {path.name[9:-5]}; wait for it") from error
    return file

"""Checks whether another process has locked a file of the store, for instance to train a run."""

from __future__ import annotations

import fcntl
from pathlib import Path


def in_use(folder: Path) -> bool:
    """Whether a process is training in the run's folder."""
    return is_locked(folder / ".lock")


def is_locked(path: Path) -> bool:
    """Whether a process has locked the file; False if the file is missing or cannot be opened."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file is missing or unreadable
        return False
    return False

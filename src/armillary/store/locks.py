"""Whether another process holds a file of the store locked, as those do that train a run."""

from __future__ import annotations

import fcntl
from pathlib import Path


def in_use(folder: Path) -> bool:
    """Whether a process trains in the run's folder."""
    return is_locked(folder / ".lock")


def is_locked(path: Path) -> bool:
    """Whether a process holds the file locked; False where the file is missing or cannot be opened."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no file, or none that may be looked at
        return False
    return False

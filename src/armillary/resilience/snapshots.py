"""Where snapshots lie: in the machine's memory, which outlives the processes of a run but not the machine.

A snapshot is a checkpoint in every respect but its place. The place is named by a token in the run's folder: a folder
that was removed and made anew never meets the snapshots of an earlier run.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from pathlib import Path

from armillary.recipe import ArmillaryError

_SHARED = Path("/dev/shm")
_TOKEN = "snapshots"


def memory_folder(folder: Path) -> Path:
    """The folder for snapshots of the run in ``folder``; it belongs to this user alone. Call it on one rank.

    Raises:
        ArmillaryError: this machine has no memory file system, it or the run's folder cannot be written to, or another
            user holds the name; with what to do.
    """
    if not os.access(_SHARED, os.W_OK):
        raise ArmillaryError(
            f"{_SHARED}: this machine has no writable memory file system; leave snapshots out, or mount one there"
        )
    try:
        place = _SHARED / f"armillary-{os.geteuid()}-{_token(folder / _TOKEN)}"
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ArmillaryError(
            f"{error.filename or _SHARED}: snapshots cannot be kept there ({error.strerror}); make room or give "
            "access, or leave snapshot_every_steps out"
        ) from error
    about = place.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise ArmillaryError(
            f"{place}: belongs to another user, or others can write to it; remove {folder / _TOKEN} for a new place"
        )
    return place


def forget(folder: Path) -> None:
    """Remove the snapshots of the run in ``folder``, if there are any: it has ended, or its last step is on disk."""
    if (folder / _TOKEN).exists():
        with contextlib.suppress(ArmillaryError, OSError):
            shutil.rmtree(memory_folder(folder))
            (folder / _TOKEN).unlink()


def _token(file: Path) -> str:
    """What ``file`` says, or something new that it says from now on."""
    try:
        found = file.read_text(encoding="ascii")
    except (FileNotFoundError, UnicodeDecodeError):
        found = ""
    if len(found) == 32 and set(found) <= set("0123456789abcdef"):
        return found
    made = secrets.token_hex(16)
    file.write_text(made, encoding="ascii")
    return made

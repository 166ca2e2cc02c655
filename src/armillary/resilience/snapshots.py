"""The folder of snapshots, in the machine's memory: it survives the processes of a run but not the machine.

A snapshot is a checkpoint in another place. A token in the run's folder names this place, so a folder that was deleted
and created again never finds the snapshots of an earlier run.

A run that was killed and never resumed leaves its snapshots in memory. The next run of the same user removes them if
their process is dead and they have not changed for an hour.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import time
from pathlib import Path

from armillary.recipe import ArmillaryError

_SHARED = Path("/dev/shm")
_TOKEN = "snapshots"
_OWNER = "owner"  # file in the folder of snapshots that names the writing process
_ABANDONED_S = 3600.0


def memory_folder(folder: Path, machine: str = "") -> Path:
    """The folder for snapshots of the run in ``folder``; it belongs to this user alone. Call it on one rank.

    ``machine`` names the machine if the run has several, of which each calls this after the first has.

    Raises:
        ArmillaryError: this machine has no memory file system, it or the run's folder is not writable, or another user
            has a folder of this name; with a remedy.
    """
    if not os.access(_SHARED, os.W_OK):
        raise ArmillaryError(
            f"{_SHARED}: this machine has no writable memory file system; leave snapshots out, or mount one there"
        )
    try:
        place = _SHARED / f"{_prefix()}{_token(folder / _TOKEN)}{machine and '-' + machine}"
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ArmillaryError(
            f"{error.filename or _SHARED}: snapshots cannot be kept there ({error.strerror}); free space or fix "
            "permissions, or leave snapshot_every_steps out"
        ) from error
    if not _is_own(place):
        raise ArmillaryError(
            f"{place}: belongs to another user, or others can write to it; remove {folder / _TOKEN} for a new place"
        )
    with contextlib.suppress(OSError):  # the memory is full; the owner then counts as unknown
        (place / _OWNER).write_text(_process(os.getpid()), encoding="ascii")
    forget_abandoned()
    return place


def forget_abandoned() -> None:
    """Remove snapshots of this user whose process is dead and that have not changed for an hour."""
    for place in _SHARED.glob(f"{_prefix()}*"):
        with contextlib.suppress(OSError):
            if _is_own(place) and time.time() - place.stat().st_mtime > _ABANDONED_S and not _is_owned(place):
                shutil.rmtree(place, ignore_errors=True)


def _prefix() -> str:
    return f"armillary-{os.geteuid()}-"


def _is_own(place: Path) -> bool:
    """Whether this user owns the folder and other users cannot write to it."""
    about = place.lstat()
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o077


def _is_owned(place: Path) -> bool:
    """Whether the process that writes the snapshots lives."""
    try:
        owner = (place / _OWNER).read_text(encoding="ascii")
        return owner == _process(int(owner.split()[0]))
    except (OSError, ValueError, IndexError):
        return False


def _process(number: int) -> str:
    """A process by its id and start time, since ids are reused."""
    fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()
    return f"{number} {fields[19]}"


def forget(folder: Path) -> None:
    """Remove the snapshots of the run in ``folder``, if any; called when it has ended or its last step is on disk.

    On a machine of several, call ``forget_here`` before.
    """
    forget_here(folder)
    with contextlib.suppress(OSError):
        (folder / _TOKEN).unlink(missing_ok=True)


def forget_here(folder: Path) -> None:
    """Remove the snapshots that this machine has of the run in ``folder``; its other machines still find theirs."""
    with contextlib.suppress(OSError):
        if (folder / _TOKEN).exists():
            for place in _SHARED.glob(f"{_prefix()}{_token(folder / _TOKEN)}*"):
                if _is_own(place):
                    shutil.rmtree(place)


def _token(file: Path) -> str:
    """The token in ``file``; a new one is written if there is none."""
    try:
        found = file.read_text(encoding="ascii")
    except (FileNotFoundError, UnicodeDecodeError):
        found = ""
    if len(found) == 32 and set(found) <= set("0123456789abcdef"):
        return found
    made = secrets.token_hex(16)
    file.write_text(made, encoding="ascii")
    return made

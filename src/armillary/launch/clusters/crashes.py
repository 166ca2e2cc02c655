"""Why the work of a job failed: the failing process records its error, so that no node is excluded for the program's.

A job sets ``ARMILLARY_CRASH`` to the file of the record. Without a record the processes were killed, or could not even
start, and the cause is the node's.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import traceback
from collections.abc import Sequence
from pathlib import Path

from armillary.launch.clusters.attempts import NodeEnd, first_failed, lost_nodes, write_record
from armillary.recipe import ArmillaryError, without_passwords

CRASH = "ARMILLARY_CRASH"
_LONGEST = 200
# Signals by which a program ends itself. SIGKILL is sent from outside, also where memory runs out.
_OWN = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
# Errors of a device or a disk, as Python reports them.
_HARDWARE = re.compile(r"^([\w.]*\.)?AcceleratorError\b|\[Errno (5|6|19|121)\]|Input/output error")


class LostRankError(ArmillaryError):
    """A rank was lost; ``crash`` is the error or signal that ended it, None if it was killed, froze, or is away."""

    def __init__(self, message: str, crash: str | None = None) -> None:
        super().__init__(message)
        self.crash = crash


def crash_of_signal(number: int) -> str | None:
    """A crash of the program by this signal; None if the signal came from outside."""
    return f"signal {number}" if number in _OWN else None


def culprits(nodes: Sequence[str], ends: Sequence[NodeEnd]) -> tuple[tuple[str, ...], str]:
    """The nodes that may have caused the failure of an attempt, and the crash if it was one.

    Lost nodes are the cause. Else it is the node that failed first, unless its processes recorded an error of the
    program: a Python error that is not one of a device or disk.
    """
    lost, first = lost_nodes(nodes, ends), first_failed(ends)
    if lost or first is None or first.code is None:
        return lost, ""
    crash = first.crash or (crash_of_signal(first.code - 128) or "")
    program = crash and not crash.startswith("signal ") and not _HARDWARE.search(crash)
    return () if program else (first.node,), crash


def record_crash(error: BaseException) -> None:
    """Record why this process ends, if it works for a job. A loss of other ranks is not recorded; never fails."""
    place = os.environ.get(CRASH)
    if place is None:
        return
    text = "".join(traceback.format_exception_only(error))
    crash = error.crash if isinstance(error, LostRankError) else text
    if crash is not None:
        with contextlib.suppress(OSError):
            path, plain = Path(place), " ".join(without_passwords(crash).split())
            write_record(path.parent, path.name, crash=plain.encode(errors="replace").decode()[:_LONGEST])

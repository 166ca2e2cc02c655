"""Runs the processes of one node of a job, and records how they end: ``python -m ...member FOLDER -- COMMAND``.

A scheduler starts this on every node. It forwards SIGTERM to the command, whose ranks then write a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from armillary.launch.clusters.attempts import ATTEMPT, FIRST, attempt_numbers, crash_name, write_record
from armillary.launch.clusters.cluster import node_name
from armillary.launch.clusters.crashes import CRASH
from armillary.recipe import ArmillaryError


def run_member(place: Path, attempt: int, command: Sequence[str]) -> int:
    """Run ``command`` and return its exit code, 128 + N for signal N; record start and end in the folder ``place``."""
    node = node_name()
    # A full disk must not end the training; the node then counts as lost if it fails.
    with contextlib.suppress(OSError):
        write_record(place, f"attempt-{attempt}-began-{node}.json")
    first = os.environ.get(FIRST)
    # torchrun compares the endpoint with its own host, which fails where names and addresses differ.
    host = {} if first is None else {"PET_RDZV_CONF": f"is_host={int(first == node)}"}
    crash = {CRASH: str(place / crash_name(attempt, node))}
    child = subprocess.Popen(command, env={**os.environ, **host, **crash})
    before = {
        number: signal.signal(number, lambda number, frame: child.send_signal(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = code if code >= 0 else 128 - code
    with contextlib.suppress(OSError):
        write_record(place, f"attempt-{attempt}-ended-{node}.json", exit=code)
    return code


def _attempt(place: Path) -> int:
    """The number of the current attempt: the supervisor's, or the newest where it runs in another pod."""
    given = os.environ.get(ATTEMPT)
    return int(given) if given else max(attempt_numbers(place), default=1)


def main() -> None:
    """Run the command given after ``--``. The supervisor writes the arguments, so they are not validated."""
    place, _, *command = sys.argv[1:]
    try:
        sys.exit(run_member(Path(place), _attempt(Path(place)), command))
    except (ArmillaryError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

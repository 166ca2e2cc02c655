"""Ends a rank that a launcher started if no step finishes: the launcher then restarts all ranks.

A launcher such as torchrun sees only processes that end. A rank that hangs or is stopped keeps the others waiting in a
collective, up to the timeout of the process group. So a thread of each rank compares the time since its last step with
the limits of `armillary.resilience`, which follow from the measured steps, validations and checkpoints of this attempt.
A stopped process cannot watch itself, but the ranks that wait for it do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from armillary.goodput import EventWriter
from armillary.recipe import EVENTS, ArmillaryError
from armillary.resilience import Detector, Finding, Heartbeats, HeartbeatWriter

_LOOK_S = 0.25


@contextlib.contextmanager
def watched(folder: Path, run: str, rank: int) -> Iterator[HeartbeatWriter]:
    """Yield a heartbeat to which the training thread writes its steps; if they hang, this process ends with status 1.

    Rank 0 then writes an event ``detected`` to the run's ``folder``.
    """
    heartbeats, ended = Heartbeats(multiprocessing, 1), threading.Event()
    writer = heartbeats.writer(0)
    writer.start()
    threading.Thread(target=_watch, args=(heartbeats, ended, folder, run, rank), daemon=True).start()
    try:
        yield writer
    finally:
        ended.set()


def _watch(heartbeats: Heartbeats, ended: threading.Event, folder: Path, run: str, rank: int) -> None:
    detector = Detector()
    while not ended.wait(_LOOK_S):
        found = detector.look(heartbeats.read(), time.monotonic())
        if found is not None and found.what == "hung":
            _end(found, heartbeats.read()[0].step, folder, run, rank)


def _end(found: Finding, step: int, folder: Path, run: str, rank: int) -> None:
    how = f"hung for {found.silent_s:.1f} s (limit {found.limit_s:.1f} s)"
    print(f"rank {rank}: after step {step} the ranks {how}; this process ends, so that the launcher restarts all ranks",
          file=sys.stderr, flush=True)  # fmt: skip
    if rank == 0:
        with contextlib.suppress(ArmillaryError, OSError), EventWriter(folder / EVENTS, run) as events:
            events.write("detected", step, found="hung", how=how, silent_s=found.silent_s, limit_s=found.limit_s)
    os._exit(1)

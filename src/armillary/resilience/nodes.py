"""Decides, after an attempt of a job has failed, whether to restart it and which nodes to leave out.

A job that makes progress may be restarted any number of times. ``max_restarts`` attempts in a row without progress end
it, like the restarts of ranks on one machine. A node that failed ``NODE_FAILURES`` times is excluded. The same crash on
different nodes is one of the program, and counts against none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

NODE_FAILURES = 2

Ending = Literal["done", "stopped", "failed", "refused"]


@dataclass(frozen=True)
class Attempt:
    """One attempt of a job.

    ``ending`` is ``stopped`` for an orderly stop (a time limit, a cancellation), ``refused`` for wrong usage, and None
    if the attempt ended without a record: a lost node, or a kill. ``progress`` is what the results held at its start.
    ``blamed`` are the nodes that failed. ``crash`` is the error or signal that ended the program, empty if a node was
    lost or its processes were killed.
    """

    nodes: tuple[str, ...]
    progress: tuple[int, int]
    ending: Ending | None = None
    blamed: tuple[str, ...] = ()
    crash: str = ""


def excluded_nodes(attempts: Sequence[Attempt]) -> tuple[str, ...]:
    """The nodes that failed ``NODE_FAILURES`` times or more, sorted."""
    crashed: dict[str, set[str]] = {}
    for attempt in attempts:
        if attempt.crash:
            crashed.setdefault(attempt.crash, set()).update(attempt.blamed)
    own = [attempt for attempt in attempts if len(crashed.get(attempt.crash, ())) < 2]
    failures = Counter(node for attempt in own for node in attempt.blamed)
    return tuple(sorted(node for node, times in failures.items() if times >= NODE_FAILURES))


def may_restart(attempts: Sequence[Attempt], progress: tuple[int, int], max_restarts: int) -> bool:
    """Whether to restart after the last of ``attempts`` has failed; ``progress`` is what the results hold now."""
    if attempts and attempts[-1].ending == "refused":
        return False
    in_vain, reached = 0, progress
    for attempt in reversed(attempts):
        if attempt.progress < reached or attempt.ending in ("done", "stopped"):
            break
        in_vain += 1
    return in_vain <= max_restarts

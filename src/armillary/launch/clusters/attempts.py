"""The record of a job's attempts, in the job's folder. Every file is sealed, written once and never changed.

| file | written |
|---|---|
| ``attempt-N.json`` | when attempt N begins: nodes, progress of the results, the cluster's id |
| ``attempt-N-began-NODE.json`` | when a node's processes begin |
| ``attempt-N-crash-NODE.json`` | by a process that fails with an error: the error (`crashes`) |
| ``attempt-N-ended-NODE.json`` | when they end: exit code |
| ``attempt-N-end.json`` | when the attempt ends: how, exit code, nodes that failed, error |
| ``cancel.json`` | when a user cancels the job |
| ``end.json`` | when the job ends: state, exit code, reason |

If a node is lost, its end files are missing, and that is how it is found. Since format 2 a file holds the job's and its
own name, so that a file in the place of another is refused.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.recipe import DamagedFileError, ForeignFileError, read_sealed, write_sealed
from armillary.resilience import Attempt

FORMAT = 2
FIRST = "ARMILLARY_FIRST_NODE"  # the variable with the node that hosts the rendezvous
ATTEMPT = "ARMILLARY_ATTEMPT"  # the variable with the number of the attempt, for the commands of a job
JOBS = "jobs"  # the folder of the jobs' folders, in the folder of the results
CANCEL, END = "cancel.json", "end.json"
_ATTEMPT = re.compile(r"attempt-(\d+)\.json")
_NODE = re.compile(r"attempt-\d+-(began|ended)-(.+)\.json")
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class NodeEnd:
    """How the processes of a node ended: exit code, time, and the error that they recorded.

    ``code`` is None for a node that has not ended, or is lost.
    """

    node: str
    code: int | None
    time_s: float = 0.0
    crash: str = ""


def progress_of(folder: Path) -> tuple[int, int]:
    """What the results in ``folder`` hold: finished runs, and the sum of the steps of the newest checkpoints."""
    runs = [folder, *(folder / "store" / "runs").glob("*")]
    finished = sum((run / "result.json").exists() for run in runs)
    steps = 0
    for run in runs:
        found = [_STEP.fullmatch(checkpoint.name) for checkpoint in (run / "checkpoints").glob("step-*")]
        steps += max((int(match[1]) for match in found if match), default=0)
    return finished, steps


def write_record(place: Path, name: str, **fields: Any) -> None:
    """Write the record ``name`` of the job in the folder ``place``, which has the job's name."""
    write_sealed(place / name, {"format": FORMAT, "job": place.name, "record": name, "time_s": time.time(), **fields})


def read_record(place: Path, name: str) -> dict[str, Any] | None:
    """The record ``name`` of the job in the folder ``place``; None if there is none.

    Raises:
        ForeignFileError: a record of another name or job is in its place, or as ``read_sealed``.
        DamagedFileError: as ``read_sealed``.
    """
    path = place / name
    try:
        found = read_sealed(path, "record of a job", FORMAT, "move it away; only this job's history is lost")
    except (FileNotFoundError, NotADirectoryError):
        return None
    if found["format"] > 1 and (found["job"], found["record"]) != (place.name, name):
        raise ForeignFileError(
            f"{path}: is the record {found['record']} of job {found['job']}; move it away. The file was not changed"
        )
    return found


def attempt_numbers(place: Path) -> list[int]:
    """The numbers of the attempts that have begun, ascending."""
    found = (_ATTEMPT.fullmatch(file.name) for file in place.glob("attempt-*.json"))
    return sorted(int(match[1]) for match in found if match)


def read_attempts(place: Path) -> list[Attempt]:
    """All attempts of the job in the folder ``place``, in order; damaged and missing records are left out."""
    attempts = []
    for number in attempt_numbers(place):
        with contextlib.suppress(DamagedFileError, ForeignFileError, OSError):
            begun = read_record(place, f"attempt-{number}.json")
            ended = read_record(place, f"attempt-{number}-end.json")
            if begun is None:  # it was moved away meanwhile
                continue
            nodes, progress = tuple(begun["nodes"]), (int(begun["progress"][0]), int(begun["progress"][1]))
            if ended is None:
                blamed = lost_nodes(nodes, node_ends(place, number))
                attempts.append(Attempt(nodes, progress, None, blamed))
            else:
                crash = ended.get("crash", "")  # since format 2
                attempts.append(Attempt(nodes, progress, ended["ending"], tuple(ended["blamed"]), crash))
    return attempts


def history(results: Path) -> list[Attempt]:
    """The attempts of all jobs of the results in a folder, oldest job first."""
    places = {}
    for file in results.glob(f"{JOBS}/*/attempt-1.json"):
        with contextlib.suppress(OSError):  # it was moved away meanwhile
            places[file.parent] = file.stat().st_mtime
    return [attempt for place in sorted(places, key=lambda place: places[place]) for attempt in read_attempts(place)]


def node_ends(place: Path, number: int) -> list[NodeEnd]:
    """How each node of an attempt ended, as far as it is recorded; damaged and missing records are left out."""
    ends: dict[str, NodeEnd] = {}
    for file in sorted(place.glob(f"attempt-{number}-*.json")):
        if (found := _NODE.fullmatch(file.name)) is None:
            continue
        with contextlib.suppress(DamagedFileError, ForeignFileError, OSError):
            record, node = read_record(place, file.name), found[2]
            if record is not None and found[1] == "ended":
                crash = read_crash(place, number, node)
                ends[node] = NodeEnd(node, int(record["exit"]), float(record["time_s"]), crash)
            elif record is not None:
                ends.setdefault(node, NodeEnd(node, None))
    return list(ends.values())


def read_crash(place: Path, number: int, node: str) -> str:
    """The error that the processes of a node recorded in an attempt; empty if there is none."""
    with contextlib.suppress(DamagedFileError, ForeignFileError, OSError):
        record = read_record(place, crash_name(number, node))
        return "" if record is None else str(record["crash"])
    return ""


def crash_name(number: int, node: str) -> str:
    """The name of the record of a node's error in an attempt."""
    return f"attempt-{number}-crash-{node}.json"


def lost_nodes(nodes: Sequence[str], ends: Sequence[NodeEnd]) -> tuple[str, ...]:
    """The nodes whose processes have begun and never ended, of ``nodes`` and others with an end.

    Without any end of several nodes all of them were ended from outside, and none is lost.
    """
    members = {*nodes, *(end.node for end in ends)}
    if len(members) == 1:
        return tuple(members) if all(end.code is None for end in ends) else ()
    if not any(end.code is not None for end in ends):
        return ()
    return tuple(end.node for end in ends if end.code is None)


def first_failed(ends: Sequence[NodeEnd]) -> NodeEnd | None:
    """Of nodes that all have ended, the one that failed first; None if none has failed."""
    return min((end for end in ends if end.code), key=lambda end: end.time_s, default=None)

"""Runs the command of a job, records its attempts, and restarts it as ``resilience.nodes`` decides.

``python -m armillary.launch.clusters.supervise KIND RESTARTS FOLDER -- COMMAND`` is the last line of a job file.
SIGUSR1 announces the time limit; SIGTERM is a cancellation or preemption by the cluster; ``cancel.json`` in the job's
folder is a cancellation by the user. All of them reach the command as SIGTERM, so that its ranks write a checkpoint.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from armillary.goodput import read_events
from armillary.launch.clusters.attempts import (
    ATTEMPT,
    CANCEL,
    END,
    NodeEnd,
    attempt_numbers,
    crash_name,
    history,
    node_ends,
    progress_of,
    read_attempts,
    read_crash,
    read_record,
    write_record,
)
from armillary.launch.clusters.cluster import FINAL, Host, node_name
from armillary.launch.clusters.crashes import CRASH, culprits
from armillary.launch.clusters.kinds import find_cluster
from armillary.recipe import ArmillaryError, BusyError, counted, exclusive
from armillary.resilience import NODE_FAILURES, Attempt, Ending, excluded_nodes, may_restart

_USAGE = 2  # exit code of wrong usage: a restart would end in the same way
_PAUSE_S = 1.0
_LOOK_S = 1.0
_LAST_S = 30.0  # wait for the records of nodes that still shut down
_ROOM_S = 60.0  # wait for room on a full disk
_EARLIER_S = 60.0
_LIBC, _PR_SET_PDEATHSIG = ctypes.CDLL(None), 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Supervisor:
    """The job in the folder ``place``, on a cluster that ``host`` sees from inside."""

    def __init__(self, place: Path, max_restarts: int, host: Host) -> None:
        self.place, self.max_restarts, self.host = place, max_restarts, host
        self.results = place.parent.parent
        self.native = host.native()
        self.asked: int | None = None  # the first signal that requested a stop
        self.child: subprocess.Popen[bytes] | None = None
        self.number = 0  # of the current attempt
        self.unrecorded: list[Attempt] = []  # attempts whose records a full disk refused

    def supervise(self, command: Sequence[str]) -> int:
        """Run ``command`` until the job is done, has failed for good, or is given back; return the exit code."""
        if read_record(self.place, END) is not None:
            return FINAL  # the cluster has started it again by itself
        if self.cancelled():  # while it was pending
            return self._end("cancelled", 0, "before it started")
        environment = self.host.environment(self.place.name)
        while True:
            ending, code = self._attempt(command, environment)
            if self.cancelled():
                return self._end("cancelled", code, "`armillary submit` with the same file resumes it")
            if ending == "done":
                return self._end("done", code, "the work is finished")
            if ending == "refused":
                return self._end("failed", code, "see the lines above; a restart would end in the same way")
            if ending == "stopped" and self.asked != signal.SIGUSR1:
                return code  # Slurm's own requeue starts the job again; a cancellation from outside does not
            attempts = [*read_attempts(self.place), *self.unrecorded]
            if ending == "failed" and not may_restart(attempts, progress_of(self.results), self.max_restarts):
                many = counted(self.max_restarts, "restart")
                return self._end("failed", code, f"no progress after {many}; see the lines above")
            try:
                if self._given_back():
                    return 0
            except ArmillaryError as error:
                return self._end("failed", code, f"the cluster does not restart it: {error}")
            if self.asked:
                return self._end("stopped", code, "`armillary submit` with the same file resumes it")
            time.sleep(_PAUSE_S)

    def cancelled(self) -> bool:
        """Whether a user has cancelled the job."""
        return (self.place / CANCEL).exists()

    def stop(self, number: int, frame: object = None) -> None:
        """Handle a signal: the command gets SIGTERM, for a further signal again."""
        self.asked = self.asked or number
        if self.child is not None:
            self.child.send_signal(signal.SIGTERM)

    def _attempt(self, command: Sequence[str], environment: dict[str, str]) -> tuple[Ending, int]:
        """Run one attempt, and record its start and end."""
        self._await_earlier()
        number = self.number = max([self.number, *attempt_numbers(self.place)]) + 1
        nodes, progress = self.host.nodes(), progress_of(self.results)
        fields = {"nodes": list(nodes), "progress": list(progress), "native": self.native}
        recorded = self._write(f"attempt-{number}.json", **fields)
        self._say(f"attempt {number} begins on {', '.join(nodes)}")
        node = node_name()
        crash_file = str(self.place / crash_name(number, node))
        code = self._call(command, {**environment, ATTEMPT: str(number), CRASH: crash_file})
        ending: Ending = "failed"
        if code == 0:
            ending = "done"
        elif self.asked or self.cancelled():
            ending = "stopped"
        elif code == _USAGE or self._diverged():
            ending = "refused"
        blamed: tuple[str, ...] = ()
        crash = ""
        if ending == "failed":
            alone = [NodeEnd(node, code, time.time(), read_crash(self.place, number, node))]
            blamed, crash = culprits(nodes, self._ends(number) or (alone if len(nodes) == 1 else ()))
        self._write(f"attempt-{number}-end.json", ending=ending, exit=code, blamed=list(blamed), crash=crash)
        if not recorded:
            self.unrecorded.append(Attempt(nodes, progress, ending, blamed, crash))
        why = f"; node {', '.join(blamed)} failed" if blamed else "; this is no fault of a node" if crash else ""
        why += f" ({crash})" if crash else ""
        self._say(f"attempt {number} {ending}, exit code {code}{why}")
        return ending, code

    def _ends(self, number: int) -> list[NodeEnd]:
        """How each node ended. On Kubernetes the other pods may still shut down when the work of this one has ended."""
        end = time.monotonic() + _LAST_S
        while True:
            ends = node_ends(self.place, number)
            if all(node.code is not None for node in ends) or time.monotonic() > end or self.asked or self.cancelled():
                return ends
            time.sleep(_LOOK_S)

    def _await_earlier(self) -> None:
        """Wait for processes of an earlier attempt, which write a checkpoint and end if their parent was killed."""
        end = time.monotonic() + _EARLIER_S
        while time.monotonic() < end and not self.asked:
            try:
                with exclusive(self.results / ".lock", "waits to start a job"):
                    return
            except BusyError:
                time.sleep(_LOOK_S)

    def _call(self, command: Sequence[str], environment: dict[str, str]) -> int:
        if self.asked:
            return 128 + self.asked
        try:
            self.child = child = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                preexec_fn=_stop_with_parent,  # noqa: PLW1509 - one system call, which takes no lock
            )
        except OSError as error:
            self._say(f"{command[0]}: {error.strerror}; is it installed on this node?")
            return _USAGE
        if self.asked:  # a signal came between the lines above
            child.send_signal(signal.SIGTERM)
        announced = False
        while True:
            try:
                code = child.wait(_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                if not announced and self.cancelled():
                    announced = True
                    self._say("cancelled: stopping after a checkpoint")
                    child.send_signal(signal.SIGTERM)
        self.child = None
        return code if code >= 0 else 128 - code

    def _given_back(self) -> bool:
        """Whether the cluster restarts the job; nodes that failed too often are left out."""
        new = self.host.excludable(self.native, excluded_nodes(history(self.results)))
        if new:
            self._say(f"{', '.join(new)} failed {NODE_FAILURES} times and will not be used again")
        return self.host.restart(self.place, self.native, new)

    def _diverged(self) -> bool:
        """Whether the run itself has diverged, which a restart would repeat."""
        try:
            last = list(read_events(self.results / "events.jsonl"))[-1:]
        except (ArmillaryError, OSError):
            return False
        return any(event.kind == "fault" and event.data.get("problem") == "diverged" for event in last)

    def _end(self, state: str, code: int, why: str) -> int:
        end = time.monotonic() + _ROOM_S
        while not self._write(END, state=state, exit=code, why=why) and time.monotonic() < end and not self.asked:
            time.sleep(_LOOK_S)
        self._say(f"{state}: {why}")
        return FINAL if state == "failed" else code

    def _write(self, name: str, **fields: object) -> bool:
        """Whether the record was written: a full disk must not end the work."""
        try:
            write_record(self.place, name, **fields)
        except OSError as error:
            self._say(f"{name} could not be written: {error.strerror}")
            return False
        return True

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the log may be on a full disk too
            print(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {self.place.name}: {text}", flush=True)


def _stop_with_parent() -> None:
    """Request SIGTERM for this process when its parent dies, so that no training continues without a supervisor."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """Parse the arguments, which ``armillary submit`` has written."""
    kind, restarts, place, _, *command = sys.argv[1:]
    try:
        job = Supervisor(Path(place), int(restarts), find_cluster(kind).host)
        for number in _SIGNALS:
            signal.signal(number, job.stop)
        sys.exit(job.supervise(command))
    except (ArmillaryError, OSError) as error:
        print(f"error {error}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

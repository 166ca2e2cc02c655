"""Starts and watches ranks on this machine.

If a rank dies, freezes or hangs, all ranks are ended and restart from the last checkpoint. An outcome of the run itself
(diverged, stopped, folder in use) is not a crash: the rank returns it as a value, since a restart would give the same
outcome.

A rank runs in a slot: a place on this machine, such as one of its accelerators. If the same slot loses its rank
repeatedly, the run continues without this slot: with a free slot, or with fewer ranks.

Ranks are forked from a process with all imports done, so a restart does not repeat them.

Only this process handles signals. It requests a stop through a shared byte, so Ctrl-C, which a terminal sends to the
whole group, has the same effect as a signal to this process alone. A second signal ends the ranks at once. If this
process dies, the ranks stop.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import select
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

from armillary.launch.clusters.crashes import LostRankError, crash_of_signal
from armillary.launch.ranks.forks import start_fork_server
from armillary.recipe import ArmillaryError, counted
from armillary.resilience import KINDS, Detector, FaultClock, FaultState, Finding, Heartbeats, HeartbeatWriter

_LOOK_S = 0.02
_WORDS = 400  # characters of a dead rank's last output
_PATIENCE_S = 30.0  # wait for the other ranks after one has ended with an error


@dataclass(frozen=True)
class RankContext:
    """The arguments of a rank from the process that starts it.

    ``stop()`` returns whether a stop was requested, ``heartbeat`` writes heartbeats, and ``faults`` are the faults to
    inject. ``slot`` is its place on this machine, if this process started it.
    """

    stop: Callable[[], bool]
    heartbeat: HeartbeatWriter | None = None
    faults: FaultState | None = None
    slot: int | None = None


@dataclass(frozen=True)
class Supervision:
    """How ranks are watched.

    At most ``max_restarts`` restarts in a row may make no progress. Then, if one slot was the cause, the run continues
    with the first number of ranks in ``fewer`` (descending) that the other slots allow. ``report`` gets each finding
    and action as the kind and data of an event. ``compiles``: whether ranks compile their layers.
    """

    max_restarts: int = 3
    fewer: tuple[int, ...] = ()
    report: Callable[..., None] = lambda kind, step, **data: None
    faults: Callable[[Any], FaultState | None] = lambda context: None
    clock: FaultClock | None = None
    compiles: bool = False


def start_ranks(act: Callable[[RankContext], Any], ranks: int, watch: Supervision = Supervision()) -> Any:
    """Call ``act(context)`` in each of ``ranks`` ranks; return the first rank's result. ``act`` must be picklable.

    Raises:
        ArmillaryError: raised by ``act``, or ranks died too often (``Supervision``).
    """
    context = mp.get_context("forkserver")
    team = _Team(context, act, ranks, watch)
    start_fork_server(watch.compiles)
    with _signals(team.stop):
        return team.train()


@contextlib.contextmanager
def _signals(stop: Any) -> Iterator[None]:
    """Ctrl-C and SIGTERM set ``stop``; a second signal ends this process."""

    def ask(number: int, frame: object) -> None:
        if stop.value:
            raise KeyboardInterrupt
        stop.value = 1

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Loss:
    """A lost rank: its number, how it was lost, its last output, and its crash if it was not lost from outside."""

    rank: int | None
    how: str
    last_output: str = "nothing"
    finding: Finding | None = None
    crash: str | None = None


class _Team:
    """All ranks of a run, over all attempts."""

    def __init__(self, context: Any, act: Callable[[RankContext], Any], ranks: int, watch: Supervision) -> None:
        self.context, self.act, self.ranks, self.watch = context, act, ranks, watch
        self.slots = list(range(ranks))  # slots that can run a rank; the first ``ranks`` of them do
        self.stop = context.RawValue("b", 0)
        self.heartbeats, self.detector = Heartbeats(context, ranks), Detector()
        self.faults = watch.faults(context)
        self.processes: list[Any] = []
        self.receivers: list[Any] = []
        self.outcomes: dict[int, Any] = {}
        self.last_output: dict[int, str] = {}

    def train(self) -> Any:
        """Run attempts until one succeeds; return the outcome of rank 0."""
        reached, in_vain, attempt = -1, 0, 0
        culprits: Counter[int] = Counter()  # slots that lost their rank since the last progress
        while True:
            try:
                loss = self._attempt(attempt)
            finally:
                self._end()
            if loss is None:
                # An error of any rank ends all; an error of a rank that only lost the others says less.
                outcome = next((o for o in self.outcomes.values() if isinstance(o, ArmillaryError)), None)
                if outcome is not None:
                    raise outcome
                return self.outcomes[0]
            step = max(heartbeat.step for heartbeat in self.heartbeats.read())
            if step > reached:
                reached, in_vain = step, 0
                culprits.clear()
            else:
                in_vain += 1
            self._report(loss, step)
            if loss.rank is not None:
                culprits[self.slots[loss.rank]] += 1
            if 0 < self.watch.max_restarts <= in_vain and not self.stop.value and self._leave(culprits, loss, step):
                in_vain = 0
                culprits.clear()
            if in_vain >= self.watch.max_restarts or self.stop.value:
                again = f", and again after {counted(in_vain, 'restart')}" if in_vain else ""
                who = "a rank" if loss.rank is None else f"rank {loss.rank}"
                raise LostRankError(
                    f"{who} {loss.how}{again}; its last output: {loss.last_output}; the same command "
                    "resumes from the last checkpoint",
                    loss.crash,
                )
            attempt += 1
            self.watch.report("restart", step, attempt=attempt)

    def _leave(self, culprits: Counter[int], loss: _Loss, step: int) -> bool:
        """Drop the slot that caused most losses; False if there is none, or too few slots remain."""
        slot, times = next(iter(culprits.most_common(1)), (-1, 0))
        rest = [other for other in self.slots if other != slot]
        ranks = next((number for number in (self.ranks, *self.watch.fewer) if number <= len(rest)), None)
        if 2 * times <= self.watch.max_restarts or ranks is None:
            return False
        before, self.slots, self.ranks = self.ranks, rest, ranks
        if ranks < before:
            self.watch.report("degraded", step, culprit=loss.rank, ranks=ranks, before=before)
        return True

    def _report(self, loss: _Loss, step: int) -> None:
        silent = {} if loss.finding is None else {"silent_s": loss.finding.silent_s, "limit_s": loss.finding.limit_s}
        found = "dead" if loss.finding is None else loss.finding.what
        self.watch.report("detected", step, found=found, culprit=loss.rank, how=loss.how, **silent)

    def _attempt(self, attempt: int) -> _Loss | None:
        """Start all ranks and watch them until all have ended (None) or one is lost."""
        self.heartbeats.clear()
        self.detector.restart()
        self.outcomes.clear()
        self.last_output.clear()
        if self.faults is not None:
            self.faults.processes[:] = [0] * len(self.faults.processes)  # the numbers may be reused
        try:
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        except (RuntimeError, OSError) as error:
            raise ArmillaryError(f"{self.ranks} ranks could not be started on this machine: {error}") from error
        for rank in range(self.ranks):
            receiver, sender = self.context.Pipe(duplex=False)
            slot = self.slots[rank]
            environment = {
                "RANK": rank, "LOCAL_RANK": slot, "WORLD_SIZE": self.ranks, "LOCAL_WORLD_SIZE": self.ranks,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port,
                # this process hosts the TCP store, a new one for each attempt
                "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": attempt,
            }  # fmt: skip
            inside = (self.heartbeats.writer(rank), self.faults, slot)
            arguments = (self.act, environment, self.stop, inside, sender)
            process = self.context.Process(target=_be_rank, args=arguments, daemon=True)
            process.start()
            sender.close()
            self.processes.append(process)
            self.receivers.append(receiver)
        return self._watch()

    def _watch(self) -> _Loss | None:
        failed_at: float | None = None
        while len(self.outcomes) < self.ranks:
            waiting = [process.sentinel for rank, process in enumerate(self.processes) if rank not in self.outcomes]
            connection.wait(
                [*waiting, *(receiver for receiver in self.receivers if not receiver.closed)], timeout=_LOOK_S
            )
            self._listen()
            for rank, process in enumerate(self.processes):
                if rank not in self.outcomes and process.exitcode is not None:
                    self._listen()
                    if rank not in self.outcomes:
                        return self._dead(rank, process.exitcode)
            if any(isinstance(outcome, ArmillaryError) for outcome in self.outcomes.values()):
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > _PATIENCE_S:  # the others wait for a stopped rank
                    return None
            else:
                now = time.monotonic()
                self._make_faults(now)
                stopped = [n for n, p in enumerate(self.processes) if n not in self.outcomes and _is_stopped(p.pid)]
                # A rank that has ended no longer beats, and the others may still freeze.
                heartbeats = self.heartbeats.read()[: self.ranks]
                beats = [replace(b, beat_s=now) if n in self.outcomes else b for n, b in enumerate(heartbeats)]
                found = self.detector.look(beats, now, stopped)
                if found is not None and found.what == "straggler":
                    step = max(heartbeat.step for heartbeat in self.heartbeats.read())
                    self.watch.report("straggler", step, culprit=found.rank, late_s=found.silent_s)
                elif found is not None:
                    how = f"{found.what} for {found.silent_s:.1f} s (limit {found.limit_s:.1f} s)"
                    return _Loss(found.rank, how, finding=found)
        return None

    def _make_faults(self, now: float) -> None:
        """Inject the due faults at a rate: kill or stop a rank at any time, or order the rank to inject its fault."""
        if self.faults is None or self.watch.clock is None:
            return
        for rank, kind in self.watch.clock.due(now, self.ranks):
            number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}.get(kind)
            if number is None:
                self.faults.requests[self.slots[rank]] = 1 + KINDS.index(kind)
            elif rank not in self.outcomes:
                step = max(heartbeat.step for heartbeat in self.heartbeats.read())
                self.watch.report("fault", step, culprit=rank, problem=kind, injected=True, ends=True)
                os.kill(self.processes[rank].pid, number)

    def _dead(self, rank: int, code: int) -> _Loss:
        """The rank whose death was the cause: a killed rank, rather than one that noticed it."""
        time.sleep(_LOOK_S)
        self._listen()
        killed = [n for n, p in enumerate(self.processes) if (p.exitcode or 0) < 0 and n not in self.outcomes]
        rank = killed[0] if killed else rank
        code = self.processes[rank].exitcode or code
        how = f"died (signal {-code})" if code < 0 else f"died (exit code {code})"
        last = self.last_output.get(rank)
        return _Loss(rank, how, last or "nothing", crash=crash_of_signal(-code) if code < 0 else last)

    def _listen(self) -> None:
        for rank, receiver in enumerate(self.receivers):
            with contextlib.suppress(EOFError, OSError):
                while not receiver.closed and receiver.poll():
                    kind, value = receiver.recv()
                    if kind == "ended":
                        self.outcomes[rank] = value
                    else:
                        self.last_output[rank] = value
                continue
            receiver.close()

    def _end(self) -> None:
        """End the remaining ranks; an unfinished checkpoint does not count."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
        for process in self.processes:
            process.join()
        for receiver in self.receivers:
            receiver.close()
        self.processes, self.receivers = [], []


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal; false on systems without this information."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
    except OSError:
        return False
    return state == b"T"


def _be_rank(
    act: Callable[[RankContext], Any],
    environment: dict[str, Any],
    stop: Any,
    inside: tuple[HeartbeatWriter, FaultState | None, int],
    sender: Any,
) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    heartbeat, faults, slot = inside
    if faults is not None and faults.is_gone(slot):
        os.kill(os.getpid(), signal.SIGKILL)
    heartbeat.start()
    # The fork server, this process's parent, lives as long as any rank. The death of the watching process shows in the
    # pipe alone: it has an error once its other end is closed.
    watching = select.poll()
    watching.register(sender.fileno(), 0)
    try:
        outcome = act(RankContext(lambda: bool(stop.value) or bool(watching.poll(0)), heartbeat, faults, slot))
    except ArmillaryError as error:
        outcome = error
    except BaseException as error:
        message = " ".join("".join(traceback.format_exception_only(error)).split())
        with contextlib.suppress(OSError):
            sender.send(("died", message if len(message) <= _WORDS else f"{message[:_WORDS]}…"))
        raise SystemExit(1) from None
    with contextlib.suppress(OSError):
        sender.send(("ended", outcome))

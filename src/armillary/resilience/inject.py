"""Injects the faults that happen in long runs, at a chosen step of a chosen rank.

Every fault is real: a process is killed or stopped, a file is damaged, a limit makes the disk full, a connection is
shut down, a bit is flipped. Before the fault, the rank writes a ``fault`` event with ``injected: true``, from which the
ledger reads its time. A fault happens once, even if its step is repeated.

| kind | what happens |
|---|---|
| kill | the process is killed (SIGKILL) |
| gone | the process is killed, and again whenever it is started: its place is broken |
| stop | the process is stopped (SIGSTOP), as by a machine that hangs |
| hang | the training thread sleeps for ever within the next step, as in a deadlock |
| slow | the rank sleeps in the update of each of the next ``steps`` steps |
| nan | a gradient of the next step is not a number |
| flip | a bit of a weight is flipped |
| disk | the rank's checkpoints cannot be written for the next ``steps`` steps, as on a full disk |
| corrupt | a byte of the newest checkpoint is changed |
| network | the rank's connections to all others are shut down |
| node | all ranks of the rank's machine are killed, and its memory with all snapshots is lost |

With ``nodes``, the ranks count as those of this many machines, each with its own memory for snapshots. So the loss of
a machine can be tried on one.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from armillary.recipe import Document, UsageError, load_document

Kind = Literal["kill", "stop", "hang", "slow", "nan", "flip", "disk", "corrupt", "network", "node", "gone"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_PASSING: tuple[Kind, ...] = KINDS[:-2]  # afterwards every rank can go on or restart, and one machine is enough
_ENDING = ("kill", "stop", "hang", "network", "node", "gone")  # no further step follows these


class Fault(Document):
    """One fault, after step ``step`` of ``rank``.

    ``slow`` and ``disk`` last for ``steps`` steps (60); ``slow`` makes each longer by ``seconds`` (0.1).
    """

    kind: Kind
    rank: int = Field(ge=0)
    step: int = Field(ge=1)
    steps: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @property
    def until(self) -> int:
        """The step after which the fault has ended."""
        return self.step + (60 if self.steps is None else self.steps)

    @model_validator(mode="after")
    def _says_what_counts(self) -> Self:
        for name, kinds in (("steps", ("slow", "disk")), ("seconds", ("slow",))):
            if getattr(self, name) is not None and self.kind not in kinds:
                raise ValueError(f"{name} belongs to {' and '.join(kinds)}, but this fault is '{self.kind}'")
        return self


class RandomFaults(Document):
    """``count`` faults of ``kinds``, drawn from a seed: steps from ``first_step`` on, ranks uniformly."""

    count: int = Field(ge=1)
    kinds: tuple[Kind, ...] = _PASSING
    first_step: int = Field(default=1, ge=1)
    seed: int = 0


class FaultRate(Document):
    """Faults of ``kinds`` at random times, one per ``mtbf_s`` seconds on average, also during restarts.

    The times are exponential, the ranks uniform, both from a seed.
    """

    mtbf_s: float = Field(gt=0, allow_inf_nan=False)
    kinds: tuple[Kind, ...] = Field(default=tuple(kind for kind in _PASSING if kind != "disk"), min_length=1)
    seed: int = 0

    @model_validator(mode="after")
    def _kinds_need_no_step(self) -> Self:
        for kind in self.kinds:
            if kind in ("disk", "gone"):
                raise ValueError(f"'{kind}' has no rate; give it under faults, with a step")
        return self


class Faults(Document):
    """The file of ``--inject``: listed faults, faults at drawn steps, faults at a rate, or several of these."""

    format: Literal[1] = 1
    nodes: int | None = Field(default=None, ge=2)
    faults: tuple[Fault, ...] = ()
    draw: RandomFaults | None = None
    rate: FaultRate | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.faults and self.draw is None and self.rate is None:
            raise ValueError("no fault is named; give faults, draw or rate")
        kinds = [fault.kind for fault in self.faults]
        for several in (self.draw, self.rate):
            kinds += several.kinds if several is not None else ()
        if "node" in kinds and self.nodes is None:
            raise ValueError("a fault is 'node', but nodes is missing; give the number of machines, such as nodes: 2")
        return self

    def plan(self, steps: int, ranks: int) -> tuple[Fault, ...]:
        """All faults with a step, sorted by step, for a run of ``steps`` steps on ``ranks`` ranks.

        Raises:
            UsageError: a fault at a rank or step that the run does not have, or ``nodes`` does not divide the ranks.
        """
        if self.nodes is not None and ranks % self.nodes:
            raise UsageError(f"nodes is {self.nodes}: it must divide the {ranks} ranks")
        for number, fault in enumerate(self.faults):
            for name, value, limit in (("rank", fault.rank, ranks - 1), ("step", fault.step, steps - 1)):
                if value > limit:
                    raise UsageError(f"faults: {number}: {name} is {value}, but the highest in this run is {limit}")
        drawn: list[Fault] = []
        if self.draw is not None:
            if self.draw.first_step >= steps:
                raise UsageError(f"draw: first_step is {self.draw.first_step}, but this run has {steps} steps")
            chance = random.Random(self.draw.seed)
            for number in range(self.draw.count):
                # every kind occurs before any repeats
                kind = self.draw.kinds[number % len(self.draw.kinds)]
                step = chance.randrange(self.draw.first_step, steps)
                drawn.append(Fault(kind=kind, rank=chance.randrange(ranks), step=step))
        return tuple(sorted((*self.faults, *drawn), key=lambda fault: fault.step))


def load_faults(path: Path) -> Faults:
    """Read the file of ``--inject``.

    Raises:
        UsageError: it cannot be read, or an entry is wrong, with its line.
    """
    return load_document(path, Faults)


@dataclass(frozen=True)
class FaultState:
    """The faults of a run; shared memory holds which have happened, and the request and process id of each slot.

    A request is the fault to inject next: 1 + the index of its kind in ``KINDS``, or 0 for none. ``nodes`` is the
    number of machines that the slots count as; None if they are one.
    """

    faults: tuple[Fault, ...]
    happened: Any
    requests: Any
    processes: Any
    nodes: int | None = None

    @classmethod
    def of(cls, context: Any, faults: Sequence[Fault], ranks: int, nodes: int | None = None) -> FaultState:
        """Mark every fault as pending."""
        happened, requests = context.RawArray("b", max(1, len(faults))), context.RawArray("b", ranks)
        return cls(tuple(faults), happened, requests, context.RawArray("i", ranks), nodes)

    def node(self, slot: int) -> int:
        """The index of the simulated machine of ``slot``."""
        return slot * (self.nodes or 1) // len(self.processes)

    def is_gone(self, slot: int) -> bool:
        """Whether the slot of a rank is broken."""
        gone = ((fault, was) for fault, was in zip(self.faults, self.happened, strict=False) if fault.kind == "gone")
        return any(was and fault.rank == slot for fault, was in gone)


class FaultClock:
    """The times of faults at a rate, for the watching process."""

    def __init__(self, rate: FaultRate) -> None:
        self.rate, self._chance = rate, random.Random(rate.seed)
        self._next_s: float | None = None

    def due(self, now: float, ranks: int) -> list[tuple[int, Kind]]:
        """Rank and kind of each fault between the last call and ``now`` (seconds); the first call starts the clock."""
        if self._next_s is None:
            self._next_s = now + self._chance.expovariate(1 / self.rate.mtbf_s)
        found: list[tuple[int, Kind]] = []
        while self._next_s <= now:
            found.append((self._chance.randrange(ranks), self._chance.choice(self.rate.kinds)))
            self._next_s += self._chance.expovariate(1 / self.rate.mtbf_s)
        return found


class FaultHook:
    """The hook that injects the faults of a rank; created before the rank joins the process group.

    ``rank`` is the rank of the first attempt, which stays the same when ranks are numbered again.
    """

    def __init__(self, state: FaultState, rank: int) -> None:
        self.state, self.rank = state, rank
        # Faults before this attempt. All ranks read the same, because no rank takes a step before all have read it.
        self._before = list(state.happened)
        self._steps = {fault.step for fault, before in zip(state.faults, self._before, strict=False) if not before}
        self._disk_until = 0
        state.processes[rank] = os.getpid()

    def due(self, step: int) -> bool:
        """Whether any rank has a fault at this step, or a full disk."""
        return step in self._steps or step <= self._disk_until

    def wish(self) -> bool:
        """Whether this rank has a pending request for a fault at a rate."""
        return bool(self.state.requests[self.rank])

    def act(self, run: Any) -> None:
        """Inject the faults of this step, unless it is a repeated step, and that of a pending request."""
        if (request := int(self.state.requests[self.rank])) > 0:
            self.state.requests[self.rank] = 0
            self._happen(Fault(kind=KINDS[request - 1], rank=self.rank, step=max(1, run.step)), run)
        if run.step in self._steps:
            self._steps.remove(run.step)
            for number, fault in enumerate(self.state.faults):
                if fault.step == run.step and not self._before[number]:
                    self._begin(number, fault, run)
        if run.step >= self._disk_until:
            vars(run.save.saver).pop("_write", None)  # the end of a full disk: removes what ``_disk`` put there

    def _begin(self, number: int, fault: Fault, run: Any) -> None:
        if fault.kind == "disk":
            self._disk_until = fault.until
        if fault.rank == self.rank:
            self.state.happened[number] = 1
            self._happen(fault, run)

    def _happen(self, fault: Fault, run: Any) -> None:
        run.reporter.write("fault", run.step, injected=True, problem=fault.kind, ends=fault.kind in _ENDING)
        if fault.kind == "node":
            self._lose_node(run)
        else:
            _ACTS[fault.kind](fault, run)

    def _lose_node(self, run: Any) -> None:
        node = self.state.node(self.rank)
        for slot, process in enumerate(self.state.processes):
            if slot != self.rank and process and self.state.node(slot) == node:
                os.kill(process, signal.SIGKILL)
        if run.memory is not None:
            shutil.rmtree(run.memory, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGKILL)


def _kill(fault: Fault, run: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop(fault: Fault, run: Any) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang(fault: Fault, run: Any) -> None:
    def asleep(limit: float) -> Any:
        while True:
            time.sleep(60.0)

    run.engine.program.clip = asleep


def _slow(fault: Fault, run: Any) -> None:
    optimizer, until = run.engine.optimizer, fault.until
    step: Callable[..., None] = optimizer.step

    def late(*arguments: Any) -> None:
        if run.step >= until:
            optimizer.step = step
        else:
            time.sleep(0.1 if fault.seconds is None else fault.seconds)
        step(*arguments)

    optimizer.step = late


def _nan(fault: Fault, run: Any) -> None:
    program = run.engine.program
    clip: Callable[[float], Any] = program.clip

    def poisoned(limit: float) -> Any:
        program.clip = clip
        parameter = next(p for _, p in program.named_parameters() if p.grad is not None and _own(p.grad).numel())
        _own(parameter.grad).view(-1)[0] = float("nan")
        return clip(limit)

    program.clip = poisoned


def _flip(fault: Fault, run: Any) -> None:
    import torch

    parameter = next(p for _, p in run.engine.program.named_parameters() if _own(p).numel())
    with torch.no_grad():
        bits = _own(parameter).view(-1)[:1].view(torch.int32)
        bits ^= 1 << 20


def _own(tensor: Any) -> Any:
    from torch.distributed.tensor import DTensor  # here, so that ``resilience`` loads without torch

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _disk(fault: Fault, run: Any) -> None:
    saver, memory = run.save.saver, run.in_memory
    write, lock = saver._write, threading.Lock()

    def on_full_disk(*arguments: Any) -> None:
        # The limit counts for the whole process, but a full disk does not affect the memory with the snapshots.
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # too small for a checkpoint, large enough for the events of a rank
        size = max((path.stat().st_size for path in run.folder.glob("events*.jsonl")), default=0)
        with lock:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 2**16, hard))
            try:
                write(*arguments)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    saver._write = on_full_disk
    if memory is not None:
        write_snapshot = memory.saver._write

        def locked_write(*arguments: Any) -> None:
            with lock:
                write_snapshot(*arguments)

        memory.saver._write = locked_write


def _corrupt(fault: Fault, run: Any) -> None:
    files = [path for path in run.checkpoints.glob("step-*/*.safetensors") if path.parent.name[5:].isdigit()]
    for path in sorted(files, key=lambda path: int(path.parent.name[5:]))[-1:]:
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))


def _network(fault: Fault, run: Any) -> None:
    for name in [path.name for path in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as connection:
                    if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getpeername():
                        connection.shutdown(socket.SHUT_RDWR)


_ACTS: dict[str, Callable[[Fault, Any], None]] = {
    "kill": _kill, "gone": _kill,
    "stop": _stop, "hang": _hang, "slow": _slow, "nan": _nan, "flip": _flip, "disk": _disk,
    "corrupt": _corrupt, "network": _network,
}  # fmt: skip

"""Faults on purpose: what really happens to long runs, made at a chosen step of a chosen rank.

Every fault is real: a process is killed or stopped, a file is damaged, a limit makes the disk full, a connection is
shut down, a bit is flipped. Before it happens the rank writes a ``fault`` event with ``injected: true``, so that the
ledger knows when it was. A fault happens once, however often its step is taken again.

| kind | what happens |
|---|---|
| kill | the process is killed (SIGKILL) |
| stop | the process is stopped (SIGSTOP), as by a machine that hangs |
| hang | the training thread sleeps for ever within the next step, as in a deadlock |
| slow | the rank sleeps in the update of each of the next ``steps`` steps |
| nan | a gradient of the next step is not a number |
| flip | a bit of a weight is flipped |
| disk | the rank's files cannot grow for the next ``steps`` steps, as on a full disk |
| corrupt | a byte of the newest checkpoint is changed |
| network | the rank's connections to all others are shut down |
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from pydantic import Field, model_validator
from torch.distributed.tensor import DTensor

from armillary.recipe import Document, UsageError, load_document

Kind = Literal["kill", "stop", "hang", "slow", "nan", "flip", "disk", "corrupt", "network"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_ENDING = ("kill", "stop", "hang", "network")  # of these no further step comes


class Fault(Document):
    """One fault, after step ``step`` of ``rank``; ``steps`` and ``seconds`` belong to ``slow`` and ``disk``."""

    kind: Kind
    rank: int = Field(ge=0)
    step: int = Field(ge=1)
    steps: int = Field(default=60, ge=1)
    seconds: float = Field(default=0.1, gt=0)


class Draw(Document):
    """``count`` faults of ``kinds``, drawn from a seed: steps from ``first_step`` on, ranks uniformly."""

    count: int = Field(ge=1)
    kinds: tuple[Kind, ...] = KINDS
    first_step: int = Field(default=1, ge=1)
    seed: int = 0


class Faults(Document):
    """The file of ``--inject``: faults by hand, drawn at random, or both."""

    format: Literal[1] = 1
    faults: tuple[Fault, ...] = ()
    draw: Draw | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.faults and self.draw is None:
            raise ValueError("no fault is named; give faults or draw")
        return self

    def plan(self, steps: int, ranks: int) -> tuple[Fault, ...]:
        """All faults of a run of ``steps`` steps on ``ranks`` ranks, by step.

        Raises:
            UsageError: a fault of a rank or step that the run does not have.
        """
        for number, fault in enumerate(self.faults):
            for name, value, limit in (("rank", fault.rank, ranks - 1), ("step", fault.step, steps - 1)):
                if value > limit:
                    raise UsageError(f"faults: {number}: {name} is {value}, and this run has them up to {limit}")
        drawn: list[Fault] = []
        if self.draw is not None:
            if self.draw.first_step >= steps:
                raise UsageError(f"draw: first_step is {self.draw.first_step}, and this run has {steps} steps")
            chance = random.Random(self.draw.seed)
            for number in range(self.draw.count):
                # every kind comes before one comes again
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
class Injection:
    """The faults of a run, and in shared memory which of them have happened."""

    faults: tuple[Fault, ...]
    happened: Any

    @classmethod
    def of(cls, context: Any, faults: Sequence[Fault]) -> Injection:
        """None of ``faults`` has happened."""
        return cls(tuple(faults), context.RawArray("b", max(1, len(faults))))


class Inject:
    """The hook of a rank that makes its faults happen; made before the rank joins the others."""

    def __init__(self, injection: Injection, rank: int) -> None:
        self.injection, self.rank = injection, rank
        # What happened before this attempt. All ranks read the same, because no rank takes a step before all have.
        self._before = list(injection.happened)
        self._steps = {fault.step for fault, before in zip(injection.faults, self._before, strict=False) if not before}
        self._disk_until = 0

    def due(self, step: int) -> bool:
        """At the steps of the faults of any rank, and at every step while one of them has no disk."""
        return step in self._steps or step <= self._disk_until

    def act(self, run: Any) -> None:
        """Make the faults of this step happen, unless the step is taken again."""
        if run.step in self._steps:
            self._steps.remove(run.step)
            for number, fault in enumerate(self.injection.faults):
                if fault.step == run.step and not self._before[number]:
                    self._begin(number, fault, run)
        if run.step >= self._disk_until:
            _disk_is_free()

    def _begin(self, number: int, fault: Fault, run: Any) -> None:
        mine = fault.rank == self.rank
        if fault.kind == "disk":
            self._disk_until = run.step + fault.steps
        if mine:
            self.injection.happened[number] = 1
            ends = fault.kind in _ENDING
            run.reporter.write("fault", run.step, injected=True, problem=fault.kind, ends=ends)
            _ACTS[fault.kind](fault, run)


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
    optimizer, until = run.engine.optimizer, run.step + fault.steps
    step: Callable[[float], None] = optimizer.step

    def late(lr: float) -> None:
        if run.step >= until:
            optimizer.step = step
        else:
            time.sleep(fault.seconds)
        step(lr)

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
    parameter = next(p for _, p in run.engine.program.named_parameters() if _own(p).numel())
    with torch.no_grad():
        bits = _own(parameter).view(-1)[:1].view(torch.int32)
        bits ^= 1 << 20


def _own(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _disk(fault: Fault, run: Any) -> None:
    # small enough for no checkpoint, and large enough for the events of a rank
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max((path.stat().st_size for path in run.folder.glob("events*.jsonl")), default=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 2**16, hard))


def _disk_is_free() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


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
    "kill": _kill, "stop": _stop, "hang": _hang, "slow": _slow, "nan": _nan, "flip": _flip, "disk": _disk,
    "corrupt": _corrupt, "network": _network,
}  # fmt: skip

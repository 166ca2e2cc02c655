"""What an executor and its workers say to each other: jobs and probes, answers, and why a run has no result."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from armillary.recipe import ArmillaryError, LengthPhase, ModelShape, RunSpec, UsageError
from armillary.train import DivergedError

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the number of open files (ulimit -n)"),
    **dict.fromkeys((errno.ENOLCK, errno.ENOTSUP), "mount the file system with locks (NFSv4; Lustre with -o flock)"),
}
# PyTorch has no error type for a failed allocation on a CPU.
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)


class InterruptedStudyError(ArmillaryError):
    """Ctrl-C, or a signal to end: every run has left a checkpoint."""


class Progress(Protocol):
    """Reports long work: ``stage``, units done, units in total, and a short note such as ``3/40 runs``."""

    def __call__(self, stage: str, done: float, total: float, note: str) -> None: ...


@dataclass(frozen=True)
class Job:
    """A run to train; ``trunk`` is the run and step it may branch from, ``keep`` the steps others branch from."""

    spec: RunSpec
    trunk: tuple[str, int] | None = None
    keep: tuple[int, ...] = ()

    def new_flops(self, step: int) -> float:
        """FLOPs spent after ``step`` steps, without the steps taken by its trunk."""
        # Without its trunk's checkpoint a branch begins at 0, which is not progress.
        own = max(0, step - (self.trunk[1] if self.trunk else 0))
        return self.spec.flops * own / self.spec.steps


@dataclass(frozen=True)
class Failure:
    """A run that has no result, and why; ``status`` is one of

    - ``diverged``: the same specification diverges again, so the run is not trained again (``Store.reopen``);
    - ``refused``: the run cannot be trained as it is specified or with this corpus;
    - ``failed``: a passing cause, such as a full disk, a damaged file or a lost worker.
    """

    run: str
    status: Literal["diverged", "refused", "failed"]
    error: str

    @property
    def passing(self) -> bool:
        """Whether the cause can pass by itself, so that the next call trains the run again."""
        return self.status == "failed"

    @classmethod
    def of(cls, run: str, error: BaseException) -> Failure:
        """The failure of a run that ended with ``error``; the text names the run, the cause and the remedy."""
        said = str(error)
        match error:
            case DivergedError():
                return cls(run, "diverged", said)
            case UsageError():
                return cls(run, "refused", said if run in said else f"run {run}: {said}")
            case ArmillaryError():
                return cls(run, "failed", said if run in said else f"run {run}: {said}")
            case OSError():
                where = f"{error.filename}: " if error.filename else ""
                remedy = _REMEDIES.get(error.errno or 0, "remove the cause")
                text = f"{where}{error.strerror or said}; {remedy} and give the same command again"
            case _ if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(said):
                text = f"not enough memory ({type(error).__name__}: {said}); give fewer --workers, or a smaller batch"
            case _:
                text = f"{type(error).__name__}: {said}; the same command tries the run again"
        return cls(run, "failed", f"run {run}: {text}")


@dataclass(frozen=True)
class Probe:
    """A throughput to measure: training steps of this shape for about ``seconds``, of ``members`` models at once.

    The other fields are those of a RunSpec that decide how long its steps take.
    """

    shape: ModelShape
    context_length: int
    batch_sequences: int
    precision: str
    seconds: float = 1.5
    members: int = 1
    optimizer: str = "adamw"
    z_loss: float = 0.0
    accumulation: int = 1
    lengths: tuple[LengthPhase, ...] = ()

    @classmethod
    def of(cls, spec: RunSpec, seconds: float = 1.5) -> Probe:
        """The steps of a run."""
        return cls(
            spec.model,
            spec.context_length,
            spec.batch_sequences,
            spec.precision,
            seconds,
            optimizer=spec.optimizer.kind,
            z_loss=spec.optimizer.z_loss,
            accumulation=spec.accumulation,
            lengths=spec.lengths,
        )


@dataclass(frozen=True)
class Train:
    """Requests the results of ``jobs`` from a worker, which answers each as soon as it is known.

    Of jobs that agree on ``stack_key`` up to ``members`` are trained as one program.
    """

    jobs: tuple[Job, ...]
    members: int = 1


Message = Train | Probe


@dataclass(frozen=True)
class Answer:
    """A worker's answer about ``run``, or about a probe.

    ``value`` is the number of finished steps for ``step``, the RunResult for ``done``, tokens per second for
    ``measured``, and the reason for the others.
    """

    kind: Literal["step", "done", "stopped", "diverged", "refused", "failed", "measured", "unmeasured"]
    value: Any
    run: str = ""


@dataclass(frozen=True)
class Lost:
    """A worker has ended; ``blames_run`` is False where the run it trained cannot be the cause."""

    how: str
    blames_run: bool = True

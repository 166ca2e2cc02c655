"""Messages between an executor and its workers: jobs, probes, answers, and failures of runs."""

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
# PyTorch has no error type for failed allocations on a CPU.
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)


class InterruptedStudyError(ArmillaryError):
    """Ctrl-C or a signal stopped the study; every run has written a checkpoint."""


class Progress(Protocol):
    """Reports long work: ``stage``, units done, units in total, and a short note such as ``3/40 runs``."""

    def __call__(self, stage: str, done: float, total: float, note: str) -> None: ...


@dataclass(frozen=True)
class Job:
    """A run to train; ``trunk`` is the run and step it may branch from, ``keep`` lists steps that others branch
    from."""

    spec: RunSpec
    trunk: tuple[str, int] | None = None
    keep: tuple[int, ...] = ()

    def new_flops(self, step: int) -> float:
        """FLOPs spent after ``step`` steps, without those of its trunk."""
        # Without its trunk's checkpoint, a branch begins at step 0, which is not progress.
        own = max(0, step - (self.trunk[1] if self.trunk else 0))
        return self.spec.flops * own / self.spec.steps


@dataclass(frozen=True)
class Failure:
    """A run without a result, and the reason; ``status`` is one of

    - ``diverged``: the same specification would diverge again, so the run is not retried (``Store.reopen``);
    - ``refused``: the specification or the corpus does not allow the run;
    - ``failed``: a transient cause, such as a full disk, a damaged file or a lost worker.
    """

    run: str
    status: Literal["diverged", "refused", "failed"]
    error: str

    @property
    def passing(self) -> bool:
        """Whether the cause is transient, so that the next call retries the run."""
        return self.status == "failed"

    @classmethod
    def of(cls, run: str, error: BaseException) -> Failure:
        """The failure of a run that ended with ``error``; the text names the run, the cause and the remedy."""
        message = str(error)
        match error:
            case DivergedError():
                return cls(run, "diverged", message)
            case UsageError():
                return cls(run, "refused", message if run in message else f"run {run}: {message}")
            case ArmillaryError():
                return cls(run, "failed", message if run in message else f"run {run}: {message}")
            case OSError():
                where = f"{error.filename}: " if error.filename else ""
                remedy = _REMEDIES.get(error.errno or 0, "remove the cause")
                text = f"{where}{error.strerror or message}; {remedy} and run the same command again"
            case _ if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(message):
                text = f"not enough memory ({type(error).__name__}: {message}); use fewer --workers or a smaller batch"
            case _:
                text = f"{type(error).__name__}: {message}; the same command retries the run"
        return cls(run, "failed", f"run {run}: {text}")


@dataclass(frozen=True)
class Probe:
    """A throughput to measure: training steps of this shape for about ``seconds``, with ``members`` models at once.

    The other fields are the fields of a RunSpec that affect the time of a step.
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
    """Requests the results of ``jobs`` from a worker, which answers each job as soon as it ends.

    Up to ``members`` jobs with the same ``stack_key`` are trained as one program.
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
    """A worker has ended; ``blames_run`` is False if its run cannot be the cause."""

    how: str
    blames_run: bool = True

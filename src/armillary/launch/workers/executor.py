"""The contract of executors, which train the runs of a study on workers (`pool`) or over many ranks (`ranks`)."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from armillary.launch.workers.messages import Failure, Job, Progress
from armillary.recipe import DamagedFileError, ForeignFileError, RunResult
from armillary.store import Store


class Executor(ABC):
    """Trains runs over one corpus, and records in one store what becomes of them.

    Use as a context manager; what it starts stays warm between calls. Workers leave a checkpoint every
    ``checkpoint_every_s``.
    """

    def __init__(self, store: Store, corpus: Path, checkpoint_every_s: float) -> None:
        self.store = store
        self.corpus = corpus
        self.checkpoint_every_s = checkpoint_every_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rest()

    @abstractmethod
    def rest(self) -> None:
        """End what was started, so that others can have the devices; the next call starts it again."""

    @property
    @abstractmethod
    def n_workers(self) -> int:
        """How many runs train at the same time."""

    @property
    @abstractmethod
    def device(self) -> str:
        """Name of the accelerator or processor that runs train on; waits where a remote worker must report it."""

    @abstractmethod
    def run(
        self, study: str, jobs: Sequence[Job], progress: Progress = lambda stage, done, total, note: None
    ) -> dict[str, RunResult | Failure]:
        """Train the jobs that have no outcome yet; returns the outcome of each by run id.

        A run that failed in an earlier call is tried again; one that diverged is returned as it is recorded.

        Raises:
            InterruptedStudyError: stopped by Ctrl-C; the same call resumes.
            ArmillaryError: nothing can be started.
        """


def settled(store: Store, run: str) -> RunResult | Failure | None:
    """The outcome of a run that is not trained (again): its result, or why there is none; None for any other run.

    It has no result where it diverged, or where the result in its folder is damaged or that of another run.
    """
    try:
        state = store.state(run)
    except (DamagedFileError, ForeignFileError) as error:
        failure = Failure.of(run, error)
        store.mark_failed(run, failure.status, failure.error)
        return failure
    if state is None or state.status not in ("done", "diverged"):
        return None
    return state.result if state.status == "done" else Failure(run, "diverged", state.error or "")


def keep_result(store: Store, result: RunResult) -> RunResult:
    """Record a run's result; returns the one that counts, which is the first where the run was trained again."""
    difference = store.mark_done(result)
    if difference is None:
        return result
    logging.getLogger(__name__).warning(difference)
    return store.result(result.run) or result

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
    """Trains runs on one corpus, and records their outcomes in one store.

    Use as a context manager; started processes stay warm between calls. Workers write a checkpoint every
    ``checkpoint_every_s`` seconds.
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
        """End all started processes to free the devices; the next call starts them again."""

    @property
    @abstractmethod
    def n_workers(self) -> int:
        """How many runs train at the same time."""

    @property
    @abstractmethod
    def device(self) -> str:
        """Name of the accelerator or CPU that runs train on; waits if a remote worker must report it."""

    @abstractmethod
    def run(
        self, study: str, jobs: Sequence[Job], progress: Progress = lambda stage, done, total, note: None
    ) -> dict[str, RunResult | Failure]:
        """Train the jobs that have no outcome yet; returns the outcome of each by run id.

        A run that failed in an earlier call is retried. For a diverged run, the recorded outcome is returned.

        Raises:
            InterruptedStudyError: stopped by Ctrl-C; the same call resumes.
            ArmillaryError: no worker can be started.
        """


def settled(store: Store, run: str) -> RunResult | Failure | None:
    """The outcome of a run that needs no training: its result, or the reason for its absence; None for other runs.

    A run has no result if it diverged, or if the result in its folder is damaged or belongs to another run.
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
    """Record a run's result; return the one that counts, which is the first if the run was trained twice."""
    difference = store.mark_done(result)
    if difference is None:
        return result
    logging.getLogger(__name__).warning(difference)
    return store.result(result.run) or result

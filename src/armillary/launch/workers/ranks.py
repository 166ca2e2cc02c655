"""Trains the runs of a study one by one, each over many ranks of this machine. For targets too large for one device.

It records the same data in the store as other executors. The study's own workers end first, to free the devices for
the ranks.

Trade-off: a budget in time sizes the target by the rate of all workers, each with its own run. Ranks that share one run
are slower because of their communication.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

from armillary.launch.ranks.large import launch
from armillary.launch.workers.executor import Executor, keep_result, settled
from armillary.launch.workers.local import LocalExecutor
from armillary.launch.workers.messages import Failure, InterruptedStudyError, Job, Progress
from armillary.recipe import ArmillaryError, Checkpoints, LargeRun, Layout, RunResult, UsageError
from armillary.store import in_use
from armillary.train import BusyRunError, InterruptedRunError

_LOOK_S = 0.5


class RankExecutor(Executor):
    """Trains over the ranks of ``layout`` instead of ``workers``."""

    def __init__(self, workers: Executor, layout: Layout) -> None:
        super().__init__(workers.store, workers.corpus, workers.checkpoint_every_s)
        self.workers, self.layout = workers, layout

    def rest(self) -> None:
        """End the workers; ranks end with their run."""
        self.workers.rest()

    @property
    def n_workers(self) -> int:
        """One: all ranks train one run."""
        return 1

    @property
    def device(self) -> str:
        """The key of rates: each layout counts as a separate machine, different from that of the workers."""
        layout = self.layout.model_dump(mode="json", exclude_defaults=True)
        return ", ".join([self.workers.device, *(f"{name} {value}" for name, value in layout.items())])

    def run(
        self, study: str, jobs: Sequence[Job], progress: Progress = lambda stage, done, total, note: None
    ) -> dict[str, RunResult | Failure]:
        """Train the jobs without a result, each from step 0, ignoring trunks; return each outcome by run id.

        Raises:
            InterruptedStudyError: stopped by Ctrl-C; the same call resumes.
            UsageError: the workers are not on this machine; nothing has started.
            BusyRunError: another process trains one of the runs.
        """
        if not isinstance(self.workers, LocalExecutor):
            raise UsageError(
                "a target with a layout trains on ranks of this machine and cannot use --on; leave it out, or give "
                "target.yaml, next to the report, to a launcher"
            )
        self.workers.rest()
        self.store.add(study, [job.spec for job in jobs])
        outcomes: dict[str, RunResult | Failure] = {}
        total, done = sum(job.spec.flops for job in jobs), 0.0

        def shown(number: int, spent: float) -> Callable[[float], None]:
            flops, note = jobs[number].spec.flops, f"{number}/{len(jobs)} runs"
            return lambda share: progress(study, spent + flops * share, total, note)

        for number, job in enumerate(jobs):
            known = settled(self.store, job.spec.id)
            with _watched(shown(number, done)) as reached:
                outcomes[job.spec.id] = self._train(job, reached) if known is None else known
            done += job.spec.flops
            progress(study, done, total, f"{number + 1}/{len(jobs)} runs")
        return outcomes

    def _train(self, job: Job, reached: Any) -> RunResult | Failure:
        run = job.spec.id
        large = LargeRun(
            name=run,
            corpus=str(self.corpus),
            run=job.spec,
            layout=self.layout,
            checkpoints=Checkpoints(every_s=self.checkpoint_every_s),
        )
        folder, result = self.store.run_folder(run), None
        while result is None:
            while in_use(folder):  # another study or a launcher trains it; wait and use its result
                time.sleep(_LOOK_S)
            known = settled(self.store, run)
            if known is not None:
                return known
            self.store.mark_running(run)
            try:
                result = launch(large, folder, reporter=partial(_Teller, reached))
            except InterruptedRunError as error:
                self.store.mark_failed(run, "pending", str(error))
                raise InterruptedStudyError(f"{error}; run the same command again to resume") from error
            except BusyRunError:  # another process finished it first
                time.sleep(_LOOK_S)
            except (ArmillaryError, OSError) as error:
                failure = Failure.of(run, error)
                self.store.mark_failed(run, failure.status, failure.error)
                return failure
        return keep_result(self.store, result)


class _Teller:
    """The first rank's reporter, which writes the finished share of its run into shared memory."""

    def __init__(self, reached: Any) -> None:
        self.reached = reached

    def __call__(self, stage: str, done: float, total: float, note: str) -> None:
        self.reached.value = done / total

    def say(self, text: str) -> None:
        print(f"note {text}", file=sys.stderr)

    def close(self) -> None:
        """Nothing to close."""


@contextmanager
def _watched(show: Callable[[float], None]) -> Iterator[Any]:
    """A shared number with the finished share of a run, passed to ``show`` while it grows.

    A number instead of a pipe, since a rank killed while writing cannot leave a torn message.
    """
    reached, ended = get_context("spawn").RawValue("d", 0.0), threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_S):
            show(reached.value)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield reached
    finally:
        ended.set()
        thread.join()

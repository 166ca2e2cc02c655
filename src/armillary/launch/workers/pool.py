"""Assigns the runs of a study to workers and collects the outcomes, independent of the transport.

Jobs go to free workers, the longest first; a branch starts as soon as its trunk has written the checkpoint it needs. A
worker that will soon be free gets its next job early, so that no time is lost between two runs. A dead worker is
replaced, and its run resumes from its last checkpoint. A run that diverges is marked, and the others continue.

Two subclasses start the workers: as processes on this machine (`local`) or on a Ray cluster (`ray`). `worker` handles
the messages. Only the executor writes to the database.

Trade-off: a job is sent only ``_AHEAD_S`` before its expected start, and cannot be withdrawn. If it were sent earlier,
it could wait behind a long run while another worker is idle.
"""

from __future__ import annotations

import signal
import statistics
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from armillary.launch.workers.executor import Executor, keep_result, settled
from armillary.launch.workers.messages import (
    Answer,
    Failure,
    InterruptedStudyError,
    Job,
    Lost,
    Message,
    Probe,
    Progress,
    Train,
)
from armillary.recipe import (
    ArmillaryError,
    RunResult,
    RunSpec,
    counted,
)
from armillary.store import Store
from armillary.train import stack_key

MAX_ATTEMPTS = 3
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AHEAD_S = 1.0
# A stack is tried for shapes with at least this many FLOPs per worker, and if a step of a single model takes less than
# this time: with longer steps the device is already busy. The next larger stack must be faster by this factor.
_WORTH_FLOPS = 2e12
_BUSY_STEP_S = 0.05
_STACKS = (4, 16, 64, 256)
_GAIN = 1.1
_STACK_PROBE_S = 0.5


class Worker(ABC):
    """A worker as its executor sees it.

    ``stacks`` are its unanswered jobs, one list per message; it works on the first message.
    """

    def __init__(self) -> None:
        self.stacks: list[list[Job]] = []
        self.steps: dict[str, int] = {}
        self._flops_per_s: float | None = None
        self._mark = (time.monotonic(), 0.0)
        self._marked = False

    @abstractmethod
    def send(self, message: Message) -> None:
        """Put a message into the worker's inbox; ``Executor._receive`` reports dead workers."""

    def give(self, jobs: list[Job], members: int) -> None:
        """Append these jobs to the worker's queue, ``members`` at a time."""
        if not self.stacks:
            self._begin()
        self.stacks.append(jobs)
        self.steps.update({job.spec.id: job.trunk[1] if job.trunk else 0 for job in jobs})
        self.send(Train(tuple(jobs), members))

    def flops(self) -> float:
        """FLOPs spent on the jobs in ``stacks``."""
        return sum(job.new_flops(self.steps[job.spec.id]) for jobs in self.stacks for job in jobs)

    def advance(self, run: str, step: int) -> None:
        """The run has finished ``step`` steps."""
        self.steps[run] = step
        now, done = time.monotonic(), self.flops()
        if self._marked and now > self._mark[0]:
            self._flops_per_s = (done - self._mark[1]) / (now - self._mark[0])
        elif not self._marked:  # the first report shows the checkpoint from which the run resumed
            self._mark, self._marked = (now, done), True

    def finish(self, run: str) -> Job:
        """Remove the run from ``stacks``, and return its job."""
        jobs = next(jobs for jobs in self.stacks if any(job.spec.id == run for job in jobs))
        job = next(job for job in jobs if job.spec.id == run)
        if not self._marked and len(jobs) == 1 and time.monotonic() > self._mark[0]:
            self._flops_per_s = job.new_flops(job.spec.steps) / (time.monotonic() - self._mark[0])
        jobs.remove(job)
        self._mark = (self._mark[0], self._mark[1] - job.new_flops(self.steps.pop(run)))
        if not jobs:
            self.stacks.remove(jobs)
            self._begin()
        return job

    def wants_more(self) -> bool:
        """Whether it is idle, or will be idle within ``_AHEAD_S`` with an empty inbox."""
        if len(self.stacks) != 1 or self._flops_per_s is None:
            return not self.stacks
        left = sum(job.new_flops(job.spec.steps) for job in self.stacks[0]) - self.flops()
        return left < _AHEAD_S * self._flops_per_s

    def _begin(self) -> None:
        self._mark, self._marked = (time.monotonic(), 0.0), False


@dataclass
class _Queue:
    """The jobs of one call and their states."""

    waiting: list[Job]
    done_flops: float = 0.0
    outcomes: dict[str, RunResult | Failure] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)

    def may_stack(self, job: Job) -> bool:
        """Whether this job may share a stack, which is false in its last attempt."""
        return self.deaths.get(job.spec.id, 0) < MAX_ATTEMPTS - 1


class WorkerExecutor(Executor):
    """An executor over workers in any place; they start with the first job and stay warm between calls.

    Subclasses maintain ``_workers``, the list of workers that are ready for jobs.
    """

    def __init__(self, store: Store, corpus: Path, checkpoint_every_s: float, stop: Any) -> None:
        super().__init__(store, corpus, checkpoint_every_s)
        self._workers: list[Any] = []
        self._stop = stop  # its ``value`` is 1 while workers should stop their runs
        self._members: dict[Hashable, int] = {}  # models that a worker trains at once, by stack_key

    def rest(self) -> None:
        """End all workers and free their devices; the next call starts new ones."""
        self._stop.value = 1
        self._close()
        self._workers.clear()
        self._stop.value = 0

    @property
    def _word(self) -> str:
        """A note on the state of the workers for the progress line; may be empty."""
        return ""

    @abstractmethod
    def _start_workers(self) -> None:
        """Start missing workers; called repeatedly while there is work."""

    @abstractmethod
    def _await_workers(self) -> None:
        """Start missing workers, and wait until all are ready.

        Raises:
            ArmillaryError: no worker can be started.
        """

    @abstractmethod
    def _receive(self) -> list[tuple[Any, Answer | Lost]]:
        """The workers' answers, in the order sent by each; waits up to half a second for the first.

        A ``Lost`` worker is already removed from ``_workers``; all its answers precede it.
        """

    @abstractmethod
    def _close(self) -> None:
        """End all workers; those in a run get some seconds for a checkpoint."""

    def measure(self, probes: Sequence[Probe]) -> list[float]:
        """Tokens per second of all workers together for each probe, with all workers busy.

        Raises:
            ArmillaryError: a worker died, or could not train this size.
        """
        self._await_workers()
        return [self._measure(probe) for probe in probes]

    def _measure(self, probe: Probe) -> float:
        asked = list(self._workers)
        for worker in asked:
            worker.send(probe)
        rates: list[float] = []
        problems: list[str] = []
        while asked:
            for worker, answer in self._receive():
                asked = [other for other in asked if other is not worker]
                if isinstance(answer, Lost):
                    problems.append(
                        f"a worker died ({answer.how}; out of memory: try fewer workers; or a script starts an "
                        "executor outside if __name__ == '__main__')"
                    )
                elif answer.kind == "measured":
                    rates.append(answer.value)
                else:
                    problems.append(answer.value)
        if problems:
            raise ArmillaryError(f"the throughput could not be measured: {problems[0]}")
        return sum(rates)

    def run(
        self, study: str, jobs: Sequence[Job], progress: Progress = lambda stage, done, total, note: None
    ) -> dict[str, RunResult | Failure]:
        """Train the jobs that have no outcome yet; returns the outcome of each by run id.

        A run that failed in an earlier call is retried. For a diverged run, the recorded outcome is returned.

        Raises:
            InterruptedStudyError: stopped by Ctrl-C; the same call resumes.
            ArmillaryError: no worker is available.
        """
        unique = list({job.spec.id: job for job in jobs}.values())
        self.store.add(study, [job.spec for job in unique])
        queue = _Queue(waiting=[])
        for job in unique:
            outcome = settled(self.store, job.spec.id)
            if outcome is not None:
                queue.outcomes[job.spec.id] = outcome
            else:
                queue.waiting.append(job)
        if not queue.waiting:
            return queue.outcomes
        queue.waiting.sort(key=lambda job: -job.spec.flops)
        total = sum(job.new_flops(job.spec.steps) for job in queue.waiting)
        known, total_runs = len(queue.outcomes), len(queue.waiting)
        before = _on_signals(self._stop)
        try:
            self._choose_stacks(queue)
            while queue.waiting or any(worker.stacks for worker in self._workers):
                if not self._stop.value:
                    self._start_workers()
                    self._hand_out(queue)
                elif not any(worker.stacks for worker in self._workers):
                    raise InterruptedStudyError(
                        f"{study}: stopped with {len(queue.waiting)} of {counted(total_runs, 'run')} left; "
                        "every run has written a checkpoint: run the same command again to resume"
                    )
                self._collect(queue)
                done = queue.done_flops + sum(worker.flops() for worker in self._workers)
                note = f"{len(queue.outcomes) - known}/{counted(total_runs, 'run')}"
                progress(study, done, total, f"{note}, {self._word}" if self._word else note)
        except BaseException:
            # For example a failing database: answers to this call must not be mistaken for answers to a later one.
            if any(worker.stacks for worker in self._workers):
                self.rest()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._stop.value = 0
        return queue.outcomes

    def _kept(self, run: str, step: int) -> bool:
        return (self.store.run_folder(run) / "checkpoints" / f"step-{step}").is_dir()

    def _hand_out(self, queue: _Queue) -> None:
        at_hand = [job for worker in self._workers for jobs in worker.stacks for job in jobs]
        unfinished = {job.spec.id for job in [*at_hand, *queue.waiting]}
        # Idle workers come first: jobs are sent early only when no worker is idle.
        asking = sorted((worker for worker in self._workers if worker.wants_more()), key=lambda w: len(w.stacks))
        starting = max(0, self.n_workers - len(self._workers))
        idle = sum(not worker.stacks for worker in asking)
        for number, worker in enumerate(asking):
            ready = [job for job in queue.waiting if self._is_ready(job, unfinished)]
            if not ready:
                return
            # A run that has killed several workers trains alone in its last attempt, since other runs would die with
            # it.
            members = self._members.get(stack_key(ready[0].spec), 1) if queue.may_stack(ready[0]) else 1
            mates = [job for job in ready if queue.may_stack(job) and stack_key(job.spec) == stack_key(ready[0].spec)]
            # The idle workers share the jobs, even if one stack could hold them all: two workers with half a stack each
            # are faster than one with a full stack. A message has more jobs than fit at once, since one enters as
            # another leaves. Later messages have fewer, so that all workers finish together.
            sharing = idle - number + starting if number < idle else self.n_workers
            jobs = mates[: -(-len(mates) // sharing)] if members > 1 else ready[:1]
            for job in jobs:
                queue.waiting.remove(job)
            jobs = [job for job in jobs if not self._settle(job, queue)]
            for job in jobs:
                self.store.mark_running(job.spec.id)
            if jobs:
                worker.give(jobs, min(members, len(jobs)))

    def _settle(self, job: Job, queue: _Queue) -> bool:
        """Whether another process with the same store has finished the run since this call began."""
        outcome = settled(self.store, job.spec.id)
        if outcome is None:
            return False
        queue.outcomes[job.spec.id] = outcome
        queue.done_flops += job.new_flops(job.spec.steps)
        return True

    def _is_ready(self, job: Job, unfinished: set[str]) -> bool:
        # A branch waits for its trunk; if the trunk failed, the branch takes all steps itself.
        return job.trunk is None or self._kept(*job.trunk) or job.trunk[0] not in unfinished

    def _choose_stacks(self, queue: _Queue) -> None:
        """Measure, for shapes with much work, whether stacks train more tokens per second than single models."""
        groups: dict[Hashable, list[Job]] = {}
        for job in queue.waiting:
            groups.setdefault(stack_key(job.spec), []).append(job)
        for key, jobs in groups.items():
            flops = sum(job.new_flops(job.spec.steps) for job in jobs)
            if key not in self._members and flops > _WORTH_FLOPS * self.n_workers:
                self._members[key] = self._best_members(jobs[0].spec, len(jobs) // self.n_workers)

    def _best_members(self, spec: RunSpec, most: int) -> int:
        """Models that a worker should train at once, at most ``most``; 1 if a stack gains too little."""
        single = Probe.of(spec, _STACK_PROBE_S)
        best = 1
        try:
            if most < min(_STACKS) or spec.batch_tokens * self.n_workers > _BUSY_STEP_S * self.measure([single])[0]:
                return best
            for members in _STACKS:
                if members > most:
                    break
                # Measured in turn and three times, so that a busy moment does not decide.
                rates = self.measure([replace(single, members=best), replace(single, members=members)] * 3)
                if statistics.median(rates[1::2]) < _GAIN * statistics.median(rates[::2]):
                    break
                best = members
        except ArmillaryError:  # it does not fit in memory, so the best so far stays
            pass
        return best

    def _collect(self, queue: _Queue) -> None:
        for worker, answer in self._receive():
            if isinstance(answer, Lost):
                self._give_back(worker, answer, queue)
            elif answer.kind == "step":
                worker.advance(answer.run, answer.value)
            else:
                job = worker.finish(answer.run)
                if answer.kind == "stopped":
                    self.store.mark_failed(answer.run, "pending", answer.value)
                    queue.waiting.append(job)
                    continue
                queue.done_flops += job.new_flops(job.spec.steps)
                if answer.kind == "done":
                    queue.outcomes[answer.run] = keep_result(self.store, answer.value)
                elif answer.kind in ("diverged", "refused", "failed"):
                    self.store.mark_failed(answer.run, answer.kind, answer.value)
                    queue.outcomes[answer.run] = Failure(answer.run, answer.kind, answer.value)

    def _give_back(self, worker: Worker, lost: Lost, queue: _Queue) -> None:
        """Retry the jobs of a lost worker, unless its run has killed too many workers."""
        again = []
        for place, jobs in enumerate(worker.stacks):
            for job in jobs:
                run = job.spec.id
                if place == 0 and lost.blames_run:
                    # Counted per call: clean stops and earlier calls do not show whether this run kills workers.
                    queue.deaths[run] = queue.deaths.get(run, 0) + 1
                if queue.deaths.get(run, 0) < MAX_ATTEMPTS or self._stop.value:
                    self.store.mark_failed(run, "pending", f"its worker died ({lost.how}); retried")
                    again.append(job)
                else:
                    error = (
                        f"run {run}: its worker died ({lost.how}) in each of {queue.deaths[run]} attempts; if "
                        "memory is short, give fewer --workers; the same command retries the run"
                    )
                    self.store.mark_failed(run, "failed", error)
                    queue.outcomes[run] = Failure(run, "failed", error)
                    queue.done_flops += job.new_flops(job.spec.steps)
        worker.stacks.clear()
        queue.waiting[:0] = again


def _on_signals(stop: Any) -> dict[int, Any]:
    """Let Ctrl-C and SIGTERM set ``stop``; a second Ctrl-C ends at once. Returns the previous handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}

    def handle(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)
        stop.value = 1

    return {number: signal.signal(number, handle) for number in SIGNALS}

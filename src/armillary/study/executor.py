"""Carries out many runs on this machine: one warm worker process per core, each with one thread.

Small models waste most of a second thread, so a fleet of one-thread processes trains more tokens per second than one
process with all cores; with an accelerator there is one worker per device. Jobs go to whoever is free, the longest
first, a branch as soon as its trunk has left the checkpoint it needs. A worker that dies is replaced and its run tried
again from its last checkpoint; a run that diverges is marked and the others go on.

Only the parent writes to the database. Workers end by themselves, with a checkpoint, when the parent is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from armillary.recipe import ArmillaryError, ModelShape, RunSpec
from armillary.study.store import Store
from armillary.train import RunResult

MAX_ATTEMPTS = 3
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedStudyError(ArmillaryError):
    """Ctrl-C, or a signal to end: every run has left a checkpoint."""


class Progress(Protocol):
    """Told about long work: ``stage``, units done and in all, and a word on what the units are."""

    def __call__(self, stage: str, done: float, total: float, note: str) -> None: ...


@dataclass(frozen=True)
class Job:
    """A run to carry out; ``trunk`` is the run and step it may branch from, ``keep`` the steps others branch from."""

    spec: RunSpec
    trunk: tuple[str, int] | None = None
    keep: tuple[int, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A run that has no result: ``status`` is ``failed`` or ``diverged``."""

    run: str
    status: str
    error: str


@dataclass(frozen=True)
class Probe:
    """A throughput to measure: training steps of this shape for about ``seconds``."""

    shape: ModelShape
    context_length: int
    batch_sequences: int
    precision: str
    seconds: float = 1.5


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: Job | None = None
    step: int = 0


@dataclass
class _Queue:
    """The jobs of one call and where each stands."""

    waiting: list[Job]
    done_flops: float = 0.0
    outcomes: dict[str, RunResult | Failure] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)


class LocalExecutor:
    """Worker processes on this machine over one corpus and one store.

    Use as a context manager; workers start with the first job and stay warm between calls.
    """

    def __init__(
        self, store: Store, corpus: Path, workers: int | None = None, checkpoint_every_s: float = 30.0
    ) -> None:
        self.store = store
        self.corpus = corpus
        self.checkpoint_every_s = checkpoint_every_s
        self.n_workers = workers or default_workers()
        self._context = mp.get_context("spawn")
        # A plain byte and not an Event: a worker that is killed while it holds an Event's lock would stop all others.
        self._stop = self._context.RawValue("b", 0)
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.value = 1
        for worker in self._workers:
            worker.pipe.close()  # an idle worker ends when its pipe does
        for worker in self._workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()
        self._stop.value = 0

    def measure(self, probes: Sequence[Probe]) -> list[float]:
        """Tokens per second of all workers together for each probe, all workers busy at once.

        Raises:
            ArmillaryError: a worker died, or could not train at this size.
        """
        rates = []
        self._start_workers()
        for probe in probes:
            try:
                for worker in self._workers:
                    worker.pipe.send(("measure", probe))
                answers = [worker.pipe.recv() for worker in self._workers]
            except (EOFError, OSError) as error:
                raise ArmillaryError(
                    "the throughput could not be measured: a worker process died (out of memory? try fewer workers; "
                    "or a script that starts an executor outside of if __name__ == '__main__')"
                ) from error
            for kind, value in answers:
                if kind != "measured":
                    raise ArmillaryError(f"the throughput could not be measured: {value}")
            rates.append(sum(value for _, value in answers))
        return rates

    def run(
        self, study: str, jobs: Sequence[Job], progress: Progress = lambda stage, done, total, note: None
    ) -> dict[str, RunResult | Failure]:
        """Carry out the jobs that have no result yet; returns the outcome of each by run id.

        Raises:
            InterruptedStudyError: stopped by Ctrl-C; the same call goes on.
        """
        unique = list({job.spec.id: job for job in jobs}.values())
        self.store.add(study, [job.spec for job in unique])
        queue = _Queue(waiting=[])
        for job in unique:
            result = self.store.result(job.spec.id)
            if result is not None:
                queue.outcomes[job.spec.id] = result
            else:
                queue.waiting.append(job)
        if not queue.waiting:
            return queue.outcomes
        queue.waiting.sort(key=lambda job: -job.spec.flops)
        total = sum(_new_flops(job) for job in queue.waiting)
        total_runs = len(queue.waiting)
        self._start_workers()
        before = _on_signals(self._stop)
        try:
            while queue.waiting or any(worker.job for worker in self._workers):
                if self._stop.value and not any(worker.job for worker in self._workers):
                    raise InterruptedStudyError(
                        f"{study}: stopped with {len(queue.waiting)} of {total_runs} runs to go; "
                        "every run has left a checkpoint: give the same command to go on"
                    )
                if not self._stop.value:
                    self._hand_out(queue)
                self._collect(queue)
                running = sum(_flops_after(w.job, w.step) for w in self._workers if w.job)
                finished = total_runs - len(queue.waiting) - sum(w.job is not None for w in self._workers)
                progress(study, queue.done_flops + running, total, f"{finished}/{total_runs} runs")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._stop.value = 0
        return queue.outcomes

    def _start_workers(self) -> None:
        while len(self._workers) < self.n_workers:
            self._workers.append(self._spawn(len(self._workers)))

    def _spawn(self, index: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self.corpus, self.store.folder, self._stop, index, os.getpid(), self.checkpoint_every_s)
        process = self._context.Process(target=_work, args=arguments, daemon=True)
        # Ctrl-C reaches the whole group, and the child's first seconds go into imports: it inherits that these are
        # blocked. The tracker of multiprocessing is started first, because starting it unblocks them.
        resource_tracker.ensure_running()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        return _Worker(process, ours)

    def _kept(self, run: str, step: int) -> bool:
        return (self.store.run_folder(run) / "checkpoints" / f"step-{step}").is_dir()

    def _hand_out(self, queue: _Queue) -> None:
        unfinished = {w.job.spec.id for w in self._workers if w.job} | {job.spec.id for job in queue.waiting}
        for worker in self._workers:
            if worker.job is not None:
                continue
            for job in queue.waiting:
                # A branch waits for its trunk; should the trunk have failed, it trains the whole way itself.
                if job.trunk is None or self._kept(*job.trunk) or job.trunk[0] not in unfinished:
                    queue.waiting.remove(job)
                    self.store.mark_running(job.spec.id)
                    worker.job, worker.step = job, job.trunk[1] if job.trunk else 0
                    with contextlib.suppress(OSError):  # it has died: its pipe will tell so
                        worker.pipe.send(("run", job))
                    break

    def _collect(self, queue: _Queue) -> None:
        by_pipe = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(by_pipe), timeout=0.5):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):
                self._replace(worker, queue)
                continue
            job = worker.job
            assert job is not None
            if kind == "step":
                worker.step = value
                continue
            worker.job = None
            if kind == "stopped":
                self.store.mark_failed(job.spec.id, "pending", value)
                queue.waiting.append(job)
                continue
            queue.done_flops += _new_flops(job)
            if kind == "done":
                self.store.mark_done(value)
                queue.outcomes[job.spec.id] = value
            else:
                self.store.mark_failed(job.spec.id, kind, value)
                queue.outcomes[job.spec.id] = Failure(job.spec.id, kind, value)

    def _replace(self, worker: _Worker, queue: _Queue) -> None:
        """A worker died: start another, and try its run again unless it has killed too many workers."""
        worker.pipe.close()
        worker.process.join()
        code = worker.process.exitcode
        job = worker.job
        self._workers[self._workers.index(worker)] = self._spawn(self._workers.index(worker))
        if job is None:
            return
        how = f"signal {-code}" if code and code < 0 else f"exit code {code}"
        # Counted per call: orderly stops and earlier calls say nothing about whether this run kills its workers.
        deaths = queue.deaths[job.spec.id] = queue.deaths.get(job.spec.id, 0) + 1
        if deaths < MAX_ATTEMPTS or self._stop.value:
            self.store.mark_failed(job.spec.id, "pending", f"its worker died ({how}); tried again")
            queue.waiting.insert(0, job)
        else:
            error = f"its worker died ({how}) in each of {deaths} attempts"
            self.store.mark_failed(job.spec.id, "failed", error)
            queue.outcomes[job.spec.id] = Failure(job.spec.id, "failed", error)
            queue.done_flops += _new_flops(job)


def default_workers() -> int:
    """One worker per accelerator where there is one, else one per core this process may use."""
    import torch

    return torch.accelerator.device_count() or len(os.sched_getaffinity(0))


def _flops_after(job: Job, step: int) -> float:
    """FLOPs that a job has spent after ``step`` steps, without those its trunk has taken for it."""
    # Without its trunk's checkpoint a branch begins at 0, which is not progress.
    own = max(0, step - (job.trunk[1] if job.trunk else 0))
    return job.spec.flops * own / job.spec.steps


def _new_flops(job: Job) -> float:
    return _flops_after(job, job.spec.steps)


def _on_signals(stop: Any) -> dict[int, Any]:
    """Let Ctrl-C and a request to end set ``stop``; a second Ctrl-C ends at once. Returns the handlers before."""
    if threading.current_thread() is not threading.main_thread():
        return {}

    def handle(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)
        stop.value = 1

    return {number: signal.signal(number, handle) for number in _SIGNALS}


def _work(
    pipe: Connection, corpus_path: Path, store: Path, stop: Any, index: int, parent: int, checkpoint_every_s: float
) -> None:
    """The life of a worker: take jobs from the pipe until it closes."""
    for number in _SIGNALS:  # they reach the whole group; the parent alone decides
        signal.signal(number, signal.SIG_IGN)
    import torch

    from armillary.corpus import Corpus
    from armillary.train import BusyRunError, DivergedError, InterruptedRunError, Trunk, default_device, train_run

    torch.set_num_threads(1)
    device = default_device()
    if device.type != "cpu":
        device = torch.device(device.type, index % torch.accelerator.device_count())
    corpus = Corpus.open(corpus_path)
    last = 0.0

    def report(step: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.2:
            last = now
            with contextlib.suppress(OSError):  # the parent is gone; `stopping` will see it and leave in order
                pipe.send(("step", step))

    def stopping() -> bool:
        return bool(stop.value) or os.getppid() != parent

    def train(job: Job) -> RunResult:
        folder = store / "runs"
        while True:
            try:
                return train_run(
                    job.spec,
                    corpus,
                    folder / job.spec.id,
                    trunk=Trunk(folder / job.trunk[0], job.trunk[1]) if job.trunk else None,
                    keep=job.keep,
                    checkpoint_every_s=checkpoint_every_s,
                    device=device,
                    progress=report,
                    stop=stopping,
                )
            except BusyRunError:
                # Another study trains it, or the last workers of one that was killed are still leaving.
                if stopping():
                    raise InterruptedRunError(f"run {job.spec.id} is trained by another process") from None
                time.sleep(0.5)

    while True:
        try:
            kind, payload = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if kind == "measure":
                answer: tuple[str, Any] = ("measured", _measure(payload, device))
            else:
                answer = ("done", train(payload))
        except InterruptedRunError as error:
            answer = ("stopped", str(error))
        except DivergedError as error:
            answer = ("diverged", str(error))
        except Exception as error:
            answer = ("failed", f"{type(error).__name__}: {error}")
        try:
            pipe.send(answer)
        except OSError:
            return


def _measure(probe: Probe, device: Any) -> float:
    """Tokens per second of real training steps on random tokens."""
    import torch

    from armillary.model import Transformer
    from armillary.recipe import MixturePhase, OptimizerSpec, Schedule
    from armillary.train import build_optimizer, train_step

    spec = RunSpec(
        corpus="",
        model=probe.shape,
        context_length=probe.context_length,
        batch_sequences=probe.batch_sequences,
        steps=1,
        mixture=(MixturePhase(start_step=0, weights={"random": 1.0}),),
        schedule=Schedule(kind="constant"),
        optimizer=OptimizerSpec(lr=1e-4),
        seed=0,
        precision=probe.precision,  # type: ignore[arg-type]
    )
    model = Transformer(probe.shape)
    model.init_weights(0)
    model.to(device)
    optimizer = build_optimizer(model, spec)
    batch = torch.randint(probe.shape.vocab_size, (probe.batch_sequences, probe.context_length + 1), device=device)
    train_step(model, optimizer, spec, 0, batch)[0].item()
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < probe.seconds:
        train_step(model, optimizer, spec, 0, batch)[0].item()
        steps += 1
    return steps * spec.batch_tokens / (time.perf_counter() - begin)

"""One training run, from its specification to its result, on one device or over many ranks (`ranks`).

The run's folder has ``spec.json``, ``events.jsonl`` (contract 3) and ``checkpoints/``, and at the end
``metrics.parquet``, ``model.safetensors`` and ``result.json``. The last file marks the run as done. A second call of
``train_run`` returns the result if it exists, or resumes from the last good checkpoint. The numbers do not depend on
how often a run was resumed (contract 1). A lock on the folder excludes a second process.

A checkpoint due after a step is written before that step's validation, so a failed validation loses no step. If the
validation of the resumed step is missing, it runs first.

Trade-offs: losses are fetched from the device only every ``FLUSH`` steps, so a divergence is noticed up to that many
steps late, and training never waits for a number that is not needed yet.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor

from armillary.corpus import Batch, Corpus, DataOrder, data_order
from armillary.goodput import read_events
from armillary.recipe import (
    EVENTS,
    METRICS,
    WEIGHTS,
    RunResult,
    RunSpec,
    measures,
    write_result,
)
from armillary.resilience import Judge
from armillary.train.checkpoint import Branches, Peers, SyncSaver, remove_checkpoints
from armillary.train.engines import Engine, SingleDeviceEngine, peak_memory_gib
from armillary.train.errors import BadStepError, DivergedError
from armillary.train.folder import open_folder, read_metrics
from armillary.train.hooks import Hook, Metrics, Save, Stop, Validate, call_hook, is_due, wishes
from armillary.train.reporter import Reporter
from armillary.train.resume import Trunk, begin
from armillary.train.rows import write_metrics
from armillary.train.skips import write_skips
from armillary.train.world import Single, World, by_first, together
from armillary.train.writing import writing

FLUSH = 25  # steps between two fetches of the losses
LONG_WAIT_S = 0.1  # waits for a batch of at least this time have separate events
_LEAST_WAIT_S = 1e-3  # of shorter ones, the sum between two reports


def default_device() -> torch.device:
    """The machine's accelerator if it has one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def train_run(
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    *,
    trunk: Trunk | None = None,
    keep: tuple[int, ...] = (),
    checkpoint_every_s: float = 30.0,
    device: torch.device | None = None,
    progress: Callable[[int], None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
    hooks: Sequence[Hook] = (),
) -> RunResult:
    """Train ``spec`` in ``folder``, resume it, or return its result if it is done.

    With ``trunk``, the run reuses the steps of another run; the result is the same without it. Checkpoints of the steps
    in ``keep`` are kept for other runs to branch from. After every step, ``progress(step)`` gets the number of finished
    steps, and ``stop()`` is called. ``hooks`` act after each step at which they are due (`hooks`).

    Raises:
        UsageError: the run cannot be trained to its end on this corpus (``check_run``); nothing was written.
        DivergedError: the loss is not finite.
        InterruptedRunError: ``stop()`` returned true; call again to resume.
        BusyRunError: another process trains in this folder.
        DamagedFileError, ForeignFileError: a file of the folder cannot be used; it is named and not changed.
        ArmillaryError: a file could not be read or written, or a hook failed.
    """
    how = TrainOptions(device or default_device(), trunk, keep, checkpoint_every_s, progress, stop, tuple(hooks))
    with open_run(spec, corpus, folder, how) as run:
        if isinstance(run, RunResult):
            return run
        return train_steps(run, (run.order.batch(step).map(torch.from_numpy) for step in run.to_take()))


def train_steps(run: Run[Any], batches: Iterable[Batch[Tensor]]) -> RunResult:
    """Take the remaining steps of the run, with a batch for each step that is not skipped.

    Raises:
        DivergedError, InterruptedRunError: as ``train_run``.
    """
    pending: list[tuple[Tensor, ...]] = []
    coming, first = iter(batches), True
    since, waited = time.perf_counter(), 0.0

    def record() -> None:
        nonlocal since, waited
        if pending:
            values = torch.stack([torch.stack(taken) for taken in pending]).tolist()
            pending.clear()
            run.record(values, time.perf_counter() - since, waited)
        since, waited = time.perf_counter(), 0.0

    while run.step < run.spec.steps:
        if run.step + 1 in run.skipped:
            record()
            run.skip()
        else:
            asked = time.perf_counter()
            batch = next(coming)
            wait_s = time.perf_counter() - asked
            if wait_s < LONG_WAIT_S:
                waited += wait_s
            else:
                run.reporter.write("data_wait", run.step, wait_s)
            pending.append(run.engine.step(run.step, batch))
            run.advance()
        if first:
            if run.engine.compiles and pending:
                run.reporter.write("compile", run.step, time.perf_counter() - asked)
                since = time.perf_counter()
            run.reporter.write("running", run.step)
            first = False
        if run.wants_attention() or len(pending) >= FLUSH:
            record()
            run.attend()
            since = time.perf_counter()
    return run.finish()


@dataclass(frozen=True)
class TrainOptions:
    """The arguments of ``train_run`` that do not affect the run's numbers."""

    device: torch.device
    trunk: Trunk | None = None
    keep: tuple[int, ...] = ()
    checkpoint_every_s: float = 30.0
    progress: Callable[[int], None] = lambda step: None
    stop: Callable[[], bool] = lambda: False
    hooks: tuple[Hook, ...] = ()


@contextlib.contextmanager
def open_run(
    spec: RunSpec, corpus: Corpus, folder: Path, how: TrainOptions
) -> Iterator[Run[SingleDeviceEngine] | RunResult]:
    """Open the run in a folder at the step where ``train_run`` would resume it; yield its result if it is done.

    The folder is locked meanwhile.

    Raises:
        UsageError, BusyRunError, DamagedFileError, ForeignFileError, ArmillaryError: as ``train_run``.
    """
    with open_folder(spec, corpus, folder) as opened:
        if isinstance(opened, RunResult):
            yield opened
            return
        policy = Branches(how.keep, how.checkpoint_every_s)
        save = Save(SyncSaver(folder / "checkpoints", policy), policy)
        job = Job(spec, corpus, folder, Single(), Reporter(opened, how.progress))
        run = Run(job, SingleDeviceEngine(spec, how.device), save, Stop(how.stop), how.hooks)
        begin(run, how.trunk)
        yield run


EngineT = TypeVar("EngineT", bound=Engine)


@dataclass(frozen=True)
class Job:
    """The parts of a run in progress: specification, corpus, folder, engine, processes and reporter."""

    spec: RunSpec
    corpus: Corpus
    folder: Path
    world: World
    reporter: Reporter


class Run(Generic[EngineT]):
    """A run between two steps; ``train_steps`` or a stack of runs takes the steps.

    The caller calls ``advance`` after every step. If ``wants_attention`` is true, and at least every ``FLUSH`` steps,
    it calls ``record`` with the losses and then ``attend``. After the last step it calls ``finish``. With many ranks
    each has a ``Run`` and all make the same calls; only the first writes. ``hooks`` act in their order, between
    checkpoint and stop.
    """

    def __init__(self, job: Job, engine: EngineT, save: Save, stop: Stop, hooks: Sequence[Hook] = ()) -> None:
        self.spec, self.corpus, self.folder, self.world, self.reporter = (
            job.spec, job.corpus, job.folder, job.world, job.reporter
        )  # fmt: skip
        self.engine, self.save, self.stop = engine, save, stop
        self.checkpoints = job.folder / "checkpoints"
        self.memory: Path | None = None  # folder of snapshots, if any
        self.peers: Peers | None = None  # the machines that divide them, if there are several
        self.in_memory: Save | None = None  # the hook that writes them
        self.order: DataOrder = data_order(job.spec, job.corpus)
        self.metrics = Metrics(job.folder / "metrics" if job.world.rank == 0 else None)
        self.step = self.began = 0  # finished steps now, and at the start of this attempt
        self.repeated: dict[int, tuple[float, float]] = {}  # of steps that are taken again: loss and tolerance
        self.skipped: dict[int, str] = {}  # the steps that take no update, with reasons (`skips`)
        self.judge = Judge()
        self._between: tuple[Hook, ...] = (Validate(job.spec), *hooks, self.metrics)
        self._due: list[Hook] = []

    def catch_up(self) -> None:
        """Call the hooks due at a checkpoint's step, since the checkpoint was written before they acted."""
        self._act([hook for hook in self._between if is_due(hook, self.step)])

    def to_take(self) -> list[int]:
        """The remaining steps (0-based) whose batch is not skipped."""
        return [step for step in range(self.step, self.spec.steps) if step + 1 not in self.skipped]

    def skip(self) -> None:
        """Count the next step, whose batch is skipped."""
        self.advance()
        self.metrics.append(self._row(self.step))

    def leave_out(self, step: int, why: str) -> None:
        """Record that ``step`` takes no update; this takes effect when the run next starts.

        Raises:
            ArmillaryError: the record could not be written; on all ranks.
        """
        self.skipped[step] = why
        by_first(self.world, partial(write_skips, self.folder, self.spec.id, self.skipped))
        if self.reporter.first:
            self.reporter.write("skipped", step, batches=1, why=why)
            self.reporter.tell(f"step {step}: {why}; its batch is skipped from now on")

    def _row(self, step: int) -> dict[str, float]:
        return {"step": step, "tokens": self.spec.tokens_after(step), "lr": self.spec.lr(step - 1)}

    def advance(self) -> None:
        """Count one more step."""
        self.step += 1
        self.reporter.progress(self.step)

    def wants_attention(self) -> bool:
        """Whether ``attend`` must be called after this step, with fetched losses; called once per step.

        Raises:
            ArmillaryError: a hook failed; it is named.
        """
        hooks: list[Hook] = [self.save, *self._between, self.stop]
        decided = self.world.vote(sum(1 << place for place, hook in enumerate(hooks) if wishes(hook, self.step)))
        called = [bool(decided >> place & 1) for place in range(len(hooks))]
        if called[-1] and self.step < self.spec.steps:  # everything else is done at the next start
            self._due = [self.save, self.stop]
        else:
            chosen = zip(hooks[:-1], called, strict=False)
            self._due = [hook for hook, wished in chosen if is_due(hook, self.step) or wished]
        return bool(self._due)

    def record(self, values: Sequence[Sequence[float]], seconds: float, waited_s: float = 0.0) -> None:
        """Record the results of the last steps; of their ``seconds``, ``waited_s`` were short waits for data.

        Raises:
            DivergedError: a loss or a gradient norm is not finite; with many ranks it is a BadStepError.
        """
        names = measures(self.spec.objective)
        for step, (loss, norm, *measured) in enumerate(values, start=self.step - len(values) + 1):
            verdict = self.judge.look(step, loss, norm)
            if verdict is not None:
                self.bad_step(BadStepError(step, verdict))
            self._compare(step, loss)
            more = zip(names, measured, strict=True)
            self.metrics.append({**self._row(step), "loss": loss, "grad_norm": norm, **dict(more)})
        loss = self.metrics.last["loss"]
        if waited_s >= _LEAST_WAIT_S:
            self.reporter.write("data_wait", self.step, waited_s)
        memory_gib = round(peak_memory_gib(self.engine.device), 3)
        self.reporter.write("progress", self.step, seconds, loss=loss, memory_gib=memory_gib)
        self.metrics.show()
        self.save.report(self)

    def _compare(self, step: int, loss: float) -> None:
        """Report a repeated step whose loss differs from the first time: weights, data or a processor were wrong."""
        before, tolerance = self.repeated.pop(step, (loss, 0.0))
        if not abs(loss - before) <= tolerance:
            how = f"the repeated step {step} has the loss {loss:.9g}, but had {before:.9g}"
            self.reporter.write("detected", step, found="not repeatable", how=how)
            self.reporter.tell(f"{how}: memory or a processor was wrong in one of the two")

    def attend(self) -> None:
        """Call the hooks due after the last recorded step: checkpoint, validation, others, stop.

        Raises:
            DivergedError: a validation loss is not finite.
            InterruptedRunError: the run was stopped.
            ArmillaryError: a hook failed; it is named.
        """
        due, self._due = self._due, []
        self._act(due)

    def _act(self, hooks: Sequence[Hook]) -> None:
        for hook in hooks:
            self.reporter.busy(type(hook).__name__)
            together(self.world, partial(call_hook, hook, self))
        self.reporter.busy(None)

    def bad_step(self, error: BadStepError) -> NoReturn:
        """Whether the step can be retried: only many ranks can, since a single process loses nothing on the way."""
        if self.world.size > 1:
            raise error
        self.diverged(error.step, error.what)

    def diverged(self, step: int, what: str) -> NoReturn:
        """End the run, because a value of ``step`` is not finite."""
        self.save.saver.wait()
        if self.reporter.first:
            self.reporter.write("fault", step, problem="diverged")
        rate = self.spec.optimizer.lr
        raise DivergedError(f"run {self.spec.id} diverged: at step {step} {what}; lower the learning rate ({rate:g})")

    def finish(self) -> RunResult:
        """Write metrics, weights and, last, the result, which marks the run as done.

        Raises:
            ArmillaryError: one of them could not be written; the last checkpoint is kept.
        """
        self.reporter.busy("finish")
        begin = time.perf_counter()
        self.save.wait(self)
        self.engine.save_weights(self.folder / WEIGHTS)
        result = by_first(self.world, partial(_conclude, self, begin))
        if not self.reporter.first:
            self.reporter.write("end", self.step, time.perf_counter() - begin)
        return result


def _conclude(run: Run[Any], begin: float) -> RunResult:
    write_metrics(run.metrics.rows(), run.folder / METRICS)
    last, steps = run.metrics.last, run.spec.steps
    columns = ["loss", *measures(run.spec.objective)]
    taken = read_metrics(run.folder, columns).drop_null()  # a skipped step has no loss
    tail = taken.slice(max(0, len(taken) - max(1, steps // 10))).to_pydict()
    means = {name: sum(values) / len(values) for name, values in tail.items()}
    domains = run.corpus.domains
    run.reporter.write("end", run.step, time.perf_counter() - begin)
    result = RunResult(
        run=run.spec.id,
        loss={d: last[f"validation/{d}/loss"] for d in domains},
        bits_per_byte={d: last[f"validation/{d}/bits_per_byte"] for d in domains},
        train_loss=means.pop("loss"),
        tokens=run.spec.tokens,
        flops=run.spec.flops,
        epochs=run.order.epochs(steps),
        wall_s=_spent(run.folder / EVENTS),
        measured=means,
        skipped=tuple(sorted(run.skipped)),
    )
    with writing(run.folder / "result.json"):
        write_result(run.folder, result)
    run.metrics.clear()
    remove_checkpoints(run.checkpoints, run.spec.id, run.save.policy.stays)
    return result


def _spent(path: Path) -> float:
    """Seconds of work in the events of a run: steps, validations and checkpoints of all attempts."""
    # A wait for data is part of the time of the steps.
    return sum(event.duration_s or 0.0 for event in read_events(path) if event.kind not in ("data_wait", "pause"))

"""One training run, from its specification to its result; on one device, or by many ranks (`ranks`).

The run lives in a folder: ``spec.json``, ``events.jsonl`` (contract 3), ``checkpoints/``, and at the end
``metrics.parquet``, ``model.safetensors`` and ``result.json``, the last of which makes the run done. ``train_run``
called again on the folder returns the result if it is there, or resumes from the last good checkpoint; the numbers do
not depend on how often that happened (contract 1). A lock on the folder keeps a second process out.

A checkpoint that is due after a step is written before that step's validation, so that a validation that fails costs
no step. A run that resumes at a step whose validation is missing takes it first.

Trade-offs: losses are fetched from the device only every ``FLUSH`` steps, so a divergence is noticed up to that many
steps late, and training never waits for a number that nobody has asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import pyarrow.parquet as pq
import torch
from torch import Tensor

from armillary.corpus import Batch, Corpus, DataOrder, data_order
from armillary.files import aside, sync, write_json
from armillary.goodput import EventKind, EventWriter, read_events
from armillary.model import Transformer
from armillary.recipe import ArmillaryError, DamagedFileError, ForeignFileError, RunSpec
from armillary.train.check import check_run
from armillary.train.checkpoint import (
    CheckpointReader,
    Progress,
    RetentionPolicy,
    checkpoint_steps,
    metrics_table,
    remove_checkpoints,
    set_aside,
    verify_checkpoint,
    writing,
)
from armillary.train.engine import Alone, Engine, validate
from armillary.train.result import EVENTS, METRICS, SPEC, WEIGHTS, RunResult, read_result, read_spec, write_result
from armillary.train.saver import Direct, Saved, Saver
from armillary.train.start import open_start, verify_start
from armillary.train.world import Single, World

FLUSH = 25  # steps between two looks at the losses
_SAVE, _STOP = 1, 2  # what is voted on


class BusyRunError(ArmillaryError):
    """Another process trains in the run's folder."""


class DivergedError(ArmillaryError):
    """The loss became infinite or not a number."""


class InterruptedRunError(ArmillaryError):
    """The run was asked to stop; a checkpoint of its last step is written."""


@dataclass(frozen=True)
class Trunk:
    """The folder of a run that shares its first ``step`` steps with the one to train."""

    folder: Path
    step: int


def default_device() -> torch.device:
    """The machine's accelerator where there is one, else the CPU."""
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
) -> RunResult:
    """Train ``spec`` in ``folder``, or resume it, or return its result where it is done.

    ``trunk`` saves the steps that another run has already taken; the result is the same without it. Checkpoints of the
    steps in ``keep`` stay for other runs to branch from. After every step ``progress(step)`` is called with the number
    of finished ones, and ``stop()``.

    Raises:
        UsageError: the run cannot be trained to its end on this corpus (``check_run``); nothing was written.
        DivergedError: the loss is not finite.
        InterruptedRunError: ``stop()`` returned true; call again to resume.
        BusyRunError: another process trains in this folder.
        DamagedFileError, ForeignFileError: a file of the folder cannot be used; it is named, and left as it is.
        ArmillaryError: a file could not be read or written.
    """
    device = device or default_device()
    with open_run(spec, corpus, folder, device, trunk, keep, checkpoint_every_s, progress, stop) as run:
        if isinstance(run, RunResult):
            return run
        return carry_out(run, (run.order.batch(step).map(torch.from_numpy) for step in range(run.step, spec.steps)))


def carry_out(run: Run[Any], batches: Iterable[Batch[Tensor]]) -> RunResult:
    """Take the run through its remaining steps, a batch for each, to its end.

    Raises:
        DivergedError, InterruptedRunError: as ``train_run``.
    """
    pending: list[tuple[Tensor, Tensor]] = []
    since = time.perf_counter()
    for batch in batches:
        pending.append(run.engine.step(run.step, batch))
        run.advance()
        if run.wants_attention() or len(pending) >= FLUSH:
            values = torch.stack([torch.stack(pair) for pair in pending]).tolist()
            pending.clear()
            run.record(values, time.perf_counter() - since)
            run.attend()
            since = time.perf_counter()
    return run.finish()


@contextlib.contextmanager
def open_run(
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    device: torch.device,
    trunk: Trunk | None,
    keep: tuple[int, ...],
    checkpoint_every_s: float,
    progress: Callable[[int], None],
    stop: Callable[[], bool],
) -> Iterator[Run[Alone] | RunResult]:
    """The run of a folder where ``train_run``, whose arguments these are, would go on with it; its result if done.

    The folder is locked meanwhile.

    Raises:
        UsageError, BusyRunError, DamagedFileError, ForeignFileError, ArmillaryError: as ``train_run``.
    """
    with open_folder(spec, corpus, folder) as opened:
        if isinstance(opened, RunResult):
            yield opened
            return
        policy = _Branches(keep, checkpoint_every_s)
        saver = Direct(folder / "checkpoints", policy)
        run = Run(spec, corpus, folder, opened, Alone(spec, device), saver, policy, Single(), progress, stop)
        run.begin(trunk)
        yield run


@contextlib.contextmanager
def open_folder(spec: RunSpec, corpus: Corpus, folder: Path) -> Iterator[EventWriter | RunResult]:
    """The run's folder, locked: its result where it is done, else where to write its events.

    Raises:
        UsageError, BusyRunError, DamagedFileError, ForeignFileError, ArmillaryError: as ``train_run``.
    """
    check_run(spec, corpus)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        damaged = _claim(folder, spec)
        done = read_result(folder, spec.id)
        if done is not None:
            yield done
            return
        with EventWriter(folder / EVENTS, spec.id) as events:
            for name, problem in damaged:
                events.write("fault", 0, file=name, problem=problem, remedy=f"it is kept as {name}.damaged")
            yield events


def _claim(folder: Path, spec: RunSpec) -> list[tuple[str, str]]:
    """Make sure that the folder is that of ``spec``, and write what is missing of its specification.

    What is damaged and can be done without is set aside: the specification, which the caller has, and the events, of
    which only the times are lost. Returns their names and what is wrong.

    Raises:
        ForeignFileError: the folder holds another run, or a file of a newer format.
    """
    damaged: list[tuple[str, str]] = []
    missing = False
    try:
        found = read_spec(folder)
        if found.id != spec.id:
            raise ForeignFileError(
                f"{folder}: holds another run than {spec.id}: {found.id}; give every run a folder of its own"
            )
    except FileNotFoundError:
        missing = True
    except DamagedFileError as error:
        damaged.append((SPEC, str(error)))
    known: set[str] = set()
    try:
        known = {event.run for event in read_events(folder / EVENTS)}
    except FileNotFoundError:
        pass
    except DamagedFileError as error:
        damaged.append((EVENTS, str(error)))
    if known - {spec.id}:
        raise ForeignFileError(
            f"{folder / EVENTS}: holds events of run {min(known - {spec.id})}, not of {spec.id}; give every run a "
            "folder of its own. The file is left as it is"
        )
    for name, _ in damaged:
        set_aside(folder / name)
    if missing or not (folder / SPEC).exists():
        with writing(folder / SPEC):
            write_json(folder / SPEC, spec.model_dump(mode="json"))
    return damaged


class Events(Protocol):
    """Where a run tells what happens."""

    def write(self, kind: EventKind, step: int, duration_s: float | None = None, **data: Any) -> None:
        """Append one event that happens now."""


class Silent:
    """For ranks that tell nothing, since the first one does."""

    def write(self, kind: EventKind, step: int, duration_s: float | None = None, **data: Any) -> None:
        """Nothing."""


@dataclass(frozen=True)
class _Branches:
    """Checkpoints by the clock, and of the steps that other runs branch from."""

    keep: tuple[int, ...]
    every_s: float
    keep_last: int = 2

    def due(self, step: int) -> bool:
        return step in self.keep

    def stays(self, step: int) -> bool:
        return step in self.keep


EngineT = TypeVar("EngineT", bound=Engine)
T = TypeVar("T")


class Run(Generic[EngineT]):
    """A run between two of its steps, whether ``carry_out`` takes them or a stack of many runs.

    After every step ``advance``; then, if it ``wants_attention`` and otherwise within ``FLUSH`` steps, ``record`` the
    losses of the steps and ``attend``; after the last one ``finish``. With many ranks each has one of these and all do
    the same; the first alone writes.
    """

    def __init__(
        self,
        spec: RunSpec,
        corpus: Corpus,
        folder: Path,
        events: Events,
        engine: EngineT,
        saver: Saver,
        policy: RetentionPolicy,
        world: World,
        progress: Callable[[int], None],
        stop: Callable[[], bool],
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.spec, self.corpus, self.folder, self.events = spec, corpus, folder, events
        self.engine, self.saver, self.policy, self.world = engine, saver, policy, world
        self.progress, self.stop, self.tell = progress, stop, tell
        self.checkpoints = folder / "checkpoints"
        self.order: DataOrder = data_order(spec, corpus)
        self.step = 0
        self.metrics: list[dict[str, float]] = []
        self._saved = time.perf_counter()
        self._saving = self._stopping = False

    def begin(self, trunk: Trunk | None = None) -> None:
        """Start from the last good checkpoint of this folder, else from the trunk's, else from the beginning.

        Initial weights are those of ``spec.start``, and drawn only where the run has none and no checkpoint is loaded.
        Damaged checkpoints after the last good one are set aside. Without a good one nothing is touched.

        Raises:
            ForeignFileError: the newest checkpoint is of a newer format, another run or another model.
            DamagedFileError: there are checkpoints, and all are damaged.
            ArmillaryError: a checkpoint cannot be read now.
        """
        damaged: list[tuple[int, str]] = []
        for step in reversed(self._by_first(lambda: checkpoint_steps(self.checkpoints))):
            found = self._examine(step)
            if isinstance(found, CheckpointReader):
                for later, what in damaged:
                    kept = self._by_first(partial(set_aside, self.checkpoints / f"step-{later}")).name
                    self._fault(later, f"step-{later}", what, f"the one before it is used; it is kept as {kept}")
                self._load(found, step)
                self.events.write("resume", step, **self.engine.described)
                self._catch_up()
                return
            damaged.append((step, found))
        if damaged:
            count = f"all {len(damaged)} checkpoints are" if len(damaged) > 1 else "the only checkpoint is"
            raise DamagedFileError(
                f"{self.checkpoints}: {count} damaged: {damaged[0][1]}; or move the step-* folders away to train the "
                "run from its beginning. Nothing was changed"
            )
        # A trunk as long as the run leaves nothing to branch off, and lacks the last validation.
        if trunk is not None and trunk.step < self.spec.steps:
            path = trunk.folder / "checkpoints" / f"step-{trunk.step}"
            try:
                reader = self._open_trunk(trunk, path)
            except (ArmillaryError, OSError) as error:
                self._begin_anew()
                self._fault(0, f"{trunk.folder.name}/{path.name}", str(error), "the run starts at step 0")
                return
            self._load(reader, trunk.step)
            self.events.write("start", trunk.step, trunk=trunk.folder.name)
            self._catch_up()
            return
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Give the engine its initial weights.

        Raises:
            DamagedFileError, ForeignFileError, ArmillaryError: as ``open_start``; on all ranks.
        """
        start = self.spec.start
        if start is None:
            self.engine.draw_weights()
            self.events.write("start", 0, **self.engine.described)
            return
        self._by_first(partial(verify_start, start, self.folder.parent))
        self._together(lambda: self.engine.load_weights(open_start(start, self.folder.parent, self.spec.model)))
        self.events.write("start", 0, **self.engine.described, weights=start.sha256)

    def _together(self, act: Callable[[], T]) -> T:
        """What ``act`` returns; where it fails on some ranks, its first error is raised on all."""
        result: Any = None
        problem: ArmillaryError | None = None
        try:
            result = act()
        except ArmillaryError as error:
            problem = error
        for other in self.world.collect(problem):
            if other is not None:
                raise other
        done: T = result
        return done

    def _by_first(self, act: Callable[[], T]) -> T:
        """What ``act`` returns in the first rank, on every rank; an error of it is raised on all."""
        outcome: Any = None
        if self.world.rank == 0:
            try:
                outcome = act()
            except (ArmillaryError, OSError) as error:
                outcome = error
        outcome = self.world.share(outcome)
        if isinstance(outcome, Exception):
            raise outcome
        result: T = outcome
        return result

    def _examine(self, step: int) -> CheckpointReader | str:
        """A checkpoint to resume from, or in words what is damaged in it; the ranks divide its files.

        Raises:
            ArmillaryError: for another reason it must not, or cannot now be used; on all ranks.
        """
        path = self.checkpoints / f"step-{step}"
        problem, reader = None, None
        try:
            if not path.is_dir():
                raise ArmillaryError(
                    f"{path}: rank {self.world.rank} does not see this checkpoint; the run's folder must be on "
                    "storage that all ranks share"
                )
            verify_checkpoint(path, self.spec.id, self.world.rank, self.world.size)
            reader = self._open(path, step)
        except ArmillaryError as error:
            problem = error
        found = [other for other in self.world.collect(problem) if other is not None]
        for other in found:
            if not isinstance(other, DamagedFileError):
                raise other
        return reader if reader is not None and not found else str(found[0])

    def _open(self, path: Path, step: int) -> CheckpointReader:
        """Hold a checkpoint against the run: sizes of its tensors, and what the steps in its metrics were taken with.

        Raises:
            ForeignFileError: it is one of another model or run.
        """
        reader = CheckpointReader(path)
        with torch.device("meta"):
            model = Transformer(self.spec.model)
        reader.compare({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
        rows = reader.metrics()
        if rows and "run" not in reader.manifest:  # formats 1 and 2 say no more of the run than this
            tokens, rate = self.spec.tokens_after(step), self.spec.lr(step - 1)
            if rows[-1]["tokens"] != tokens or not math.isclose(rows[-1]["lr"], rate, rel_tol=1e-6):
                raise ForeignFileError(
                    f"{path}: is a checkpoint of another run: after {rows[-1]['tokens']:,} tokens at the rate "
                    f"{rows[-1]['lr']:.6g}, and in this one after {tokens:,} at {rate:.6g}. It is left as it is"
                )
        return reader

    def _open_trunk(self, trunk: Trunk, path: Path) -> CheckpointReader:
        """The trunk's checkpoint; ArmillaryError where it is not the state of this run after as many steps."""
        verify_checkpoint(path)
        reader = self._open(path, trunk.step)
        manifest = reader.manifest
        prefix = manifest["prefix"] if "prefix" in manifest else read_spec(trunk.folder).prefix_id(trunk.step)
        if prefix != self.spec.prefix_id(trunk.step):
            raise ForeignFileError(f"{path}: the first {trunk.step} steps are those of another run")
        return reader

    def _load(self, reader: CheckpointReader, step: int) -> None:
        def read() -> list[dict[str, float]]:
            self.engine.load(reader)
            return reader.metrics()

        rows = self._together(read)  # some ranks may find all that they need
        # A trunk ends, and is validated, where its branch goes on without a look.
        due = [self.spec.validation.due(int(row["step"]), self.spec.steps) for row in rows]
        self.metrics = [
            row if taken else {k: v for k, v in row.items() if not k.startswith("validation/")}
            for row, taken in zip(rows, due, strict=True)
        ]
        self.step = step

    def _catch_up(self) -> None:
        """Take the validation that is due after the step of the checkpoint, which was written before it."""
        due = self.spec.validation.due(self.step, self.spec.steps)
        if due and not any(key.startswith("validation/") for key in self.metrics[-1]):
            self._validate()

    def _fault(self, step: int, checkpoint: str, problem: str, remedy: str) -> None:
        self.events.write("fault", step, checkpoint=checkpoint, problem=problem, remedy=remedy)
        self.tell(f"checkpoint {checkpoint}: {problem}; {remedy}")

    def advance(self) -> None:
        """One more step is taken."""
        self.step += 1
        self.progress(self.step)

    def wants_attention(self) -> bool:
        """Whether this step is one to ``attend`` to, for which its losses have to be fetched; asked once a step."""
        vote = 0
        if self.world.rank == 0 and time.perf_counter() - self._saved > self.policy.every_s:
            vote, self._saved = _SAVE, time.perf_counter()
        decided = self.world.vote(_STOP if self.stop() else vote)
        self._stopping = decided == _STOP and self.step < self.spec.steps
        self._saving = self._stopping or decided == _SAVE or self.policy.due(self.step)
        return self._saving or self.spec.validation.due(self.step, self.spec.steps)

    def record(self, values: Sequence[tuple[float, float]], seconds: float) -> None:
        """Take in cross entropy and gradient norm of the last steps, on which ``seconds`` were spent.

        Raises:
            DivergedError: one of them is not finite.
        """
        for step, (loss, norm) in enumerate(values, start=self.step - len(values)):
            if not math.isfinite(loss) or not math.isfinite(norm):
                self._diverged(step + 1, f"the loss is {loss} and the gradient norm {norm}")
            self.metrics.append(
                {
                    "step": step + 1,
                    "tokens": self.spec.tokens_after(step + 1),
                    "lr": self.spec.lr(step),
                    "loss": loss,
                    "grad_norm": norm,
                }
            )
        self.events.write("progress", self.step, seconds, loss=self.metrics[-1]["loss"])
        self._note(self.saver.finished())

    def attend(self) -> None:
        """Write a checkpoint, validate, leave: whatever is due after the last recorded step.

        Raises:
            DivergedError: a validation loss is not finite.
            InterruptedRunError: the run was stopped.
            ArmillaryError: the checkpoint could not be written.
        """
        if self._saving:
            # the row that validation extends may still be being written
            rows = [*self.metrics[:-1], dict(self.metrics[-1])]
            self.saver.save(self.engine.pieces(), Progress(self.spec, self.step, rows))
            self._saved = time.perf_counter()
            self._note(self.saver.finished())
        if self.spec.validation.due(self.step, self.spec.steps) and not self._stopping:  # else taken on resuming
            self._validate()
        if self._stopping:
            self.saver.wait()
            problem = self.world.share(self._note(self.saver.finished()))
            self.events.write("stop", self.step)
            where = f"run {self.spec.id} stopped after step {self.step} of {self.spec.steps}"
            if problem is not None:
                raise ArmillaryError(f"{where}, but its checkpoint is lost: {problem}; the one before is kept")
            raise InterruptedRunError(f"{where}; start it again to go on")

    def _note(self, written: list[Saved]) -> str | None:
        """Tell what became of checkpoints; returns what was wrong with the last one."""
        for saved in written:
            if saved.problem is None:
                self.events.write("checkpoint", saved.step, saved.blocked_s, **saved.data)
            else:
                self._fault(saved.step, f"step-{saved.step}", saved.problem, "the one before it is kept")
        return written[-1].problem if written else None

    def _diverged(self, step: int, what: str) -> NoReturn:
        self.saver.wait()
        self.events.write("fault", step, problem="diverged")
        rate = self.spec.optimizer.lr
        raise DivergedError(f"run {self.spec.id} diverged: at step {step} {what}; lower the learning rate ({rate:g})")

    def _validate(self) -> None:
        begin = time.perf_counter()
        spec = self.spec.during(self.step - 1)
        for domain, (loss, bits) in validate(partial(self.engine.entropy, self.step - 1), spec, self.corpus).items():
            if not math.isfinite(loss):  # the last update can be the one that breaks the model
                self._diverged(self.step, f"the validation loss on '{domain}' is {loss}")
            self.metrics[-1][f"validation/{domain}/loss"] = loss
            self.metrics[-1][f"validation/{domain}/bits_per_byte"] = bits
        self.events.write("validation", self.step, time.perf_counter() - begin)

    def finish(self) -> RunResult:
        """Write metrics, weights and, last of all, the result that makes the run done.

        Raises:
            ArmillaryError: one of them could not be written; the last checkpoint is kept.
        """
        self.saver.wait()
        self._note(self.saver.finished())
        self.engine.save_weights(self.folder / WEIGHTS)
        return self._by_first(self._conclude)

    def _conclude(self) -> RunResult:
        metrics = self.folder / METRICS
        hidden = aside(metrics)
        try:
            with writing(metrics):
                pq.write_table(metrics_table(self.metrics), hidden)
                sync(hidden)
                hidden.rename(metrics)
        finally:
            hidden.unlink(missing_ok=True)
        last = self.metrics[-1]
        tail = [row["loss"] for row in self.metrics[-max(1, len(self.metrics) // 10) :]]
        domains = self.corpus.domains
        self.events.write("end", self.step)
        result = RunResult(
            run=self.spec.id,
            loss={d: last[f"validation/{d}/loss"] for d in domains},
            bits_per_byte={d: last[f"validation/{d}/bits_per_byte"] for d in domains},
            train_loss=sum(tail) / len(tail),
            tokens=self.spec.tokens,
            flops=self.spec.flops,
            epochs=self.order.epochs(self.spec.steps),
            wall_s=_spent(self.folder / EVENTS),
        )
        with writing(self.folder / "result.json"):
            write_result(self.folder, result)
        remove_checkpoints(self.checkpoints, self.spec.id, self.policy.stays)
        return result


def _spent(path: Path) -> float:
    """Seconds of work in the events of a run: what its steps, validations and checkpoints took, in all attempts."""
    return sum(event.duration_s or 0.0 for event in read_events(path))


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder; a dead process's lock is gone with it."""
    with contextlib.ExitStack() as closing:
        with writing(folder / ".lock"):
            file = closing.enter_context(open(folder / ".lock", "w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyRunError(f"{folder}: another process trains this run; wait for it or stop it") from error
        yield

"""One training run, from its specification to its result; on one device, or by many ranks (`ranks`).

The run lives in a folder: ``spec.json``, ``events.jsonl`` (contract 3), ``checkpoints/``, and at the end
``metrics.parquet``, ``model.safetensors`` and ``result.json``, the last of which makes the run done. Whoever calls
``train_run`` again on the folder gets the result if it is there, or goes on from the last good checkpoint; the numbers
do not depend on how often that happened (contract 1). A lock on the folder keeps a second process out.

Trade-offs: losses are fetched from the device only every ``FLUSH`` steps, so a divergence is noticed up to that many
steps late, and training never waits for a number that nobody has asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from torch import Tensor

from armillary.corpus import Corpus, TokenOrder
from armillary.files import aside, sync, write_json
from armillary.goodput import EventKind, EventWriter, read_events
from armillary.recipe import ArmillaryError, RunSpec
from armillary.train.checkpoint import (
    CheckpointReader,
    checkpoint_steps,
    metrics_table,
    remove_checkpoints,
    verify_checkpoint,
)
from armillary.train.engine import Alone, Engine, validate
from armillary.train.saver import Direct, Rule, Saved, Saver
from armillary.train.world import Single, World

FORMAT = 1

FLUSH = 25  # steps between two looks at the losses
_SAVE, _STOP = 1, 2  # what is voted on


class BusyRunError(ArmillaryError):
    """Another process trains in the run's folder."""


class DivergedError(ArmillaryError):
    """The loss became infinite or not a number."""


class InterruptedRunError(ArmillaryError):
    """The run was asked to stop; a checkpoint of its last step is written."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run measured.

    ``loss`` in nats per token and ``bits_per_byte``, both per validation domain after the last step; ``train_loss`` is
    the mean over the last tenth of the steps; ``epochs`` counts passes over each training domain. ``wall_s`` is the
    time spent in all attempts, the only number here that another execution may change.
    """

    run: str
    loss: dict[str, float]
    bits_per_byte: dict[str, float]
    train_loss: float
    tokens: int
    flops: float
    epochs: dict[str, float]
    wall_s: float


@dataclass(frozen=True)
class Trunk:
    """The folder of a run that shares its first ``step`` steps with the one to train."""

    folder: Path
    step: int


def default_device() -> torch.device:
    """The machine's accelerator where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def read_result(folder: Path) -> RunResult | None:
    """The result of a run's folder, or None while it is not done.

    Raises:
        ArmillaryError: the result is of another format, or damaged.
    """
    path = folder / "result.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        version = value.pop("format")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArmillaryError(f"{path}: damaged; remove it to have the run taken to its end again") from error
    if version != FORMAT:
        raise ArmillaryError(f"{path}: format {version} is not the one this version reads ({FORMAT})")
    return RunResult(**value)


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
    """Carry out ``spec`` in ``folder``, or go on with it, or return its result where it is done.

    ``trunk`` saves the steps that another run has already taken; the result is the same without it. Checkpoints of the
    steps in ``keep`` stay for other runs to branch from. ``progress(step)`` is called after every step with the number
    of finished ones; ``stop()`` is asked as often.

    Raises:
        DivergedError: the loss is not finite.
        InterruptedRunError: ``stop()`` said so; call again to go on.
        BusyRunError: another process trains in this folder.
        ArmillaryError: the corpus is another one, or the folder holds another run.
    """
    device = device or default_device()
    with open_run(spec, corpus, folder, device, trunk, keep, checkpoint_every_s, progress, stop) as run:
        if isinstance(run, RunResult):
            return run
        return carry_out(run, (torch.from_numpy(run.order.batch(step)) for step in range(run.step, spec.steps)))


def carry_out(run: Run[Any], batches: Iterable[Tensor]) -> RunResult:
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
        BusyRunError: another process trains in this folder.
        ArmillaryError: the corpus is another one, or the folder holds another run.
    """
    with open_folder(spec, corpus, folder) as opened:
        if isinstance(opened, RunResult):
            yield opened
            return
        rule = _Branches(keep, checkpoint_every_s)
        saver = Direct(folder / "checkpoints", rule)
        run = Run(spec, corpus, folder, opened, Alone(spec, device), saver, rule, Single(), progress, stop)
        run.begin(trunk)
        yield run


@contextlib.contextmanager
def open_folder(spec: RunSpec, corpus: Corpus, folder: Path) -> Iterator[EventWriter | RunResult]:
    """The run's folder, locked: its result where it is done, else where to write its events.

    Raises:
        BusyRunError: another process trains in this folder.
        ArmillaryError: the corpus is another one, or the folder holds another run.
    """
    if corpus.hash != spec.corpus:
        raise ArmillaryError(f"run {spec.id} belongs to corpus {spec.corpus}, but {corpus.path} is {corpus.hash}")
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if not (folder / "spec.json").exists():
            write_json(folder / "spec.json", spec.model_dump(mode="json"))
        elif _read_spec(folder) != spec:
            raise ArmillaryError(f"{folder}: holds another run than {spec.id}; give every run a folder of its own")
        done = read_result(folder)
        if done is not None:
            yield done
            return
        with EventWriter(folder / "events.jsonl", spec.id) as events:
            yield events


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


class Run(Generic[EngineT]):
    """A run between two of its steps, whoever takes them: ``carry_out``, or a stack for many runs at once.

    After every step ``advance``; then, if it ``wants_attention`` and otherwise within ``FLUSH`` steps, ``record`` what
    the steps gave and ``attend``; after the last one ``finish``. With many ranks each has one of these and all do the
    same; the first alone writes.
    """

    def __init__(
        self,
        spec: RunSpec,
        corpus: Corpus,
        folder: Path,
        events: Events,
        engine: EngineT,
        saver: Saver,
        rule: Rule,
        world: World,
        progress: Callable[[int], None],
        stop: Callable[[], bool],
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.spec, self.corpus, self.folder, self.events = spec, corpus, folder, events
        self.engine, self.saver, self.rule, self.world = engine, saver, rule, world
        self.progress, self.stop, self.tell = progress, stop, tell
        self.checkpoints = folder / "checkpoints"
        self.order = TokenOrder.of(spec, corpus)
        self.step = 0
        self.metrics: list[dict[str, float]] = []
        self._saved = time.perf_counter()
        self._saving = self._stopping = False

    def begin(self, trunk: Trunk | None = None) -> None:
        """Start from the last good checkpoint of this folder, else from the trunk's, else from the beginning."""
        for step in reversed(self.world.share(checkpoint_steps(self.checkpoints))):
            path = self.checkpoints / f"step-{step}"
            found = self.world.collect(verify_checkpoint(path, self.world.rank, self.world.size))
            problem = next((text for text in found if text is not None), None)
            if problem is None:
                self._load(path, step)
                self.events.write("resume", step, **self.engine.described)
                return
            self._fault(step, path.name, problem, "the one before it is used")
        # A trunk as long as the run leaves nothing to branch off, and lacks the last validation.
        if trunk is not None and trunk.step < self.spec.steps:
            path = trunk.folder / "checkpoints" / f"step-{trunk.step}"
            same = self.spec.prefix_id(trunk.step)
            if verify_checkpoint(path) is None and _read_spec(trunk.folder).prefix_id(trunk.step) == same:
                self._load(path, trunk.step)
                self.events.write("start", trunk.step, trunk=trunk.folder.name)
                return
        self.events.write("start", 0, **self.engine.described)

    def _load(self, path: Path, step: int) -> None:
        reader = CheckpointReader(path)
        problem, rows = None, []
        try:
            self.engine.load(reader)
            rows = reader.metrics()
        except ArmillaryError as error:  # some ranks may have found all that they need
            problem = str(error)
        problem = next((text for text in self.world.collect(problem) if text is not None), None)
        if problem is not None:
            raise ArmillaryError(f"{problem}; its format is right, but it is not a checkpoint of this run")
        # A trunk ends, and is validated, where its branch goes on without a look.
        due = [self.spec.validation.due(int(row["step"]), self.spec.steps) for row in rows]
        self.metrics = [
            row if taken else {k: v for k, v in row.items() if not k.startswith("validation/")}
            for row, taken in zip(rows, due, strict=True)
        ]
        self.step = step

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
        if self.world.rank == 0 and time.perf_counter() - self._saved > self.rule.every_s:
            vote, self._saved = _SAVE, time.perf_counter()
        decided = self.world.vote(_STOP if self.stop() else vote)
        self._stopping = decided == _STOP and self.step < self.spec.steps
        self._saving = self._stopping or decided == _SAVE or self.rule.due(self.step)
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
        """Validate, write a checkpoint, leave: whatever is due after the last recorded step.

        Raises:
            DivergedError: a validation loss is not finite.
            InterruptedRunError: the run was asked to stop.
            ArmillaryError: it was, and the checkpoint could not be written.
        """
        if self.spec.validation.due(self.step, self.spec.steps):
            self._validate()
        if self._saving:
            self.saver.save(self.step, self.engine.pieces(), self.metrics)
            self._saved = time.perf_counter()
            self._note(self.saver.finished())
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
        for domain, (loss, bits) in validate(self.engine.entropy, spec, self.corpus).items():
            if not math.isfinite(loss):  # the last update can be the one that breaks the model
                self._diverged(self.step, f"the validation loss on '{domain}' is {loss}")
            self.metrics[-1][f"validation/{domain}/loss"] = loss
            self.metrics[-1][f"validation/{domain}/bits_per_byte"] = bits
        self.events.write("validation", self.step, time.perf_counter() - begin)

    def finish(self) -> RunResult:
        """Write metrics, weights and, last of all, the result that makes the run done."""
        self.saver.wait()
        self._note(self.saver.finished())
        self.engine.save_weights(self.folder / "model.safetensors")
        result: RunResult = self.world.share(self._conclude() if self.world.rank == 0 else None)
        return result

    def _conclude(self) -> RunResult:
        metrics = self.folder / "metrics.parquet"
        hidden = aside(metrics)
        pq.write_table(metrics_table(self.metrics), hidden)
        sync(hidden)
        hidden.rename(metrics)
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
            wall_s=_spent(self.folder / "events.jsonl"),
        )
        write_json(self.folder / "result.json", {"format": FORMAT, **result.__dict__})
        remove_checkpoints(self.checkpoints, self.rule.stays)
        return result


def _read_spec(folder: Path) -> RunSpec:
    path = folder / "spec.json"
    try:
        return RunSpec.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ArmillaryError(f"{path}: not a run's specification; remove the folder to train the run anew") from error


def _spent(path: Path) -> float:
    """Seconds of work in the events of a run: what its steps, validations and checkpoints took, in all attempts."""
    return sum(event.duration_s or 0.0 for event in read_events(path))


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder; a dead process's lock is gone with it."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyRunError(f"{folder}: another process trains this run; wait for it or stop it") from error
        yield

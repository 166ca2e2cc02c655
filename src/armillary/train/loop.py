"""One training run, from its specification to its result, on one device.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from torch import Tensor

from armillary.corpus import Corpus, TokenOrder
from armillary.files import aside, sync, write_json
from armillary.goodput import EventWriter, read_events
from armillary.model import Transformer, save_weights
from armillary.recipe import ArmillaryError, RunSpec
from armillary.train.checkpoint import (
    checkpoint_steps,
    load_checkpoint,
    metrics_table,
    remove_checkpoints,
    save_checkpoint,
    verify_checkpoint,
)

FORMAT = 1

FLUSH = 25  # steps between two looks at the losses
_VALIDATION_BATCH = 64  # windows; part of the arithmetic, so it is fixed


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


def autocast(spec: RunSpec, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The precision of the matrix products: bf16 by autocast with fp32 weights, or plain fp32."""
    if spec.precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def build_optimizer(model: Transformer, spec: RunSpec) -> torch.optim.AdamW:
    """AdamW over the model's parameters, decay on matrices only, the rate set anew at each step."""
    o = spec.optimizer
    groups = model.optimizer_groups(o.weight_decay)
    return torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, fused=True)


def train_step(
    model: Transformer, optimizer: torch.optim.Optimizer, spec: RunSpec, step: int, batch: Tensor
) -> tuple[Tensor, Tensor]:
    """One optimizer step on ``batch`` (int64 ``[batch_sequences, context_length + 1]``, on the model's device).

    Returns the mean cross entropy in nats and the gradient norm before clipping, both still on the device.
    """
    for group in optimizer.param_groups:
        group["lr"] = spec.lr(step)
    loss = torch.zeros((), device=batch.device)
    for part in batch.chunk(spec.accumulation):
        with autocast(spec, batch.device):
            objective, cross_entropy = model.loss(part, spec.optimizer.z_loss)
        (objective / spec.accumulation).backward()  # type: ignore[no-untyped-call]
        loss += cross_entropy.detach() / spec.accumulation
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), spec.optimizer.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm


@torch.no_grad()
def validate(model: Transformer, spec: RunSpec, corpus: Corpus) -> dict[str, tuple[float, float]]:
    """Mean loss in nats per token, and bits per byte, on the validation windows of every domain."""
    device = next(model.parameters()).device
    results = {}
    for domain in corpus.domains:
        held_out = corpus.validation(domain, spec.context_length, spec.validation.windows)
        total = 0.0
        for part in torch.split(torch.from_numpy(np.ascontiguousarray(held_out.tokens)), _VALIDATION_BATCH):
            with autocast(spec, device):
                _, cross_entropy = model.loss(part.to(device))
            total += cross_entropy.item() * part.shape[0] * spec.context_length
        predicted = held_out.tokens.shape[0] * spec.context_length
        results[domain] = (total / predicted, total / math.log(2) / held_out.bytes)
    return results


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
        pending: list[tuple[Tensor, Tensor]] = []
        since = time.perf_counter()
        while run.step < spec.steps:
            batch = torch.from_numpy(run.order.batch(run.step)).to(device, non_blocking=True)
            pending.append(train_step(run.model, run.optimizer, spec, run.step, batch))
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
) -> Iterator[Run | RunResult]:
    """The run of a folder where ``train_run``, whose arguments these are, would go on with it; its result if done.

    The folder is locked meanwhile.

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
            run = Run(spec, corpus, folder, events, device, keep, checkpoint_every_s, progress, stop)
            run.begin(trunk)
            yield run


class Run:
    """A run between two of its steps, whoever takes them: ``train_run``, or a stack for many runs at once.

    After every step ``advance``; then, if it ``wants_attention`` and otherwise within ``FLUSH`` steps, ``record`` what
    the steps gave and ``attend``; after the last one ``finish``.
    """

    def __init__(
        self,
        spec: RunSpec,
        corpus: Corpus,
        folder: Path,
        events: EventWriter,
        device: torch.device,
        keep: tuple[int, ...],
        checkpoint_every_s: float,
        progress: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> None:
        self.spec, self.corpus, self.folder, self.events = spec, corpus, folder, events
        self.keep, self.checkpoint_every_s, self.progress, self.stop = keep, checkpoint_every_s, progress, stop
        self.checkpoints = folder / "checkpoints"
        self.order = TokenOrder(
            corpus,
            spec.mixture,
            seed=spec.seed,
            context_length=spec.context_length,
            batch_sequences=spec.batch_sequences,
        )
        self.model = Transformer(spec.model)
        self.model.init_weights(spec.seed)
        self.model.to(device)
        self.optimizer = build_optimizer(self.model, spec)
        self.step = 0
        self.metrics: list[dict[str, float]] = []
        self._saved = time.perf_counter()
        self._stopping = False

    def begin(self, trunk: Trunk | None) -> None:
        """Start from the last good checkpoint of this folder, else from the trunk's, else from the beginning."""
        for step in reversed(checkpoint_steps(self.checkpoints)):
            path = self.checkpoints / f"step-{step}"
            problem = verify_checkpoint(path)
            if problem is None:
                self._load(path, step)
                self.events.write("resume", step)
                return
            self.events.write("fault", step, checkpoint=path.name, problem=problem, remedy="the one before it is used")
        # A trunk as long as the run leaves nothing to branch off, and lacks the last validation.
        if trunk is not None and trunk.step < self.spec.steps:
            path = trunk.folder / "checkpoints" / f"step-{trunk.step}"
            same = self.spec.prefix_id(trunk.step)
            if verify_checkpoint(path) is None and _read_spec(trunk.folder).prefix_id(trunk.step) == same:
                self._load(path, trunk.step)
                self.events.write("start", trunk.step, trunk=trunk.folder.name)
                return
        self.events.write("start", 0)

    def _load(self, path: Path, step: int) -> None:
        rows = load_checkpoint(path, self.model, self.optimizer)
        # A trunk ends, and is validated, where its branch goes on without a look.
        due = [self.spec.validation.due(int(row["step"]), self.spec.steps) for row in rows]
        self.metrics = [
            row if taken else {k: v for k, v in row.items() if not k.startswith("validation/")}
            for row, taken in zip(rows, due, strict=True)
        ]
        self.step = step

    def advance(self) -> None:
        """One more step is taken."""
        self.step += 1
        self.progress(self.step)

    def wants_attention(self) -> bool:
        """Whether this step is one to ``attend`` to, for which its losses have to be fetched; asked once a step."""
        self._stopping = self.stop() and self.step < self.spec.steps
        return self._stopping or self.spec.validation.due(self.step, self.spec.steps) or self._to_be_saved()

    def _to_be_saved(self) -> bool:
        return self.step in self.keep or time.perf_counter() - self._saved > self.checkpoint_every_s

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
                    "tokens": (step + 1) * self.spec.batch_tokens,
                    "lr": self.spec.lr(step),
                    "loss": loss,
                    "grad_norm": norm,
                }
            )
        self.events.write("progress", self.step, seconds, loss=self.metrics[-1]["loss"])

    def attend(self) -> None:
        """Validate, write a checkpoint, leave: whatever is due after the last recorded step.

        Raises:
            DivergedError: a validation loss is not finite.
            InterruptedRunError: the run was asked to stop.
        """
        if self.spec.validation.due(self.step, self.spec.steps):
            self._validate()
        if self._stopping or self._to_be_saved():
            begin = time.perf_counter()
            save_checkpoint(self.checkpoints, self.step, self.model, self.optimizer, self.metrics, self.keep)
            self._saved = time.perf_counter()
            self.events.write("checkpoint", self.step, self._saved - begin)
        if self._stopping:
            self.events.write("stop", self.step)
            raise InterruptedRunError(
                f"run {self.spec.id} stopped after step {self.step} of {self.spec.steps}; start it again to go on"
            )

    def _diverged(self, step: int, what: str) -> NoReturn:
        self.events.write("fault", step, problem="diverged")
        rate = self.spec.optimizer.lr
        raise DivergedError(f"run {self.spec.id} diverged: at step {step} {what}; lower the learning rate ({rate:g})")

    def _validate(self) -> None:
        begin = time.perf_counter()
        for domain, (loss, bits) in validate(self.model, self.spec, self.corpus).items():
            if not math.isfinite(loss):  # the last update can be the one that breaks the model
                self._diverged(self.step, f"the validation loss on '{domain}' is {loss}")
            self.metrics[-1][f"validation/{domain}/loss"] = loss
            self.metrics[-1][f"validation/{domain}/bits_per_byte"] = bits
        self.events.write("validation", self.step, time.perf_counter() - begin)

    def finish(self) -> RunResult:
        """Write metrics, weights and, last of all, the result that makes the run done."""
        metrics = self.folder / "metrics.parquet"
        hidden = aside(metrics)
        pq.write_table(metrics_table(self.metrics), hidden)
        sync(hidden)
        hidden.rename(metrics)
        save_weights(self.model, self.folder / "model.safetensors")
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
        remove_checkpoints(self.checkpoints, self.keep)
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

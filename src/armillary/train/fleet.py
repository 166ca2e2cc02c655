"""Many runs of one model shape trained as one program: a stack.

A model of a million parameters leaves a large accelerator idle. Here the parameters of up to ``capacity`` runs are in
one buffer, one row each. Forward and backward run once for all rows (``torch.vmap`` over the unchanged model), and one
optimizer step follows. All else is separate for each run: data order, schedule, clipping, losses, validation,
checkpoints, and the folder that `loop` writes. So a run may begin in a stack and continue alone, or the other way
round. A run that is done, diverged or stopped leaves its row to the next one, which may be at any step.

Trade-offs:

- AdamW is PyTorch's fused kernel over the rows. It reads the memory once; batched formulas need ten passes and round
  differently. It takes one learning rate, so rows of equal rate and constants share a call. In a sweep of learning
  rates each row has a separate call.
- Members must have all settings in common that shape the program, which include ``z_loss``.
- Members are validated and saved one after another, while the others wait.
- A free row is not computed, so the number of members may change the rounding of a device. The CPU kernels give each
  member the same result for any number of members. So does MKL, except for matrices of fewer than 16 rows.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from armillary.corpus import Batch, Corpus
from armillary.model import check_tokens, without_ignored
from armillary.recipe import Preference, RunResult, RunSpec, UsageError
from armillary.train.engines import SingleDeviceEngine, Stack
from armillary.train.errors import InterruptedRunError
from armillary.train.hooks import Hook
from armillary.train.loop import FLUSH, Run, TrainOptions, default_device, open_run, train_steps
from armillary.train.resume import Trunk

Outcome = RunResult | Exception


@dataclass(frozen=True)
class Assignment:
    """A run to train in ``folder``; ``trunk``, ``keep`` and ``hooks`` as for ``train_run``."""

    spec: RunSpec
    folder: Path
    trunk: Trunk | None = None
    keep: tuple[int, ...] = ()
    hooks: tuple[Hook, ...] = ()


def stack_key(spec: RunSpec) -> Hashable:
    """The settings that members of one stack have in common; all others may differ.

    A run without AdamW, or with phases of length, experts, preferences or adapters, has a key that no other run has.
    """
    shape, o = spec.model.model_dump_json(), spec.optimizer
    batch = spec.context_length, spec.batch_sequences, spec.accumulation, spec.precision
    single = spec.model.experts or isinstance(spec.objective, Preference) or spec.adapter
    alone = not o.own.stacks or spec.lengths or single
    # the objective decides whether batches have weights and documents
    kind = spec.objective.kind
    return shape, *batch, kind, o.z_loss, o.base_width, o.base_head_dim, spec.id if alone else None


def stack_capacity(spec: RunSpec, wanted: int, device: torch.device) -> int:
    """How many members of a stack fit into the free memory: at least 1, at most ``wanted``.

    The memory of a member is measured in a step of two members if the device reports its peak, else estimated
    (``member_bytes``). A tenth of the free memory stays free. On a CPU each core has an equal part, since each has a
    worker.
    """
    if device.type == "cpu":
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(os.sched_getaffinity(0))
        each = member_bytes(spec)
    else:
        free, _ = torch.accelerator.get_memory_info(device)
        each = member_bytes(spec)
        if 2 * each < free:
            before = torch.accelerator.memory_allocated(device)
            torch.accelerator.reset_peak_memory_stats(device)
            tokens = torch.zeros(spec.batch_sequences, spec.context_length + 1, dtype=torch.int64, device=device)
            Stack(spec, 2, device).step([(spec, 0)] * 2, [Batch(tokens)] * 2)
            each = (torch.accelerator.max_memory_allocated(device) - before) // 2
    return max(1, min(wanted, int(0.9 * free) // each))


def member_bytes(spec: RunSpec) -> int:
    """Estimated bytes of a member of a stack: parameters, gradients, moments, and the activations of a step.

    Per token, autograd keeps of each layer the residual stream twice in fp32, and in the precision of products both
    norms and the tensors of the blocks (``Block.kept``). The logits count in full with their gradient, though in large
    stacks only a block of them exists at a time.
    """
    shape, product = spec.model, 2 if spec.precision == "bf16" else 4
    activations = 2 * shape.d_model + shape.attention_block.kept(shape) + shape.feed_forward_block.kept(shape)
    layer = 2 * 4 * shape.d_model + product * activations
    tokens = spec.batch_tokens // spec.accumulation
    # fp32: weights, gradients, two moments, and gradients before they are added; then weights for products
    state = (5 * 4 + product) * shape.parameters
    return state + tokens * (shape.n_layers * layer + 2 * (4 + product) * shape.vocab_size)


def train_fleet(
    runs: Sequence[Assignment],
    corpus: Corpus,
    capacity: int,
    *,
    checkpoint_every_s: float = 30.0,
    device: torch.device | None = None,
    progress: Callable[[str, int], None] = lambda run, step: None,
    stop: Callable[[str], bool] = lambda run: False,
) -> Iterator[tuple[str, Outcome]]:
    """Train runs with the same ``stack_key``, at most ``capacity`` at a time, each as by ``train_run``.

    Runs enter in the given order, a new one as soon as another has left. ``progress(run, step)`` and ``stop(run)`` are
    called after every step of every run, ``stop`` also before a run enters. Yields each run's id with its result as
    soon as it is known, or with the error that ``train_run`` would raise (UsageError if its key differs from the first
    run's). An error affects no other run.
    """
    waiting = deque(runs)
    with Fleet(runs[0].spec, corpus, capacity, checkpoint_every_s, device) as fleet:
        while waiting or fleet.runs:
            while waiting and len(fleet.runs) < capacity:
                run = waiting.popleft()
                name = run.spec.id
                if stop(name):
                    yield name, InterruptedRunError(f"run {name} was stopped before it began; start it again to resume")
                    continue
                try:
                    done = fleet.add(run, partial(progress, name), partial(stop, name))
                except Exception as error:
                    yield name, error
                else:
                    if done is not None:
                        yield name, done
            yield from fleet.step().items()


class Fleet:
    """Runs in training, at most ``capacity`` at a time, with the ``stack_key`` of ``spec``.

    Use as a context manager. Leaving it unlocks the folders of unfinished runs, which resume from their checkpoints.
    """

    def __init__(
        self,
        spec: RunSpec,
        corpus: Corpus,
        capacity: int,
        checkpoint_every_s: float = 30.0,
        device: torch.device | None = None,
    ) -> None:
        self.corpus, self.capacity, self.checkpoint_every_s = corpus, capacity, checkpoint_every_s
        self.device = device or default_device()
        self.runs: list[Run[SingleDeviceEngine]] = []
        self._key = stack_key(spec)
        self._stack = Stack(spec, capacity, self.device)
        self._close: list[contextlib.ExitStack] = []
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._since, self._waited = time.perf_counter(), 0.0
        self._left: dict[str, Outcome] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as closing:  # an error of one keeps no other locked
            while self._close:
                closing.callback(self._close.pop().close)
            self.runs.clear()

    def add(
        self,
        run: Assignment,
        progress: Callable[[int], None] = lambda step: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> RunResult | None:
        """Add a run at the step where ``train_run`` would resume it; return its result if it is done already.

        Raises:
            UsageError: it does not fit into this stack, or the stack is full.
            BusyRunError, ArmillaryError: as ``train_run``.
        """
        if stack_key(run.spec) != self._key:
            raise UsageError(
                f"run {run.spec.id}: shape, context length, batch, accumulation, precision, objective and z_loss must "
                "equal those of the stack; train it in another stack"
            )
        if len(self.runs) == self.capacity:
            raise UsageError(f"run {run.spec.id}: all {self.capacity} slots are in use; add it when a run has finished")
        self._look()
        with contextlib.ExitStack() as closing:
            how = TrainOptions(self.device, run.trunk, run.keep, self.checkpoint_every_s, progress, stop, run.hooks)
            opened = closing.enter_context(open_run(run.spec, self.corpus, run.folder, how))
            if isinstance(opened, RunResult):
                return opened
            if opened.skipped:  # no step may be retried, since members take their steps together
                return self._alone(opened)
            self._stack.put(len(self.runs), opened.engine.model, opened.engine.optimizer)
            self.runs.append(opened)
            self._close.append(closing.pop_all())
        self._since = time.perf_counter()
        return None

    def _alone(self, run: Run[SingleDeviceEngine]) -> RunResult:
        try:
            return train_steps(run, (run.order.batch(step).map(torch.from_numpy) for step in run.to_take()))
        finally:
            self._since = time.perf_counter()

    def step(self) -> dict[str, Outcome]:
        """Take one step of every run; return the outcomes of the runs that have left since the last step."""
        asked = time.perf_counter()
        batches = self._batches()
        self._waited += time.perf_counter() - asked
        if batches:
            taken = [(run.spec, run.step) for run in self.runs]
            self._pending.append(self._stack.step(taken, batches))
            wanting, broken = self._advance()
            if wanting or broken or len(self._pending) >= FLUSH:
                self._look()
                self._leave(broken)
                for place in reversed(range(len(self.runs))):
                    self._attend(place)
                self._since = time.perf_counter()
        left, self._left = self._left, {}
        return left

    def _advance(self) -> tuple[bool, list[tuple[Run[SingleDeviceEngine], Exception]]]:
        """Count a step of every run: whether one wants attention, and those with a report or hook that failed."""
        wanting, broken = False, []
        for run in self.runs:
            try:
                run.advance()
                wanting |= run.wants_attention()
            except Exception as error:
                broken.append((run, error))
        return wanting, broken

    def _batches(self) -> list[Batch[Tensor]]:
        """The next batch of every run; a run leaves if its batch cannot be read, or has an unknown token."""
        batches: list[Batch[Tensor]] = []
        bad: list[tuple[Run[SingleDeviceEngine], Exception]] = []
        for run in self.runs:
            try:
                batch = run.order.batch(run.step).map(torch.from_numpy)
                check_tokens(without_ignored(batch.tokens, batch.weights), run.spec.model.vocab_size)
                batches.append(batch)
            except Exception as error:
                bad.append((run, error))
        if bad:
            self._look()
            self._leave(bad)
            return self._batches()
        return batches

    def _look(self) -> None:
        """Fetch the losses of the steps since the last call; a run leaves if it diverged or cannot be recorded."""
        if self._pending:
            values = torch.stack([torch.stack(pair) for pair in self._pending]).permute(2, 0, 1).tolist()
            self._pending.clear()
            # The time of a stack is divided among its members, so that the times of all runs sum to it.
            seconds = (time.perf_counter() - self._since) / len(self.runs)
            waited_s, self._waited = self._waited / len(self.runs), 0.0
            for place in reversed(range(len(self.runs))):
                try:
                    self.runs[place].record(values[place], seconds, waited_s)
                except Exception as error:
                    self._remove(place, error)

    def _attend(self, place: int) -> None:
        run = self.runs[place]
        try:
            run.attend()
            if run.step == run.spec.steps:
                self._remove(place, run.finish())
        except Exception as error:
            self._remove(place, error)

    def _leave(self, problems: Sequence[tuple[Run[SingleDeviceEngine], Exception]]) -> None:
        """Remove runs with a problem, except those that have just diverged."""
        for run, problem in problems:
            if run in self.runs:
                self._remove(self.runs.index(run), problem)

    def _remove(self, place: int, outcome: Outcome) -> None:
        """Remove a run; the last one takes its row."""
        run, closing = self.runs[place], self._close[place]
        last, last_closing = self.runs.pop(), self._close.pop()
        if place < len(self.runs):
            self.runs[place], self._close[place] = last, last_closing
            self._stack.put(place, last.engine.model, last.engine.optimizer)
        try:
            closing.close()
        except Exception as error:
            outcome = outcome if isinstance(outcome, Exception) else error
        self._left[run.spec.id] = outcome

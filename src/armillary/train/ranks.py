"""A run over many ranks: the same loop as on one device, over a program of ``parallel``.

Every rank takes the same steps with its part of the model and of each batch, and writes its own event file. Only rank 0
opens the folder. It writes specification, metrics and result, and broadcasts the state of the folder (a result, another
run, a lock).

Final weights are assembled through the file system: the ranks write their pieces, and rank 0 copies them, tensor by
tensor, into the same file as a run on one device. So no rank holds the whole model.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armillary.corpus import Batch, Corpus, DataOrder
from armillary.files import HOST
from armillary.goodput import EventWriter
from armillary.recipe import ArmillaryError, Checkpoints, Layout, RunResult, RunSpec, Skipping
from armillary.resilience import START_S, Judge, Patience, forget, forget_here, memory_folder
from armillary.train.check import check_run
from armillary.train.checkpoint import AsyncSaver, Peers, PeerSaver
from armillary.train.engines import ParallelEngine
from armillary.train.errors import BadStepError, InterruptedRunError, LostStepError
from armillary.train.folder import open_folder
from armillary.train.hooks import Hook, Save, Stop
from armillary.train.loop import Job, Run, train_steps
from armillary.train.reporter import Reporter
from armillary.train.resume import begin
from armillary.train.world import Ranks, by_first, together

ROLL_BACKS = 3  # restarts from the same step
IN_A_ROW = 3  # skipped batches; if the next batch is not finite either, the weights are the cause
_NEVER_S = 1e12


def train_ranks(
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    layout: Layout,
    *,
    checkpoints: Checkpoints = Checkpoints(),
    skipping: Skipping = Skipping(),
    device: torch.device,
    progress: Callable[[int], None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda text: None,
    busy: Callable[[str | None], None] = lambda work: None,
    hooks: Sequence[Hook] = (),
    machine: str = HOST,
) -> RunResult:
    """Train ``spec`` as one of the ranks of ``layout``; the process group must be initialised.

    Every rank calls this with the same arguments, except ``device`` (its own), ``progress``, ``stop`` and ``tell``. Any
    rank's ``stop`` stops all after the same step. ``tell`` gets lines for the user, on rank 0. ``busy`` is called with
    the name of work that may take longer than a step, and with None when steps follow. ``hooks`` are as for
    ``train_run``. Ranks of the same ``machine`` share their memory for snapshots.

    Raises:
        UsageError: the layout does not fit, or as ``train_run``.
        DivergedError, InterruptedRunError, BusyRunError, ArmillaryError: as ``train_run``; on all ranks.
    """
    check_run(spec, corpus, layout)
    world = Ranks()
    with contextlib.ExitStack() as closing:
        closing.callback(world.close)
        opened: Any = None
        if world.rank == 0:
            try:
                opened = closing.enter_context(open_folder(spec, corpus, folder))
            except (ArmillaryError, OSError) as error:
                opened = error
        found = world.share(opened if isinstance(opened, RunResult | Exception) else None)
        if isinstance(found, RunResult):
            if world.rank == 0:
                forget(folder)
            return found
        if isinstance(found, Exception):
            raise found
        first = world.rank == 0
        if not first:
            opened = closing.enter_context(EventWriter(folder / f"events-{world.rank:05}.jsonl", spec.id, world.rank))
        patience = Patience(world.limit_waits)
        closing.callback(world.limit_waits, START_S)

        def stepped(step: int) -> None:
            patience.step()
            progress(step)

        def works(work: str | None) -> None:
            patience.busy(work)
            busy(work)

        reporter = Reporter(opened, stepped, tell if first else lambda text: None, works, first)
        saver = AsyncSaver(folder / "checkpoints", world, checkpoints)
        engine = ParallelEngine(spec, layout, device, saver, partial(_notice, reporter))
        saver.prepare(engine.pieces())
        save = Save(saver, checkpoints, clock=first)
        memory, peers, in_memory = _snapshots(world, folder, checkpoints, machine)
        more = [] if in_memory is None else [in_memory]
        run = Run(Job(spec, corpus, folder, world, reporter), engine, save, Stop(stop), [*more, *hooks])
        run.memory, run.peers, run.in_memory = memory, peers, in_memory
        run.judge = engine.judge = Judge(skipping.loss_deviations)
        for writer in (saver, *(one.saver for one in more)):
            closing.callback(writer.wait)
        begin(run)
        try:
            result = _to_the_end(run, device, skipping)
        except InterruptedRunError:  # the last step has a checkpoint on disk, so the memory of snapshots can be freed
            _forget(run)
            raise
        _forget(run)
        return result


def _forget(run: Run[ParallelEngine]) -> None:
    """Free the memory of snapshots, on every machine."""
    if run.in_memory is not None:
        run.in_memory.saver.wait()  # otherwise it makes the folder again
        run.world.any(False)
    if run.peers is not None:
        if run.peers.first:
            forget_here(run.folder)
        run.world.any(False)  # all machines have read where theirs are
    if run.world.rank == 0:
        forget(run.folder)


def _to_the_end(run: Run[ParallelEngine], device: torch.device, skipping: Skipping) -> RunResult:
    """Take the remaining steps; lost steps are repeated from the last checkpoint or snapshot.

    If a repeated step is bad again, its batch is the cause.
    """
    lost: Counter[int] = Counter()
    while True:
        try:
            with contextlib.closing(_ahead(run.order, run.to_take(), device)) as batches:
                return train_steps(run, batches)
        except LostStepError as error:
            found, step = "lost step", run.step
            if isinstance(error, BadStepError):  # an accelerator reports it some steps later
                found, step = "spike" if error.finite else "not finite", error.step
            lost[step] += 1
            if isinstance(error, BadStepError) and lost[step] > 1:
                _skip(run, error, skipping)
            elif lost[step] > ROLL_BACKS:
                raise ArmillaryError(f"{error}, {ROLL_BACKS} times from the same checkpoint") from error
            _notice(run.reporter, run.step, found, str(error))
            run.reporter.tell(f"{error}; the run continues from its last checkpoint or snapshot")
            run.reporter.busy("restore")
            run.save.wait(run)
            begin(run, kind="restored")


def _skip(run: Run[ParallelEngine], error: BadStepError, skipping: Skipping) -> None:
    """Skip the batch of a bad step, or accept its loss if too many batches are skipped already.

    Raises:
        DivergedError: the loss is not finite, and too many batches are skipped already.
    """
    before = range(error.step - IN_A_ROW, error.step)
    if len(run.skipped) < min(skipping.most, run.spec.steps - 1) and not run.skipped.keys() >= set(before):
        run.leave_out(error.step, error.what)
    elif error.finite:
        run.judge.accept(error.step)
    else:
        run.diverged(error.step, error.what)


def _notice(reporter: Reporter, step: int, found: str, how: str) -> None:
    if reporter.first:
        reporter.write("detected", step, found=found, how=how)


def _snapshots(
    world: Ranks, folder: Path, checkpoints: Checkpoints, machine: str
) -> tuple[Path | None, Peers | None, Save | None]:
    """The folder of snapshots, the machines that divide them if there are several, and the hook that writes them.

    Raises:
        ArmillaryError: as ``memory_folder``; on all ranks.
    """
    every = checkpoints.snapshot_every_steps
    if every is None:
        return None, None, None
    policy = Checkpoints(every_s=_NEVER_S, every_steps=every)
    machines = world.collect(machine)
    if len(set(machines)) == 1:
        memory, peers = by_first(world, partial(memory_folder, folder)), None
        saver = AsyncSaver(memory, world, policy, "sum64")
    else:
        by_first(world, partial(memory_folder, folder, machine))  # names the place for all
        memory = together(world, partial(memory_folder, folder, machine))
        peers = Peers(world, memory, machines)
        saver = PeerSaver(peers, policy)
    return memory, peers, Save(saver, policy, clock=False, kind="snapshot")


def _ahead(order: DataOrder, steps: Sequence[int], device: torch.device) -> Generator[Batch[Tensor], None, None]:
    """The batches of ``steps``; the next is read while one trains."""

    def make(step: int) -> Batch[Tensor]:
        batch = order.batch(step).map(torch.from_numpy)
        return batch if device.type == "cpu" else batch.map(Tensor.pin_memory)

    with ThreadPoolExecutor(1) as thread:
        coming = [thread.submit(make, step) for step in steps[:1]]
        for following in (*steps[1:], None):
            batch = coming.pop().result()
            if following is not None:
                coming.append(thread.submit(make, following))
            yield batch

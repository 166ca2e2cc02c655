"""A run by many ranks: the same loop as on one device, over a program of the parallel room.

Every rank takes the same steps with its part of the model and of each batch. Rank 0 alone holds the folder: it writes
specification, events, metrics and result, and what it finds there (a result, another run, a lock) it tells the others.

Final weights are put together through the file system: the ranks write their pieces, and rank 0 copies them, tensor by
tensor, into the file that a run on one device would have written. So no rank ever holds the whole model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armillary.corpus import Batch, Corpus, DataOrder
from armillary.recipe import ArmillaryError, Checkpoints, Layout, RunResult, RunSpec
from armillary.train.check import check_run
from armillary.train.checkpoint import AsyncSaver
from armillary.train.engines import ParallelEngine
from armillary.train.folder import open_folder
from armillary.train.hooks import Hook, Save, Stop
from armillary.train.loop import Job, Run, carry_out
from armillary.train.reporter import Reporter
from armillary.train.resume import begin
from armillary.train.world import Ranks


def train_ranks(
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    layout: Layout,
    *,
    checkpoints: Checkpoints = Checkpoints(),
    device: torch.device,
    progress: Callable[[int], None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda text: None,
    hooks: Sequence[Hook] = (),
) -> RunResult:
    """Train ``spec`` as one of the ranks of ``layout``; the process group must be initialised.

    Every rank calls this with the same arguments, but for ``device`` (its own), ``progress``, ``stop`` and ``tell``.
    Any rank's ``stop`` stops all after the same step; ``tell`` takes lines for a person, on rank 0. ``hooks`` are as
    for ``train_run``.

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
            return found
        if isinstance(found, Exception):
            raise found
        first = world.rank == 0
        reporter = Reporter(opened, progress, tell if first else lambda text: None)
        saver = AsyncSaver(folder / "checkpoints", world, checkpoints)
        engine = ParallelEngine(spec, layout, device, saver)
        save = Save(saver, checkpoints, clock=first)
        run = Run(Job(spec, corpus, folder, world, reporter), engine, save, Stop(stop), hooks)
        closing.callback(saver.wait)
        begin(run)
        with contextlib.closing(_ahead(run.order, run.step, spec.steps, device)) as batches:
            return carry_out(run, batches)


def _ahead(order: DataOrder, step: int, steps: int, device: torch.device) -> Generator[Batch[Tensor], None, None]:
    """The batches from ``step`` on; the next is made ready while one is trained on."""

    def make(step: int) -> Batch[Tensor]:
        batch = order.batch(step).map(torch.from_numpy)
        return batch if device.type == "cpu" else batch.map(Tensor.pin_memory)

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(make, step)
        for number in range(step, steps):
            batch = coming.result()
            if number + 1 < steps:
                coming = thread.submit(make, number + 1)
            yield batch

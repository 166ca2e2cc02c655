"""A process that trains with trackers and is killed at a chosen step: SIGKILL, so that nothing is flushed."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
from pathlib import Path
from typing import Any

from armillary.corpus import Corpus
from armillary.recipe import RunSpec
from armillary.trackers import Destination, Track
from armillary.train import loop, train_run

STEP_S = 0.12  # long enough that the live metrics are written between steps


def train(
    spec: RunSpec, corpus: Path, folder: Path, wheres: list[Destination], die_at: int = 0, step_s: float = STEP_S
) -> None:
    """Train with a checkpoint now and then, and die after step ``die_at``."""
    loop.torch.set_num_threads(1)

    def progress(step: int) -> None:
        time.sleep(step_s)
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    hooks = [Track(where, folder) for where in wheres]
    train_run(spec, Corpus.open(corpus), folder, checkpoint_every_s=1.0, progress=progress, hooks=hooks)
    for hook in hooks:
        hook.close()


def process(*arguments: Any) -> Any:
    """A started process that trains."""
    started = mp.get_context("forkserver").Process(target=train, args=arguments)
    started.start()
    return started

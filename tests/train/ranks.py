"""What runs as a rank of a process group in the tests of runs by many ranks."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from armillary.corpus import Batch, Corpus
from armillary.recipe import Checkpoints, Layout, RunSpec
from armillary.resilience import patience
from armillary.train import InterruptedRunError, lost_connection, train_ranks
from armillary.train.checkpoint import manifest, pieces, saver
from armillary.train.engines import ParallelEngine


def train(
    spec: RunSpec,
    corpus: Path,
    folder: Path,
    layout: Layout,
    stop_after: int | None = None,
    checkpoints: Checkpoints = Checkpoints(),
) -> dict[str, Any]:
    """Train until the end, or until rank 1 (of one rank, rank 0) is asked to stop; the batches that were seen."""
    seen: list[str] = []
    step, told = ParallelEngine.step, []

    def watched(self: ParallelEngine, number: int, batch: Batch[torch.Tensor]) -> Any:
        seen.append(hashlib.sha256(batch.tokens.numpy().tobytes()).hexdigest())
        return step(self, number, batch)

    who = min(1, dist.get_world_size() - 1)
    ParallelEngine.step = watched
    try:
        train_ranks(
            spec,
            Corpus.open(corpus),
            folder,
            layout,
            checkpoints=checkpoints,
            device=torch.device("cpu"),
            stop=lambda: dist.get_rank() == who and len(seen) == stop_after,
            tell=told.append,
        )
    except InterruptedRunError:
        pass
    finally:
        ParallelEngine.step = step
    return {"seen": seen, "told": told}


def train_on_a_full_disk(spec: RunSpec, corpus: Path, folder: Path, layout: Layout) -> dict[str, Any]:
    """Train with a checkpoint every 2 steps, of which rank 1 has no room for the second."""
    write, calls = saver.write_pieces, 0

    def watched(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if dist.get_rank() == 1 and calls == 2:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
            try:
                return write(*arguments)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return write(*arguments)

    saver.write_pieces = watched
    try:
        return train(spec, corpus, folder, layout, checkpoints=Checkpoints(every_steps=2))
    finally:
        saver.write_pieces = write


def live(rank: int, ranks: int, store: str, act: Callable[..., Any], *arguments: Any) -> None:
    """The life of a process that is a rank, and may be killed in it."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks, timeout=wait)
    act(*arguments)


def train_until_a_rank_stays_away(spec: RunSpec, corpus: Path, folder: Path, layout: Layout) -> None:
    """In step 7 rank 1 enters no collective; nothing watches the ranks. The others write how it ended for them."""
    patience.LEAST_S = 1.5
    step = ParallelEngine.step

    def late(self: ParallelEngine, number: int, batch: Batch[torch.Tensor]) -> Any:
        if number == 0:
            time.sleep(2.5 * dist.get_rank())  # compiles for longer than a later step may take
        if number == 6 and dist.get_rank() == 1:
            time.sleep(300)
        return step(self, number, batch)

    ParallelEngine.step = late
    begin = time.monotonic()
    try:
        train(spec, corpus, folder, layout, checkpoints=Checkpoints(every_steps=3))
    except RuntimeError as error:
        outcome = {"lost": lost_connection(error), "seconds": time.monotonic() - begin}
        (folder.parent / f"rank-{dist.get_rank()}.json").write_text(json.dumps(outcome))


def train_until(point: str, spec: RunSpec, corpus: Path, folder: Path, layout: Layout) -> None:
    """Train with a checkpoint every 2 steps until the rank of ``POINTS[point]`` is killed in the second one."""
    rank, owner, name, call = POINTS[point]
    function, left = getattr(owner, name), call

    def watched(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    if dist.get_rank() == rank:
        setattr(owner, name, watched)
    train(spec, corpus, folder, layout, checkpoints=Checkpoints(every_steps=2))


def half_a_file(tensors: Any, path: Path) -> None:
    """Leave the first bytes of a file."""
    path.write_bytes(b"\x40\x00\x00\x00\x00\x00\x00")
    os.kill(os.getpid(), signal.SIGKILL)


# Who is killed, and before which call of which function.
POINTS: dict[str, tuple[int, Any, str, int]] = {
    "while the values are copied": (1, saver.AsyncSaver, "_copy", 2),
    "before a rank writes its part": (1, saver, "write_pieces", 2),
    "before a rank's part is on the disk": (1, pieces, "sync", 2),
    "before a rank says that it has written": (1, dist, "gather_object", 2),
    "before the manifest": (0, manifest, "write_sealed", 2),
    "before the folder is renamed": (0, Path, "rename", 2),
    "before older ones are removed": (0, saver, "thin_out", 2),
}

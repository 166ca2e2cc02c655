"""Ranks for tests: processes that stay, in which a function of a test runs as each rank of a process group."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from datetime import timedelta
from typing import Any

import pytest

from armillary.recipe import UsageError

# Every gloo group polls a hundred times a second, also while it is idle: 100 groups on each of 4 ranks take 0.6 of a
# core. So ranks that have made this many end, and new ones start.
MANY_GROUPS = 32


# For the same reason ranks end with the tests that use them.
@pytest.fixture(scope="package")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Any]]]:
    """``on_ranks(n, function, *arguments)`` calls a module's function as each of n ranks; returns what each gave."""
    # One process group for all tests: what PyTorch remembers of a mesh outlives the group that the mesh was made for.
    worlds: dict[int, list[ProcessPoolExecutor]] = {}
    context = multiprocessing.get_context("forkserver")

    def call(ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        if ranks not in worlds:
            store = str(tmp_path_factory.mktemp("ranks") / "store")
            worlds[ranks] = [
                ProcessPoolExecutor(1, context, initializer=_join, initargs=(rank, ranks, store))
                for rank in range(ranks)
            ]
        futures = [rank.submit(function, *arguments) for rank in worlds[ranks]]
        try:
            # the rank that failed, not one that waits for it
            done, _ = wait(futures, timeout=300, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            results = [future.result(timeout=0) for future in futures]
        except BaseException as error:
            for rank in worlds.pop(ranks):  # the others wait for the one that failed
                for process in rank._processes.values():
                    process.kill()
            if isinstance(error, UsageError) and "needs PyTorch" in str(error):
                pytest.skip(str(error))
            raise
        if worlds[ranks][0].submit(_groups).result() > MANY_GROUPS:
            _end(worlds.pop(ranks))
        return results

    yield call
    for world in worlds.values():
        _end(world)


def _end(world: list[ProcessPoolExecutor]) -> None:
    for rank in world:
        rank.shutdown(wait=False, cancel_futures=True)


def _groups() -> int:
    import torch.distributed as dist

    return dist.get_pg_count()


def _join(rank: int, ranks: int, store: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    # a test that hangs ends with an error instead
    patience = timedelta(seconds=120)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks, timeout=patience)

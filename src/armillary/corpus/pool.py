"""Runs unfinished tasks, each of which writes one file, in worker processes or in this process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar


class Task(Protocol):
    """A task: its size in bytes of input, and whether an earlier build has left its complete result."""

    @property
    def size(self) -> int: ...
    def done(self) -> bool: ...


T = TypeVar("T", bound=Task)


def run_tasks(
    function: Callable[[T], None],
    tasks: Sequence[T],
    executor: Executor | None,
    progress: Callable[[int, int], None],
) -> None:
    """Call ``function`` on every unfinished task, the largest first; without an executor, in this process.

    ``progress`` gets (done, total) in bytes. An error of a task is raised here, and tasks not started yet are skipped.
    """
    total = sum(task.size for task in tasks)
    waiting = sorted((task for task in tasks if not task.done()), key=lambda task: -task.size)
    done = total - sum(task.size for task in waiting)
    progress(done, total)
    if executor is None:
        for task in waiting:
            function(task)
            done += task.size
            progress(done, total)
        return
    futures = {executor.submit(function, task): task for task in waiting}
    for future in as_completed(futures):
        future.result()
        done += futures[future].size
        progress(done, total)


@contextmanager
def worker_processes(count: int) -> Iterator[Executor | None]:
    """A pool of ``count`` processes that ends with this process; None for 1, as the caller's process is enough."""
    if count == 1:
        yield None
        return
    # spawn: a fork would copy the locks of the caller's threads in whatever state they are.
    executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    # One task per core is enough; the library's threads in every worker would compete for cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C reaches the whole process group; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    # A parent that was killed cannot end its workers, which would wait for tasks forever.
    threading.Thread(target=leave_with_parent, daemon=True).start()

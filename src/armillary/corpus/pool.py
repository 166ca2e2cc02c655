"""Running tasks that each leave one file: in worker processes or in this one, and only those that are not done."""

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
    """A piece of work: its size in bytes of input, and whether a former build has left its whole result."""

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
    """Call ``function`` on every task that is not done, the largest first; with None in this process.

    ``progress`` gets (done, total) in bytes. What a task raises is raised here; tasks not begun by then are left.
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
    """A pool of ``count`` processes that ends with this one; None for 1, where the caller's own is enough."""
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
    # One task per core is parallel enough; threads of the library in every worker would get in each other's way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    # A parent that was killed cannot end its workers, which would wait for tasks forever.
    threading.Thread(target=leave_with_parent, daemon=True).start()

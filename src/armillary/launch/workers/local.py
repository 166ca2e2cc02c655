"""Workers on this machine: one warm process per core, each with one thread, reached through a pipe.

Small models hardly use a second thread. Therefore one-thread processes, one per core, train more tokens per second than
one process with all cores. With accelerators, there is one worker per device. If the parent dies, workers write a
checkpoint and exit.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from armillary.launch.workers.capacity import default_workers
from armillary.launch.workers.messages import Answer, Lost, Message
from armillary.launch.workers.pool import SIGNALS, Worker, WorkerExecutor
from armillary.launch.workers.worker import WorkerOptions, device_name, work
from armillary.model import prefer_large_pages
from armillary.store import Store


class _Process(Worker):
    """A worker process, our end of its pipe, and its index."""

    def __init__(self, process: Any, pipe: Connection, index: int) -> None:
        super().__init__()
        self.process = process
        self.pipe = pipe
        self.index = index

    def send(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # the worker has died, which its pipe reports
            self.pipe.send(message)


class LocalExecutor(WorkerExecutor):
    """Worker processes on this machine, by default one per accelerator or core."""

    def __init__(
        self, store: Store, corpus: Path, workers: int | None = None, checkpoint_every_s: float = 30.0
    ) -> None:
        self._context = mp.get_context("spawn")
        # A plain byte instead of an Event: a worker killed while holding an Event's lock would block all others.
        super().__init__(store, corpus, checkpoint_every_s, self._context.RawValue("b", 0))
        self._n_workers = workers or default_workers()

    @property
    def n_workers(self) -> int:
        return self._n_workers

    @property
    def device(self) -> str:
        return device_name()

    def _start_workers(self) -> None:
        taken = {worker.index for worker in self._workers}
        for index in range(self._n_workers):
            if index not in taken:
                self._workers.append(self._spawn(index))

    def _await_workers(self) -> None:
        self._start_workers()  # a pipe can be written to before the process reads it

    def _spawn(self, index: int) -> _Process:
        prefer_large_pages()
        ours, theirs = self._context.Pipe()
        options = WorkerOptions(self.corpus, self.store.folder, self.checkpoint_every_s, index)
        arguments = (theirs, self._stop, os.getpid(), options)
        process = self._context.Process(target=_live, args=arguments, daemon=True)
        # Ctrl-C reaches the whole group, and a child spends its first seconds on imports, so it inherits blocked
        # signals. multiprocessing's tracker must start first, because starting it unblocks them.
        resource_tracker.ensure_running()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        return _Process(process, ours, index)

    def _receive(self) -> list[tuple[_Process, Answer | Lost]]:
        by_pipe = {worker.pipe: worker for worker in self._workers}
        received: list[tuple[_Process, Answer | Lost]] = []
        for pipe in wait(list(by_pipe), timeout=0.5):
            worker = by_pipe[pipe]
            try:
                received.append((worker, worker.pipe.recv()))
            except (EOFError, OSError):
                worker.pipe.close()
                worker.process.join()
                code = worker.process.exitcode
                self._workers.remove(worker)
                received.append((worker, Lost(f"signal {-code}" if code and code < 0 else f"exit code {code}")))
        return received

    def _close(self) -> None:
        for worker in self._workers:
            worker.pipe.close()  # an idle worker ends when its pipe does
        for worker in self._workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _live(pipe: Connection, stop: Any, parent: int, options: WorkerOptions) -> None:
    """The main function of a worker process."""
    for number in SIGNALS:  # they reach the whole group, but only the parent handles them
        signal.signal(number, signal.SIG_IGN)

    def receive() -> Message:
        try:
            message: Message = pipe.recv()
        except OSError as error:
            raise EOFError from error
        return message

    def answer(message: Answer) -> None:
        with contextlib.suppress(OSError):  # the parent has died; `stopping` detects this and stops cleanly
            pipe.send(message)

    def stopping() -> bool:
        return bool(stop.value) or os.getppid() != parent

    work(receive, answer, stopping, options)

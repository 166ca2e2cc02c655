"""Runs work in daemon threads and yields results as they arrive. The threads never block the end of the process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def as_finished(
    work: Callable[[Item, threading.Event], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Yield ``work(item, stopping)`` for each item as soon as it is finished, with ``workers`` items at a time.

    After the first error no new item starts. Items in progress are finished and yielded, since they are paid for, and
    then the error is raised. If the caller stops iterating (Ctrl-C), ``stopping`` is set and the function does not wait
    for the threads, which are daemons.
    """
    stopping = threading.Event()
    results: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def run(item: Item) -> None:
        try:
            results.put((work(item, stopping), None))
        except BaseException as error:  # raised again in the consumer
            results.put((None, error))

    waiting, running, failure = iter(items), 0, None
    try:
        while True:
            while running < workers and failure is None:
                try:
                    item = next(waiting)
                except StopIteration:
                    break
                threading.Thread(target=run, args=(item,), daemon=True).start()
                running += 1
            if not running:
                break
            result, error = results.get()
            running -= 1
            failure = failure or error
            if error is None:
                yield result  # type: ignore[misc]  # a slot without an error has a result
    finally:
        stopping.set()
    if failure is not None:
        raise failure


def as_streamed(work: Callable[[Callable[[str], bool]], Result]) -> Generator[str, None, Result]:
    """Yield each text that ``work`` emits, and return its result.

    ``work`` runs in a thread. It gets a function that emits a text and returns true once the reader has stopped;
    ``work`` should then return soon.
    """
    messages: queue.SimpleQueue[str | tuple[Result | None, BaseException | None]] = queue.SimpleQueue()
    stopping = threading.Event()

    def say(text: str) -> bool:
        messages.put(text)
        return stopping.is_set()

    def run() -> None:
        try:
            messages.put((work(say), None))
        except BaseException as error:  # raised again in the consumer
            messages.put((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while isinstance(text := messages.get(), str):
            yield text
    finally:
        stopping.set()
        thread.join()  # a thread inside a C++ library at the end of the interpreter crashes the process
    result, error = text
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # a slot without an error has a result

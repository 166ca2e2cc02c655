"""Work in threads whose results are taken as they come, and which never keep the process from ending."""

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
    """Yields ``work(item, stopping)`` for each item as soon as it is finished, with ``workers`` items at a time.

    After the first error no item is started; those in progress are finished and yielded, since they were paid for, and
    then the error is raised. When the iteration is left early (Ctrl-C), ``stopping`` is set and nothing is waited for:
    the threads are daemons.
    """
    stopping = threading.Event()
    results: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def run(item: Item) -> None:
        try:
            results.put((work(item, stopping), None))
        except BaseException as error:  # raised again where the results are taken
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
                yield result  # type: ignore[misc]  # a result stands wherever no error does
    finally:
        stopping.set()
    if failure is not None:
        raise failure


def as_streamed(work: Callable[[Callable[[str], bool]], Result]) -> Generator[str, None, Result]:
    """Yields each text that ``work`` says, and returns its result.

    ``work`` runs in a thread. It is given a function to say a text with, which returns true once nobody reads on;
    it then returns soon.
    """
    said: queue.SimpleQueue[str | tuple[Result | None, BaseException | None]] = queue.SimpleQueue()
    stopping = threading.Event()

    def say(text: str) -> bool:
        said.put(text)
        return stopping.is_set()

    def run() -> None:
        try:
            said.put((work(say), None))
        except BaseException as error:  # raised again where the texts are taken
            said.put((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while isinstance(text := said.get(), str):
            yield text
    finally:
        stopping.set()
        thread.join()  # a thread that is inside a C++ library when the interpreter ends takes the process down
    result, error = text
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # a result stands wherever no error does

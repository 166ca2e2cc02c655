"""A backend whose answers are a function of the question and the number of the sample, and a log of what was asked."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from armillary.generate import BadRequestError, Choice, Completion, Cost, Likelihood, Pair, Request, seed_of

Says = Callable[[str, float, int], str]


class Scripted:
    """Answers ``says(last message, temperature, number)``; ``log`` gets a line per answered request.

    A question with "too long" in it is refused. The text "CUT" is an answer that its length limit cut. After
    ``kill_after`` answers the process kills itself.
    """

    context = 1000

    def __init__(self, says: Says, log: Path, kill_after: int | None = None, name: str = "scripted") -> None:
        self.identity: dict[str, Any] = {"backend": name}
        self.cost = Cost()
        self._says, self._log, self._left = says, log, kill_after

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        asked = list(requests)
        for place, request in enumerate(asked):
            if "too long" in request.prompt[-1].content:  # type: ignore[union-attr]
                raise BadRequestError(place, "longer than the context")
        for place, request in enumerate(asked):
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left = None if self._left is None else self._left - 1
            sampling, question = request.sampling, request.prompt[-1].content  # type: ignore[union-attr]
            with self._log.open("a") as log:
                log.write(f"{request.key}\n")
            texts = [self._says(question, sampling.temperature, number) for number in range(sampling.n)]
            assert len({seed_of(sampling, number) for number in range(sampling.n)}) == sampling.n
            choices = [Choice(text, len(text), "length" if text == "CUT" else "stop") for text in texts]
            yield Completion(place, tuple(choices), len(question))

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        raise NotImplementedError

    def tokenize(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def close(self) -> None:
        pass


def until_killed(work: Callable[[], Any]) -> int:
    """The exit code of a child process that does ``work``: minus the signal where one killed it."""
    if not (child := os.fork()):
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

"""A conversation with a model: keeps its turns, and drops the oldest if the model's context is too short."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace

from armillary.generate.backend import Backend, BadRequestError, Completion, Message, Request, Sampling, Streaming
from armillary.recipe import UsageError


@dataclass
class Dialogue:
    """Turns with the model of ``backend``. The answer to turn ``k`` is drawn with ``sampling.seed + k``.

    ``forgotten`` counts the messages that no longer fit into the context.
    """

    backend: Backend
    sampling: Sampling
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    turns: int = 0
    forgotten: int = 0

    def say(self, text: str) -> Generator[str, None, Completion]:
        """Yield the answer to ``text`` piece by piece, and return the completion.

        An interrupted answer stays in the conversation up to the interruption. A turn that fails, or stops before its
        first piece, leaves the conversation unchanged.

        Raises:
            UsageError: the engine cannot stream, the model has no chat template, or ``text`` alone is too long.
        """
        if not isinstance(self.backend, Streaming):
            raise UsageError(f"engine '{self.backend.identity['backend']}' cannot stream an answer; use another")
        before, forgotten = list(self.messages), self.forgotten
        self.messages.append(Message("user", text))
        reply = ""
        try:
            while True:
                try:
                    with closing(self.backend.stream(self._request())) as pieces:
                        try:
                            while True:
                                piece = next(pieces)
                                reply += piece
                                yield piece
                        except StopIteration as end:
                            completion: Completion = end.value
                            self._answered(completion.choices[0].text)
                            return completion
                except BadRequestError:
                    if len(self.messages) == 1 or reply:
                        raise
                    oldest = 2 if self.messages[1].role == "assistant" else 1
                    del self.messages[:oldest]
                    self.forgotten += oldest
        except (GeneratorExit, KeyboardInterrupt):
            if not reply:  # stopped before its first piece: no turn
                self.messages, self.forgotten = before, forgotten
            else:
                self._answered(reply)
            raise
        except BaseException:
            self.messages, self.forgotten = before, forgotten
            raise

    def clear(self) -> None:
        """Begin a new conversation."""
        self.messages.clear()

    def _answered(self, text: str) -> None:
        self.messages.append(Message("assistant", text))
        self.turns += 1

    def _request(self) -> Request:
        first = () if self.system is None else (Message("system", self.system),)
        return Request((*first, *self.messages), replace(self.sampling, seed=self.sampling.seed + self.turns))

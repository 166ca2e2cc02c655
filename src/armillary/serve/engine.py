"""The interface of an engine: requests in progress, their pieces, and the limit on their number."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from armillary.generate import Sampling
from armillary.serve.errors import ApiError, BusyError
from armillary.serve.metrics import Metrics

_LONGEST_WAIT_S = 60


@dataclass(frozen=True)
class Chat:
    """Messages for the model's template as plain data, the tools that the model may call, and settings of the
    template."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """Each of ``prompts`` (text, tokens or a chat) is continued ``sampling.n`` times.

    ``growing`` requests pieces as they are generated, ``top`` log probabilities of this many most likely tokens, and
    ``echo`` the prompt before each answer. Without ``answer``, prompts are only read. Answers stay inside ``grammar``,
    which the field ``shaped_by`` of the request asked for.
    """

    prompts: tuple[str | tuple[int, ...] | Chat, ...]
    sampling: Sampling
    growing: bool = False
    top: int | None = None
    echo: bool = False
    answer: bool = True
    grammar: str | None = None
    shaped_by: str = ""


@dataclass(frozen=True)
class TokenScore:
    """The bytes of a token with its log probability (None: the first of a prompt), and the most likely ones."""

    token: bytes
    value: float | None
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class Piece:
    """The new part of a choice: its text, the number of new tokens, their scores, and the finish reason if it ended."""

    choice: int
    text: str = ""
    tokens: int = 0
    scores: tuple[TokenScore, ...] = ()
    finish: Literal["stop", "length"] | None = None

    def __add__(self, other: Piece) -> Piece:
        return Piece(
            self.choice,
            self.text + other.text,
            self.tokens + other.tokens,
            self.scores + other.scores,
            other.finish or self.finish,
        )


class Live:
    """A request in progress. ``choices`` are numbered by prompt, then by answer."""

    _numbers = itertools.count()

    def __init__(self, ask: Ask, prompt_tokens: int) -> None:
        self.number = next(self._numbers)
        self.ask, self.prompt_tokens = ask, prompt_tokens
        self.choices = self.open = len(ask.prompts) * ask.sampling.n
        self.begun, self.first = time.monotonic(), False
        self._pieces: asyncio.Queue[Piece | ApiError] = asyncio.Queue()

    def put(self, piece: Piece | ApiError) -> None:
        """Add a piece; called in the event loop."""
        self._pieces.put_nowait(piece)

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """New pieces, at most one per choice at a time, until all choices have ended.

        Raises:
            ApiError: the request failed.
        """
        left = self.choices
        while left:
            found: dict[int, Piece] = {}
            item = await self._pieces.get()
            while True:
                if isinstance(item, ApiError):
                    raise item
                found[item.choice] = found[item.choice] + item if item.choice in found else item
                left -= item.finish is not None
                if self._pieces.empty():
                    break
                item = self._pieces.get_nowait()
            yield list(found.values())


class Engine(ABC):
    """Computes answers in separate threads; everything else runs in the event loop.

    ``slots`` answers are computed at a time, and ``queue`` more may wait.
    """

    def __init__(self, name: str, context: int, slots: int, queue: int) -> None:
        self.name, self.context, self.slots, self.queue = name, context, slots, queue
        self.metrics = Metrics()
        self._open = 0
        self._live: dict[int, Live] = {}
        self._mean_s = 1.0  # of a whole request
        self._idle = asyncio.Event()
        self._idle.set()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the engine."""
        self._loop = loop
        self.metrics.watch(self)

    @property
    @abstractmethod
    def running(self) -> int:
        """The number of answers in progress."""

    @property
    def waiting(self) -> int:
        """The number of answers waiting for a slot."""
        return max(self._open - self.running, 0)

    @abstractmethod
    def prepare(self, ask: Ask) -> Live:
        """Check a request and read its prompts; may be called in any thread.

        Raises:
            ApiError: this engine does not support the request, or a prompt is too long.
        """

    def submit(self, live: Live) -> None:
        """Add a request to those in progress.

        Raises:
            BusyError: the queue is full.
        """
        if self._open and self._open + live.choices > self.slots + self.queue:
            wait = math.ceil(self._mean_s * max(self.waiting, 1) / self.slots)
            raise BusyError(self.waiting, min(max(wait, 1), _LONGEST_WAIT_S))
        self._open += live.choices
        self._idle.clear()
        self._live[live.number] = live
        self.metrics.prompt_tokens.inc(live.prompt_tokens)
        self._begin(live)

    def cancel(self, live: Live) -> None:
        """Free the slots of a request whose client has disconnected; no effect if it has ended."""
        if self._forget(live):
            self.metrics.cancelled.inc()
            self._abort(live)

    async def idle(self) -> None:
        """Wait until no request is in progress."""
        await self._idle.wait()

    def abort(self) -> None:
        """Abort all requests."""
        for live in list(self._live.values()):
            self._forget(live)
            self._abort(live)
            live.put(ApiError(503, "the server was stopped", code="stopped"))

    @abstractmethod
    def close(self) -> None:
        """Stop the threads, and free the model."""

    def template(self) -> tuple[str | None, bool]:
        """The source of the chat template, and whether the tool-call markers are special tokens.

        Raises:
            ApiError: this engine does not call tools.
        """
        raise ApiError(
            400, f"tools: not supported by the {self.name} backend; the native backend supports them", "tools"
        )

    def tokenize(self, text: str, special: bool) -> list[int]:
        """The tokens of a text."""
        raise ApiError(400, f"the {self.name} backend does not tokenize text")

    @abstractmethod
    def _begin(self, live: Live) -> None:
        """Hand a request to the threads."""

    @abstractmethod
    def _abort(self, live: Live) -> None:
        """Make the threads drop a request."""

    def _deliver(self, found: Iterable[tuple[Live, Piece | ApiError]]) -> None:
        """Deliver pieces to their requests; called in the event loop."""
        for live, piece in found:
            if live.number not in self._live:
                continue
            live.put(piece)
            if isinstance(piece, ApiError):
                self._forget(live)
                self._abort(live)
                continue
            self.metrics.new_tokens.inc(piece.tokens)
            if not live.first:
                live.first = True
                self.metrics.first_piece.observe(time.monotonic() - live.begun)
            if piece.finish is not None:
                self._open -= 1
                live.open -= 1
                if not live.open:
                    self._forget(live)
                    self._mean_s += 0.1 * (time.monotonic() - live.begun - self._mean_s)

    def _forget(self, live: Live) -> bool:
        """Remove a request; False if it was already removed."""
        if self._live.pop(live.number, None) is None:
            return False
        self._open -= live.open
        live.open = 0
        if not self._live:
            self._idle.set()
        return True

"""The native engine: one thread computes the steps of one batch, which requests join and leave between steps.

The event loop and the thread share only two things: a queue of commands to the thread, and the pieces of a step, handed
to the loop in one call.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from dataclasses import dataclass

from armillary.generate import batch, guide, native
from armillary.recipe import ArmillaryError, UsageError
from armillary.serve.engine import Ask, Chat, Engine, Live, Piece, TokenScore
from armillary.serve.errors import ApiError
from armillary.serve.tools import OPEN

SLOTS = 64
_MOST_SCORES = 1_000_000  # for the prompts of one request: each takes about 150 bytes


@dataclass
class _Choice:
    """An answer of a request, and how much of it has been delivered."""

    live: Live
    number: int
    answer: batch.Answer
    prompt: str
    sent: int = 0
    tokens: int = 0
    scores: int = 0
    begun: bool = False


class _Batched(Live):
    """A request with its answers."""

    def __init__(
        self,
        ask: Ask,
        prompts: list[list[int]],
        texts: list[str],
        backend: native.NativeBackend,
        start: guide.Guide | None,
    ) -> None:
        super().__init__(ask, sum(map(len, prompts)))
        recorded = batch.Recorded(ask.growing, ask.top, ask.echo and ask.top is not None, ask.answer)
        self.firsts: list[batch.Answer] = []
        self.of: list[_Choice] = []
        for tokens, text in zip(prompts, texts, strict=True):
            first = backend.start(self.number, tokens, ask.sampling, recorded)
            self.firsts.append(first)
            answers = [first, *first.siblings]
            for answer in answers:
                answer.guide = None if start is None else start.copy()
            self.of += [_Choice(self, len(self.of) + n, one, text) for n, one in enumerate(answers)]


class BatchingEngine(Engine):
    """Serves a model of this package, ``slots`` answers at a time."""

    def __init__(self, backend: native.NativeBackend, slots: int, waiting: int) -> None:
        super().__init__("native", backend.context, slots, waiting)
        self._backend, self._text = backend, backend.text
        self._guides = guide.Guides(backend.text, backend.vocab_size)
        self._batch = backend.new_batch(slots)
        self._choices: dict[batch.Answer, _Choice] = {}
        self._commands: queue.SimpleQueue[tuple[_Batched, bool] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="steps", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread."""
        super().start(loop)
        self._thread.start()

    @property
    def running(self) -> int:
        """Answers in the batch."""
        return self._batch.running

    def prepare(self, ask: Ask) -> Live:
        """Tokenize the prompts, and check that they fit.

        Raises:
            ApiError: a prompt that is empty, too long or not of this vocabulary, or messages that the template refuses.
        """
        read = [self._read(prompt, "messages" if isinstance(prompt, Chat) else "prompt") for prompt in ask.prompts]
        for tokens, _ in read:
            if len(tokens) + ask.answer > self.context:
                raise ApiError(
                    400,
                    f"the prompt has {len(tokens)} tokens, but this model takes at most {self.context} including its "
                    "answer; shorten it",
                    "messages" if isinstance(ask.prompts[0], Chat) else "prompt",
                    "context_length_exceeded",
                )
        scores = sum(len(tokens) for tokens, _ in read) * (1 + (ask.top or 0))
        if ask.echo and ask.top is not None and scores > _MOST_SCORES:
            raise ApiError(
                400,
                f"echo: {scores:,} log probabilities, but the maximum is {_MOST_SCORES:,}; send several requests",
                "echo",
            )
        start = None
        if ask.grammar is not None:
            try:
                start = self._guides.compile(ask.grammar)
            except UsageError as error:
                raise ApiError(400, f"{ask.shaped_by}: {error}", ask.shaped_by) from error
        return _Batched(ask, [tokens for tokens, _ in read], [text for _, text in read], self._backend, start)

    def _read(self, prompt: str | tuple[int, ...] | Chat, param: str) -> tuple[list[int], str]:
        """The tokens of a prompt, and its text."""
        try:
            if isinstance(prompt, str):
                text, tokens = prompt, self._text.encode(prompt, True)
            elif isinstance(prompt, Chat):
                if self._text.template is None:
                    raise UsageError("this model has no chat template; use /v1/completions")
                text = self._text.template.render(prompt.messages, tools=prompt.tools, settings=prompt.settings)
                tokens = self._text.encode(text, False)
            else:
                tokens = list(prompt)
                text = self._text.decode(tokens)
        except UsageError as error:
            raise ApiError(400, str(error), param) from error
        if not tokens:
            raise ApiError(400, "the prompt is empty; give some text", param)
        if max(tokens) >= self._backend.vocab_size:
            raise ApiError(
                400, f"token {max(tokens)} is not in the vocabulary of {self._backend.vocab_size} tokens", param
            )
        return tokens, text

    def close(self) -> None:
        """Stop after the current step."""
        self._commands.put(None)
        self._thread.join()
        self._backend.close()

    def tokenize(self, text: str, special: bool) -> list[int]:
        """The tokens of a text."""
        try:
            return self._text.encode(text, special)
        except UsageError as error:
            raise ApiError(400, str(error), "prompt") from error

    def template(self) -> tuple[str | None, bool]:
        """The source of the chat template, and whether the marks of a tool call are special tokens."""
        source = None if self._text.template is None else self._text.template.source
        return source, self._text.special(OPEN) is not None

    def _begin(self, live: Live) -> None:
        assert isinstance(live, _Batched), "prepared here"
        self._commands.put((live, True))

    def _abort(self, live: Live) -> None:
        assert isinstance(live, _Batched), "prepared here"
        self._commands.put((live, False))

    # -- in the thread --

    def _work(self) -> None:
        reused = 0
        while self._obey():
            begun = time.monotonic()
            try:
                touched = self._batch.step()
            except Exception as error:  # the requests of this step fail, the server continues
                self._fail(error)
                continue
            self.metrics.step_seconds.observe(time.monotonic() - begun)
            self.metrics.reused_tokens.inc(self._batch.reused - reused)
            reused = self._batch.reused
            found = [piece for answer in touched if (piece := self._piece(self._choices[answer])) is not None]
            if found:
                self._hand_over(found)

    def _obey(self) -> bool:
        """Execute the queued commands, and wait for one if there is nothing to do; False at the end."""
        while True:
            try:
                command = self._commands.get(block=self._batch.idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            live, begins = command
            if begins:
                self._choices.update({choice.answer: choice for choice in live.of})
                for first in live.firsts:
                    self._batch.add(first)
            else:
                for choice in live.of:
                    if self._choices.pop(choice.answer, None) is not None:
                        self._batch.remove(choice.answer)

    def _fail(self, error: Exception) -> None:
        lives = {choice.live.number: choice.live for choice in self._choices.values()}
        for answer in self._choices:
            self._batch.remove(answer)
        self._choices.clear()
        message = str(error) if isinstance(error, ArmillaryError) else f"{type(error).__name__}: {error}"
        self._hand_over([(live, ApiError(500, message)) for live in lives.values()])

    def _hand_over(self, found: list[tuple[Live, Piece | ApiError]]) -> None:
        self._loop.call_soon_threadsafe(self._deliver, found)

    def _piece(self, choice: _Choice) -> tuple[Live, Piece | ApiError] | None:
        """The new part of a choice, if a stream needs it now."""
        answer, ask = choice.answer, choice.live.ask
        if answer.finish is not None:
            del self._choices[answer]
        if answer.error is not None:
            return choice.live, ApiError(500, str(answer.error))
        if answer.finish is None and not ask.growing:
            return None
        stream = answer.stream
        if answer.finish is not None:
            text = self._text.decode(answer.tokens) if stream is None else stream.finish()
            end = len(text)
        else:
            assert stream is not None, "it grows"
            text, end = stream.text, stream.shown
        new, scored = text[choice.sent : end], answer.scored[choice.scores :]
        if ask.echo and not choice.begun:
            new = choice.prompt + new
        if answer.finish is None and not new and not scored:
            return None
        piece = Piece(
            choice.number,
            new,
            len(answer.tokens) - choice.tokens,
            tuple(
                TokenScore(
                    self._text.spell(one.token),
                    one.value,
                    tuple((self._text.spell(token), value) for token, value in one.top),
                )
                for one in scored
            ),
            answer.finish,
        )
        choice.sent, choice.tokens, choice.scores, choice.begun = end, len(answer.tokens), len(answer.scored), True
        return choice.live, piece

"""Engines that compute one request per call (llama.cpp, ``transformers``), served by a pool of threads.

Features of the native engine only (log probabilities, prompts as tokens, tools) are refused.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import closing

from armillary.generate import Backend, BadRequestError, Completion, Message, Request, Streaming
from armillary.recipe import ArmillaryError, UsageError
from armillary.serve.engine import Ask, Chat, Engine, Live, Piece
from armillary.serve.errors import ApiError

_ROLES = ("system", "user", "assistant")


class _Borrowed(Live):
    """A request, with one engine request per prompt."""

    def __init__(self, ask: Ask, requests: list[Request]) -> None:
        super().__init__(ask, 0)  # the engine counts the tokens of prompts
        self.requests, self.stopped = requests, threading.Event()


class BorrowingEngine(Engine):
    """Serves the model of any backend, ``slots`` requests at a time, each in a thread."""

    def __init__(self, backend: Backend, name: str, slots: int, waiting: int) -> None:
        super().__init__(name, backend.context, slots, waiting)
        assert isinstance(backend, Streaming), "every engine that is served streams"
        self._backend, self._stream = backend, backend.stream
        self._waiting: queue.SimpleQueue[_Borrowed | None] = queue.SimpleQueue()
        self._busy = 0
        self._counting = threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(slots)]
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> int:
        """Answers of the requests that threads have taken."""
        return self._busy

    def prepare(self, ask: Ask) -> Live:
        """Check that the engine supports the request.

        Raises:
            ApiError: it does not.
        """
        for refused, param in (
            (ask.top is not None, "logprobs"),
            (ask.echo, "echo"),
            (not ask.answer, "max_tokens"),
            (ask.grammar is not None, ask.shaped_by),
        ):
            if refused:
                raise ApiError(
                    400, f"{param}: not supported by the {self.name} backend; the native backend supports it", param
                )
        return _Borrowed(ask, [Request(self._prompt(prompt), ask.sampling) for prompt in ask.prompts])

    def _prompt(self, prompt: str | tuple[int, ...] | Chat) -> str | tuple[Message, ...]:
        if isinstance(prompt, str):
            return prompt
        if not isinstance(prompt, Chat):
            raise ApiError(400, f"the {self.name} backend reads prompts as text, not as tokens", "prompt")
        if prompt.settings:
            raise ApiError(
                400,
                f"chat_template_kwargs: not supported by the {self.name} backend; the native backend supports it",
                "chat_template_kwargs",
            )
        messages = []
        for place, message in enumerate(prompt.messages):
            if message["role"] not in _ROLES:
                raise ApiError(
                    400,
                    f"the {self.name} backend does not support the role {message['role']!r}",
                    f"messages[{place}].role",
                )
            messages.append(Message(message["role"], message["content"] or ""))
        return tuple(messages)

    def close(self) -> None:
        """Stop the threads at the next token."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._backend.close()

    def _begin(self, live: Live) -> None:
        assert isinstance(live, _Borrowed), "prepared here"
        self._waiting.put(live)

    def _abort(self, live: Live) -> None:
        assert isinstance(live, _Borrowed), "prepared here"
        live.stopped.set()

    # -- in the threads --

    def _work(self) -> None:
        while (live := self._waiting.get()) is not None:
            if live.stopped.is_set():
                continue
            with self._counting:
                self._busy += live.choices
            try:
                for place, request in enumerate(live.requests):
                    for piece in self._answer(live, request, place * request.sampling.n):
                        self._hand_over(live, piece)
            except BadRequestError as error:
                self._hand_over(live, ApiError(400, error.problem, "prompt"))
            except UsageError as error:
                self._hand_over(live, ApiError(400, str(error)))
            except Exception as error:  # this request fails, the server continues
                message = str(error) if isinstance(error, ArmillaryError) else f"{type(error).__name__}: {error}"
                self._hand_over(live, ApiError(500, message))
            finally:
                with self._counting:
                    self._busy -= live.choices

    def _answer(self, live: _Borrowed, request: Request, first: int) -> Iterator[Piece]:
        sent = 0
        with closing(self._stream(request)) as pieces:
            while True:
                try:
                    text = next(pieces)
                except StopIteration as end:
                    completion: Completion = end.value
                    break
                if live.stopped.is_set():
                    return
                if live.ask.growing and text:
                    sent += len(text)
                    yield Piece(first, text)
        self.metrics.prompt_tokens.inc(completion.prompt_tokens)
        live.prompt_tokens += completion.prompt_tokens
        for number, choice in enumerate(completion.choices):
            rest = choice.text[sent:] if number == 0 else choice.text
            yield Piece(first + number, rest, choice.tokens, finish=choice.finish)

    def _hand_over(self, live: Live, piece: Piece | ApiError) -> None:
        self._loop.call_soon_threadsafe(self._deliver, [(live, piece)])

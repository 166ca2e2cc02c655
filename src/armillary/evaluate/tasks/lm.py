"""lm_eval's ``LM`` over any ``Backend``: requests in, texts and log probabilities out.

This class treats a request exactly like lm_eval's Hugging Face model (``HFLM``), so scores are equal: a default of 256
new tokens, greedy decoding without a temperature, and a cut at the first stop string. A prompt longer than the model's
context loses its first tokens, and each item reports the loss (``context_cut``). One thing differs on purpose: chat
messages reach the backend as messages, so that a server applies its own template.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from armillary.generate import (
    Answers,
    Backend,
    BadRequestError,
    Choice,
    Likelihood,
    Message,
    Pair,
    Request,
    RequestError,
    Sampling,
)
from armillary.recipe import ArmillaryError, UsageError

if TYPE_CHECKING:
    from lm_eval.api.model import LM

# The number of tokens that lm_eval's HFLM generates if a task sets none.
DEFAULT_NEW_TOKENS = 256
# Marks a prompt that holds chat messages: lm_eval passes prompts as text, and no task's text starts like this.
_CHAT = "\0chat\0"
_PASSED_ON = ("temperature", "top_p", "top_k")
# An upper bound on the tokens that a tokenizer adds to a text, and a template to chat turns.
_SPECIAL, _TEMPLATE = 8, 1024
_UNKNOWN = 2**62

Progress = Callable[[int, int], None]


def request_of(context: str, options: dict[str, Any]) -> Request:
    """The request that asks for lm_eval's ``generate_until(context, options)``.

    Raises:
        UsageError: an option without a counterpart.
    """
    left = dict(options)
    until = left.pop("until", None) or []
    aliases = [left.pop(n, None) for n in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")]
    limit = next((n for n in aliases if n is not None), DEFAULT_NEW_TOKENS)
    sampled = left.pop("do_sample", None)
    passed = {name: left.pop(name) for name in _PASSED_ON if name in left}
    if left:
        raise UsageError(f"generation settings {', '.join(left)} are not supported; supported: {', '.join(_PASSED_ON)}")
    if sampled is False:
        passed["temperature"] = 0.0
    stop = tuple(s for s in ([until] if isinstance(until, str) else until) if s)
    return Request(prompt_of(context), Sampling(max_new_tokens=int(limit), stop=stop, **passed))


def prompt_of(context: str) -> str | tuple[Message, ...]:
    """The prompt encoded in lm_eval's ``context``: text, or chat messages."""
    if not context.startswith(_CHAT):
        return context
    return tuple(Message(m["role"], m["content"]) for m in json.loads(context.removeprefix(_CHAT)))


class Asked:
    """The requests of an examination to a backend, and the answers with details that lm_eval does not pass on.

    Args:
        backend: answers requests that are not in ``saved``.
        kept: answers on disk; None keeps none.
        progress: called with the number of answers so far and the number requested.
    """

    def __init__(self, backend: Backend, saved: Answers | None = None, progress: Progress | None = None) -> None:
        self.backend = backend
        self.saved = saved
        self.progress = progress or (lambda done, total: None)
        self.choices: dict[str, Choice] = {}
        self.cut: dict[str, int] = {}  # tokens cut, by the key of the request
        self._lengths: dict[str, int] = {}

    def request(self, context: str, options: dict[str, Any]) -> Request:
        """Like ``request_of``, but a prompt that leaves too little room for the longest answer loses its start.

        As in ``HFLM.generate_until``, the last ``context - max_new_tokens`` tokens remain.
        """
        request = request_of(context, options)
        room = self._context - request.sampling.max_new_tokens
        text = request.prompt if isinstance(request.prompt, str) else "".join(turn.content for turn in request.prompt)
        added = _SPECIAL if isinstance(request.prompt, str) else _TEMPLATE
        if room < 1 or self._within(text, room - added):
            return request
        return replace(request, last_tokens=room)

    def pair(self, context: str, continuation: str) -> Pair:
        """The pair to score; its context loses its start if both together exceed the model's context.

        As in ``HFLM._loglikelihood_tokens``, the last token is not an input, so one token more than the context
        remains.
        """
        pair = Pair(context, continuation)
        if self._within(context + continuation, self._context + 1 - _SPECIAL):
            return pair
        return replace(pair, last_tokens=self._context + 1)

    @cached_property
    def _context(self) -> int:
        try:
            return self.backend.context
        except UsageError:
            return _UNKNOWN  # a server that does not report its context cuts or refuses by itself

    def _within(self, text: str, tokens: int) -> bool:
        """Whether ``text`` has at most ``tokens`` tokens."""
        if len(text.encode("utf-8", "replace")) <= tokens:
            return True  # no token is shorter than a byte
        if text not in self._lengths:
            try:
                self._lengths[text] = len(self.backend.tokenize(text))
            except ArmillaryError:
                self._lengths[text] = 0  # a server without a tokenizer cuts or refuses by itself
        return self._lengths[text] <= tokens

    def complete(self, requests: Sequence[Request]) -> list[Choice]:
        """The first answer to each request.

        Raises:
            RequestError: raised by the backend, with the index in ``requests``.
        """
        found = (
            self.saved.complete(self.backend, requests) if self.saved is not None else self.backend.complete(requests)
        )
        answers: dict[int, Choice] = {}
        for completion in found:
            answers[completion.index] = completion.choices[0]
            key = requests[completion.index].key
            self.choices[key], self.cut[key] = completion.choices[0], completion.cut
            self.progress(len(answers), len(requests))
        return [answers[place] for place in range(len(requests))]

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """The likelihood of each pair.

        Raises:
            RequestError: raised by the backend, with the index in ``pairs``.
        """
        found: list[Likelihood] = []
        for start in range(0, len(pairs), _PAIRS):
            part = pairs[start : start + _PAIRS]
            try:
                if self.saved is not None:
                    found += self.saved.loglikelihood(self.backend, part)
                else:
                    found += self.backend.loglikelihood(part)
            except RequestError as error:
                raise error.at(start + error.index) from None
            self.progress(len(found), len(pairs))
        self.cut |= {pair.key: likelihood.cut for pair, likelihood in zip(pairs, found, strict=True)}
        return found


# Pairs per call of the backend: at most this many are lost if a run is killed.
_PAIRS = 64


def language_model(asked: Asked) -> LM:
    """An lm_eval model that answers through ``asked``."""
    from lm_eval.api.model import LM

    class BackendLM(LM):  # type: ignore[misc]
        """Defined here because its base class is imported on demand."""

        tokenizer_name = "backend"

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            for request in requests:
                if request.args[0].startswith(_CHAT):
                    raise UsageError(
                        f"{request.task_name}: is scored by likelihood, which has no chat form; leave out --chat"
                    )
            with _naming(requests):
                found = asked.loglikelihood([asked.pair(*request.args) for request in requests])
            return [(likelihood.value, likelihood.greedy) for likelihood in found]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            with _naming(requests):
                return [found.value for found in asked.loglikelihood([Pair("", r.args[0]) for r in requests])]

        def generate_until(self, requests: list[Any]) -> list[str]:
            with _naming(requests):
                return [choice.text for choice in asked.complete([asked.request(*r.args) for r in requests])]

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:
                raise UsageError(
                    "a task that begins the assistant's answer does not support chat messages; leave out --chat"
                )
            return _CHAT + json.dumps(chat_history, ensure_ascii=False)

    return BackendLM()


@contextlib.contextmanager
def _naming(requests: Sequence[Any]) -> Iterator[None]:
    """Names the item whose request failed."""
    try:
        yield
    except RequestError as error:
        request = requests[error.index]
        where = f"{request.task_name}, item {request.doc_id + 1}"
        hint = "; fewer --shots make prompts shorter" if isinstance(error, BadRequestError) else ""
        kind = UsageError if isinstance(error, UsageError) else ArmillaryError
        raise kind(f"{where}: {error.problem}{hint}") from error

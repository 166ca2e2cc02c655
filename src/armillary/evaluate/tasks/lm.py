"""lm_eval's ``LM`` over any ``Backend``: requests in, texts and log probabilities out.

What lm_eval's own Hugging Face model does to a request is done here too, so that scores are equal: the default of 256
new tokens, greedy decoding without a temperature, and the cut at the first stop string. What is longer than the model's
context loses its first tokens, as in ``HFLM``, and each item reports the loss (``context_cut``). One thing differs on
purpose: messages of a chat reach the backend as messages, so that a server applies its own template.
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

# lm_eval's HFLM generates this many tokens where a task sets no number.
DEFAULT_NEW_TOKENS = 256
# Marks a prompt that is the messages of a chat. lm_eval passes prompts on as text, and no text of a task starts so.
_CHAT = "\0chat\0"
_PASSED_ON = ("temperature", "top_p", "top_k")
# Tokens that a tokenizer may add to a text, and a template to the turns of a chat. Where they are fewer, the backend is
# given a limit that cuts nothing.
_SPECIAL, _TEMPLATE = 8, 1024
_UNKNOWN = 2**62

Progress = Callable[[int, int], None]


def request_of(context: str, options: dict[str, Any]) -> Request:
    """The request that asks for lm_eval's ``generate_until(context, options)``.

    Raises:
        UsageError: an option that has no counterpart.
    """
    left = dict(options)
    until = left.pop("until", None) or []
    aliases = [left.pop(n, None) for n in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")]
    limit = next((n for n in aliases if n is not None), DEFAULT_NEW_TOKENS)
    sampled = left.pop("do_sample", None)
    passed = {name: left.pop(name) for name in _PASSED_ON if name in left}
    if left:
        raise UsageError(f"generation settings {', '.join(left)} have no counterpart; known: {', '.join(_PASSED_ON)}")
    if sampled is False:
        passed["temperature"] = 0.0
    stop = tuple(s for s in ([until] if isinstance(until, str) else until) if s)
    return Request(prompt_of(context), Sampling(max_new_tokens=int(limit), stop=stop, **passed))


def prompt_of(context: str) -> str | tuple[Message, ...]:
    """The prompt that lm_eval's ``context`` stands for: text, or the messages of a chat."""
    if not context.startswith(_CHAT):
        return context
    return tuple(Message(m["role"], m["content"]) for m in json.loads(context.removeprefix(_CHAT)))


class Asked:
    """What was asked of a backend in an examination, and its answers with what lm_eval does not pass on.

    Args:
        backend: answers what ``kept`` does not hold.
        kept: answers on disk; None keeps none.
        progress: called with the number of answers that are there, and of those that are wanted.
    """

    def __init__(self, backend: Backend, kept: Answers | None = None, progress: Progress | None = None) -> None:
        self.backend = backend
        self.kept = kept
        self.progress = progress or (lambda done, total: None)
        self.choices: dict[str, Choice] = {}
        self.cut: dict[str, int] = {}  # tokens, by the key of what was asked
        self._lengths: dict[str, int] = {}

    def request(self, context: str, options: dict[str, Any]) -> Request:
        """``request_of``; a prompt that leaves too little room for the longest answer loses its start.

        As in ``HFLM.generate_until``: the last ``context - max_new_tokens`` tokens are left.
        """
        request = request_of(context, options)
        room = self._context - request.sampling.max_new_tokens
        text = request.prompt if isinstance(request.prompt, str) else "".join(turn.content for turn in request.prompt)
        added = _SPECIAL if isinstance(request.prompt, str) else _TEMPLATE
        if room < 1 or self._within(text, room - added):
            return request
        return replace(request, last_tokens=room)

    def pair(self, context: str, continuation: str) -> Pair:
        """The pair to score; the context loses its start where both together are longer than the model's context.

        As in ``HFLM._loglikelihood_tokens``: the last token is not read, so that one more is left than the context has.
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
            return _UNKNOWN  # a server that does not say: it cuts or refuses by itself

    def _within(self, text: str, tokens: int) -> bool:
        """Whether ``text`` has this many tokens at most."""
        if len(text.encode("utf-8", "replace")) <= tokens:
            return True  # no token is shorter than a byte
        if text not in self._lengths:
            try:
                self._lengths[text] = len(self.backend.tokenize(text))
            except ArmillaryError:
                self._lengths[text] = 0  # a server without a tokenizer: it cuts or refuses by itself
        return self._lengths[text] <= tokens

    def complete(self, requests: Sequence[Request]) -> list[Choice]:
        """The first answer to each request.

        Raises:
            RequestError: of the backend, with the place among ``requests``.
        """
        found = self.kept.complete(self.backend, requests) if self.kept is not None else self.backend.complete(requests)
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
            RequestError: of the backend, with the place among ``pairs``.
        """
        found: list[Likelihood] = []
        for start in range(0, len(pairs), _PAIRS):
            part = pairs[start : start + _PAIRS]
            try:
                if self.kept is not None:
                    found += self.kept.loglikelihood(self.backend, part)
                else:
                    found += self.backend.loglikelihood(part)
            except RequestError as error:
                raise error.at(start + error.index) from None
            self.progress(len(found), len(pairs))
        self.cut |= {pair.key: likelihood.cut for pair, likelihood in zip(pairs, found, strict=True)}
        return found


# Pairs given to a backend at once: what a killed run may lose.
_PAIRS = 64


def language_model(asked: Asked) -> LM:
    """An lm_eval model whose answers come through ``asked``."""
    from lm_eval.api.model import LM

    class BackendLM(LM):  # type: ignore[misc]
        """Made here, since its base class is imported on demand."""

        tokenizer_name = "backend"

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            for request in requests:
                if request.args[0].startswith(_CHAT):
                    raise UsageError(
                        f"{request.task_name}: is scored by likelihood, which has no chat form here; leave --chat out"
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
                raise UsageError("a task that begins the assistant's answer has no chat form here; leave --chat out")
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

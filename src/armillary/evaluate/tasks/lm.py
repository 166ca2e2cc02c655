"""lm_eval's ``LM`` over any ``Backend``: requests in, texts and log probabilities out.

What lm_eval's own Hugging Face model does to a request is done here too, so that scores are equal: the default of 256
new tokens, greedy decoding without a temperature, and the cut at the first stop string. Two things differ on purpose.
A prompt that is longer than the model's context is an error; lm_eval cuts its beginning, and scores another question.
And messages of a chat reach the backend as messages, so that a server applies its own template.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
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

    def complete(self, requests: Sequence[Request]) -> list[Choice]:
        """The first answer to each request.

        Raises:
            RequestError: of the backend, with the place among ``requests``.
        """
        found = self.kept.complete(self.backend, requests) if self.kept is not None else self.backend.complete(requests)
        answers: dict[int, Choice] = {}
        for completion in found:
            answers[completion.index] = completion.choices[0]
            self.choices[requests[completion.index].key] = completion.choices[0]
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
                found = asked.loglikelihood([Pair(*request.args) for request in requests])
            return [(likelihood.value, likelihood.greedy) for likelihood in found]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            with _naming(requests):
                return [found.value for found in asked.loglikelihood([Pair("", r.args[0]) for r in requests])]

        def generate_until(self, requests: list[Any]) -> list[str]:
            with _naming(requests):
                return [choice.text for choice in asked.complete([request_of(*r.args) for r in requests])]

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

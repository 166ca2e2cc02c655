"""lm_eval's ``LM`` over any ``Backend``: requests in, texts and log probabilities out.

What lm_eval's own Hugging Face model does to a request is done here too, so that scores are equal: the default of 256
new tokens, greedy decoding without a temperature, and the cut at the first stop string. Two things differ on purpose.
A prompt that is longer than the model's context is an error; lm_eval cuts its beginning, and scores another question.
And messages of a chat reach the backend as messages, so that a server applies its own template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from armillary.generate import Backend, Choice, Likelihood, Message, Pair, Request, Sampling
from armillary.recipe import UsageError

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


class Answers:
    """The answers of a backend to an examination, by request, with what lm_eval does not pass on."""

    def __init__(self, backend: Backend, progress: Progress | None = None) -> None:
        self.backend = backend
        self.progress = progress or (lambda done, total: None)
        self.choices: dict[str, tuple[Choice, ...]] = {}
        self.likelihoods: dict[Pair, Likelihood] = {}

    def complete(self, requests: Sequence[Request]) -> list[Choice]:
        """The first answer to each request; equal requests are asked once."""
        wanted = {request.key: request for request in requests if request.key not in self.choices}
        asked = list(wanted.items())
        for done, completion in enumerate(self.backend.complete([request for _, request in asked]), 1):
            self.choices[asked[completion.index][0]] = completion.choices
            self.progress(done, len(asked))
        return [self.choices[request.key][0] for request in requests]

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """The likelihood of each pair; equal pairs are asked once."""
        asked = list(dict.fromkeys(pair for pair in pairs if pair not in self.likelihoods))
        for start in range(0, len(asked), _PAIRS):
            part = asked[start : start + _PAIRS]
            self.likelihoods.update(zip(part, self.backend.loglikelihood(part), strict=True))
            self.progress(start + len(part), len(asked))
        return [self.likelihoods[pair] for pair in pairs]


# Pairs given to a backend at once: what a killed run may lose.
_PAIRS = 256


def language_model(answers: Answers) -> LM:
    """An lm_eval model that takes its answers from ``answers``."""
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
            found = answers.loglikelihood([Pair(*request.args) for request in requests])
            return [(likelihood.value, likelihood.greedy) for likelihood in found]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return [found.value for found in answers.loglikelihood([Pair("", r.args[0]) for r in requests])]

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [choice.text for choice in answers.complete([request_of(*request.args) for request in requests])]

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:
                raise UsageError("a task that begins the assistant's answer has no chat form here; leave --chat out")
            return _CHAT + json.dumps(chat_history, ensure_ascii=False)

    return BackendLM()

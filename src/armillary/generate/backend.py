"""The protocol of an inference engine, with its input and output as plain data. Imports no torch.

A request holds everything that its answer depends on, except the model: requests with equal fields have equal answers,
in any batch and after any other requests. ``Request.key`` is the hash of these fields, under which answers are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from armillary.recipe import ArmillaryError, UsageError


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled, and where it ends.

    ``temperature`` 0 takes the most likely token. Otherwise the token is drawn from the softmax of
    ``logits / temperature``, cut to the ``top_k`` most likely tokens and then to the nucleus of ``top_p``. For each
    prompt ``n`` answers are drawn; the draws of answer ``i`` depend only on ``seed`` and ``i``. An answer ends before
    the
    first of the ``stop`` strings, at the end token of the model, or after ``max_new_tokens``.

    Raises:
        UsageError: a value outside its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0
    n: int = 1

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (the most likely token) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and not above 1"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more, or none"),
            ("stop", all(self.stop), "no empty string"),
            ("n", self.n >= 1, "1 or more"),
        ):
            if not good:
                raise UsageError(f"sampling: {name} must be {wanted}, given {getattr(self, name)!r}")


@dataclass(frozen=True)
class Request:
    """A prompt to continue: plain text, or chat messages, which the model's template turns into text.

    With ``last_tokens``, the model reads only this many tokens from the end of the prompt; None reads all.
    """

    prompt: str | tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    last_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_last(self.last_tokens)

    def to_json(self) -> dict[str, Any]:
        """The request as plain data; ``key`` is its hash."""
        prompt = self.prompt if isinstance(self.prompt, str) else [asdict(message) for message in self.prompt]
        return {"prompt": prompt, "sampling": asdict(self.sampling)} | _last(self.last_tokens)

    @property
    def key(self) -> str:
        """The first 32 hexadecimal digits of the SHA-256 of the request."""
        return _key(self.to_json())


@dataclass(frozen=True)
class Choice:
    """One answer: its ``text`` without the stop string, its length in ``tokens``, and the reason why it ended.

    ``finish`` is "stop" for a stop string or the end token, and "length" if ``max_new_tokens`` or the model's context
    cut the answer.
    """

    text: str
    tokens: int
    finish: Literal["stop", "length"]


@dataclass(frozen=True)
class Completion:
    """The ``n`` answers to request number ``index``, and the number of its prompt tokens.

    ``cut`` is the number of tokens that the request's ``last_tokens`` left out.
    """

    index: int
    choices: tuple[Choice, ...]
    prompt_tokens: int
    cut: int = 0


@dataclass(frozen=True)
class Pair:
    """A ``continuation`` to score after ``context``. An empty context starts a document.

    With ``last_tokens``, the model reads only this many tokens from the end of both together; None reads all.
    """

    context: str
    continuation: str
    last_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_last(self.last_tokens)

    def to_json(self) -> dict[str, Any]:
        """The pair as plain data; ``key`` is its hash."""
        return {"context": self.context, "continuation": self.continuation} | _last(self.last_tokens)

    @property
    def key(self) -> str:
        """The first 32 hexadecimal digits of the SHA-256 of the pair."""
        return _key(self.to_json())


@dataclass(frozen=True)
class Likelihood:
    """Log probability of a continuation in nats, its number of ``tokens``, and whether greedy decoding would return it.

    ``cut`` is the number of tokens that the pair's ``last_tokens`` left out.
    """

    value: float
    tokens: int
    greedy: bool
    cut: int = 0


class RequestError(ArmillaryError):
    """One request or pair failed: ``problem`` says why, and ``index`` is its position in the call."""

    def __init__(self, index: int, problem: str, what: str = "request") -> None:
        super().__init__(f"{what} {index + 1}: {problem}")
        self.index, self.problem, self.what = index, problem, what

    def at(self, index: int) -> RequestError:
        """The same error with another position."""
        return type(self)(index, self.problem, self.what)


class BadRequestError(RequestError, UsageError):
    """A request that no backend of this model can answer, such as a prompt longer than its context."""


@dataclass
class Cost:
    """The resources that a backend has used since it was opened; ``money`` is None if no price is known."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    money: float | None = None


class Backend(Protocol):
    """An inference engine that holds one model.

    An error in a single request, such as a prompt longer than the model's context, raises ``BadRequestError`` with the
    index of the request before anything is generated. A later refusal by a server raises ``RequestError``.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """The source of the answers: name of the backend, model with a hash of its weights or its URL, and
        precision."""
        ...

    @property
    def context(self) -> int:
        """The longest sequence in tokens, prompt and answer together."""
        ...

    @property
    def cost(self) -> Cost:
        """The cost so far."""
        ...

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields the completion of each request as soon as it is finished, in any order."""
        ...

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """The likelihood of each continuation, in the order of ``pairs``.

        The continuation is cut into tokens together with its context; spaces at the end of the context count to the
        continuation, as in EleutherAI's lm-evaluation-harness (``TemplateLM._encode_pair``). Unlike there, a pair that
        is longer than the context is refused unless its ``last_tokens`` cut it: the likelihood would be that of
        another text.
        """
        ...

    def tokenize(self, text: str) -> list[int]:
        """The token ids of ``text``, without special tokens added."""
        ...

    def close(self) -> None:
        """Frees the model; the backend is not used afterwards."""
        ...


class InProcess:
    """The common base of backends that run in this process: the context, and the cost so far."""

    def __init__(self, context: int) -> None:
        self._context, self._cost = context, Cost()

    @property
    def context(self) -> int:
        """The longest sequence in tokens, prompt and answer together."""
        return self._context

    @property
    def cost(self) -> Cost:
        """The cost so far."""
        return self._cost


@runtime_checkable
class Streaming(Protocol):
    """A backend that also gives an answer while it grows."""

    def stream(self, request: Request) -> Generator[str, None, Completion]:
        """Yields the text of the first answer piece by piece, and returns the completion that ``complete`` gives."""
        ...


def seed_of(sampling: Sampling, number: int) -> int:
    """The seed of answer ``number``: 31 bits of a hash of both, so that answers of neighbouring seeds are unrelated."""
    return int(hashlib.sha256(f"{sampling.seed} {number}".encode()).hexdigest()[:8], 16) & 0x7FFFFFFF


def split_pair(
    pair: Pair, encode: Callable[[str, bool], list[int]], start: int | None, index: int = 0
) -> tuple[list[int], list[int]]:
    """The tokens of context and continuation, cut where EleutherAI's lm-evaluation-harness cuts them.

    Spaces at the end of the context count to the continuation. The two are encoded together; the continuation is what
    goes beyond the tokens of the context alone (``TemplateLM._encode_pair``). A continuation after an empty context is
    placed after ``start`` (``TemplateLM.loglikelihood``).

    Args:
        pair: the texts.
        encode: the tokens of a text; the second argument says whether special tokens are added, as in a prompt.
        start: the token that starts a document; None if unknown.
        index: the index of the pair in the call.

    Returns:
        Both parts, neither of them empty.

    Raises:
        BadRequestError: no token in the continuation, or an empty context where ``start`` is not known.
    """
    context = pair.context.rstrip()
    if pair.context:
        before = encode(context, True)
        after = encode(pair.context + pair.continuation, True)[len(before) :]
    else:
        before, after = [], encode(pair.continuation, False)
    if not before:
        if start is None:
            raise BadRequestError(
                index, "the context is empty, and the model has no token that starts a document", "pair"
            )
        before, after = ([start], after) if after[:1] != [start] else (after[:1], after[1:])
    if not after:
        raise BadRequestError(
            index, f"the continuation {pair.continuation[:40]!r} has no tokens of its own; give some text", "pair"
        )
    return before, after


def fit_pair(
    parts: tuple[list[int], list[int]], last_tokens: int | None, context: int | None, index: int
) -> tuple[list[int], list[int], int]:
    """The two parts of ``split_pair`` as the model reads them, and the number of tokens that were cut from the first.

    ``context`` is the longest sequence of the model, which does not read the last token; None where it is not known.

    Raises:
        BadRequestError: longer than the context, or ``last_tokens`` leaves nothing before the continuation.
    """
    before, after = parts
    if last_tokens is not None and last_tokens <= len(after):
        raise BadRequestError(
            index,
            f"the continuation has {len(after)} tokens, but last_tokens {last_tokens} leaves no context before it",
            "pair",
        )
    cut = max(len(before) + len(after) - last_tokens, 0) if last_tokens is not None else 0
    length = len(before) - cut + len(after)
    if context is not None and length - 1 > context:
        raise BadRequestError(
            index,
            f"{length} tokens, but this model takes at most {context + 1}, including the last predicted token; "
            "shorten it",
            "pair",
        )
    return before[cut:], after, cut


def fit_prompt(tokens: list[int], last_tokens: int | None, context: int | None, index: int) -> tuple[list[int], int]:
    """The tokens of a prompt as the model reads them, and the number of tokens that were cut from their start.

    Raises:
        BadRequestError: no tokens, or as many as the context, which leaves none for the answer.
    """
    cut = max(len(tokens) - last_tokens, 0) if last_tokens is not None else 0
    kept = tokens[cut:]
    if not kept:
        raise BadRequestError(index, "the prompt is empty; give some text")
    if context is not None and len(kept) >= context:
        raise BadRequestError(
            index,
            f"the prompt has {len(kept)} tokens, but this model takes at most {context} including its answer; shorten "
            "it",
        )
    return kept, cut


def _check_last(last_tokens: int | None) -> None:
    if last_tokens is not None and last_tokens < 1:
        raise UsageError(f"last_tokens must be 1 or more, or none, given {last_tokens}")


def _last(last_tokens: int | None) -> dict[str, int]:
    # Left out where there is none: answers that were kept before this field existed have the same key.
    return {} if last_tokens is None else {"last_tokens": last_tokens}


def _key(document: dict[str, Any]) -> str:
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]

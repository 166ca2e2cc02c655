"""Our own models behind the ``Backend`` protocol: many sequences in one step, each independent of the others.

When a sequence finishes, a waiting one starts at once. Prompts enter the same steps as new tokens, so a long prompt
delays the others by at most one step. The text and likelihoods of a request are the same to the last bit at any batch
size, in any order and with any number of threads, because single steps have this property (``decoder.py``).

It reads a folder that ``armillary`` published, or any other that ``open_model`` reads. It also takes a
model in memory with its tokenizer, to examine models without a published format.

Trade-offs: weights are held in fp32. A sequence reserves memory for its maximum length; if a whole batch does not fit,
fewer sequences run at a time. Prefixes are shared between the pairs of one call of ``loglikelihood`` and between the
answers to one request, but not between requests.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from armillary.generate.backend import (
    BadRequestError,
    Choice,
    Completion,
    InProcess,
    Likelihood,
    Pair,
    Request,
    RequestError,
    Sampling,
    fit_pair,
    fit_prompt,
    split_pair,
)
from armillary.generate.decoder import CacheMemory, Decoder, Rows, build_decoder, check_length
from armillary.generate.sampling import Sampler, check_logit
from armillary.generate.text import ModelText, TextStream
from armillary.model import Transformer, build, open_model
from armillary.recipe import ArmillaryError, UsageError

BATCH_SIZE = 32
# Share of the free memory available to the caches of a batch.
_CACHE_SHARE = 0.5
# If two contexts share at least this many tokens, the second waits for the first.
_WORTH_SHARING = 32
_Logits = NDArray[np.float32]


@dataclass
class _Chunk:
    """Tokens that a step appends to a sequence at ``position``; logits are needed for all rows, the last, or none."""

    tokens: Sequence[int]
    position: int
    cache: CacheMemory
    last: bool = False
    all_rows: bool = False


@dataclass
class _Answer:
    """One answer in progress; ``waiting`` are the tokens not yet in a step, starting at ``position``."""

    request: int
    number: int
    prompt: list[int]
    sampler: Sampler
    room: int
    ends: frozenset[int | None]
    stream: TextStream | None = None
    waiting: list[int] = field(default_factory=list)
    position: int = 0
    tokens: list[int] = field(default_factory=list)
    cache: CacheMemory | None = None
    prefix: tuple[CacheMemory, _Logits] | None = None  # of the prompt, computed by the first answer
    siblings: list[_Answer] = field(default_factory=list)  # answers to the same request, which wait for this one
    finish: Literal["stop", "length"] | None = None

    @property
    def capacity(self) -> int:
        """Tokens that the cache must hold: the last drawn token never enters it."""
        return len(self.prompt) + self.room - 1


class NativeBackend(InProcess):
    """A model of this package. ``batch_size`` sequences run at a time; ``context`` limits the sequence length.

    Raises:
        UsageError: a batch size or context below 1, a block that generation does not support, or a context that
            ``check_length`` refuses.
        ArmillaryError: no memory for the weights.
    """

    def __init__(
        self,
        model: Transformer,
        text: ModelText,
        context: int,
        identity: Callable[[], dict[str, Any]],
        batch_size: int = BATCH_SIZE,
    ) -> None:
        for name, value in (("batch size", batch_size), ("context", context)):
            if value < 1:
                raise UsageError(f"{name} must be 1 or more, given {value}")
        check_length(model.shape, context)
        super().__init__(context)
        self._decoder, self._text, self._batch_size = build_decoder(model), text, batch_size
        self._name, self._identity = identity, dict[str, Any]()

    @classmethod
    def from_folder(
        cls, folder: Path, *, device: str | None = None, batch_size: int = BATCH_SIZE, context: int | None = None
    ) -> NativeBackend:
        """The backend of a published model, or another folder that ``open_model`` reads, with a ``tokenizer.json``.

        ``device`` is PyTorch's name of a device; None takes the accelerator if there is one.

        Raises:
            UsageError: no such folder, a configuration that our transformer does not support, no tokenizer, or a device
                that does not exist.
            ArmillaryError: weights that are missing, torn or of a wrong shape.
        """
        place = find_device(device)
        text = ModelText.from_folder(folder)
        source = open_model(folder)
        model, longest = build(source), source.context_length
        move(model, place, folder)
        if context is not None and longest is not None and context > longest:
            raise UsageError(f"context {context} is more than the {longest} tokens that {folder} was made for")

        def identity() -> dict[str, Any]:
            return {"model": folder.resolve().name, "sha256": _hash(folder)}

        return cls(model, text, context or longest or 2048, identity, batch_size)

    @property
    def identity(self) -> dict[str, Any]:
        """The name of the model and a hash of its files, and the precision."""
        if not self._identity:
            self._identity = {"backend": "native", **self._name(), "precision": "float32"}
        return self._identity

    def tokenize(self, text: str) -> list[int]:
        """The token ids of ``text``, without special tokens added."""
        return self._text.encode(text, False)

    def close(self) -> None:
        """Free the model."""
        del self._decoder

    # -- completions --

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield each completion as soon as its last answer is finished.

        Raises:
            UsageError: a prompt without tokens or as long as the context, or messages without a chat template. It names
                the request and is raised before anything is generated.
            ArmillaryError: logits that are not finite, or no memory for a single sequence.
        """
        given = list(requests)
        prompts = [self._prompt(index, request) for index, request in enumerate(given)]
        return self._completions(given, prompts)

    def _completions(self, requests: list[Request], prompts: list[tuple[list[int], int]]) -> Iterator[Completion]:
        unfinished: dict[int, list[_Answer]] = {}
        answers = (self._first(index, prompts[index][0], request) for index, request in enumerate(requests))
        for answer in self._run(answers):
            request = answer.request
            done = unfinished.setdefault(request, [])
            done.append(answer)
            if len(done) == requests[request].sampling.n:
                del unfinished[request]
                prompt, cut = prompts[request]
                yield replace(self._completion(request, prompt, done), cut=cut)

    def stream(self, request: Request) -> Generator[str, None, Completion]:
        """Yields the text of the first answer piece by piece, and returns the completion that ``complete`` gives."""
        prompt, cut = self._prompt(0, request)
        first = self._first(0, prompt, request)
        stream = first.stream or TextStream(self._text, ())
        first.stream, said = stream, 0
        done: list[_Answer] = []
        for answer in self._run(iter([first]), every_step=True):
            if answer.finish is not None:
                done.append(answer)
            if answer is first:
                text = stream.finish() if answer.finish is not None else stream.text[: stream.shown]
                if len(text) > said:
                    yield text[said:]
                    said = len(text)
        return replace(self._completion(0, prompt, done), cut=cut)

    def _prompt(self, index: int, request: Request) -> tuple[list[int], int]:
        try:
            if isinstance(request.prompt, str):
                tokens = self._text.encode(request.prompt, True)
            else:
                tokens = self._text.encode(self._text.chat(request.prompt), False)
        except UsageError as error:
            raise BadRequestError(index, str(error)) from error
        tokens, cut = fit_prompt(tokens, request.last_tokens, self._context, index)
        self._check_tokens(index, tokens, "request")
        return tokens, cut

    def _check_tokens(self, index: int, tokens: list[int], what: str) -> None:
        size = self._decoder.shape.vocab_size
        if tokens and max(tokens) >= size:
            raise BadRequestError(
                index,
                f"the tokenizer returned token {max(tokens)}, but the vocabulary has {size} tokens; use the tokenizer "
                "that the model was trained with",
                what,
            )

    def _first(self, index: int, prompt: list[int], request: Request) -> _Answer:
        """The first answer to a request, with the others as its siblings."""
        first, *others = (self._answer(index, n, prompt, request.sampling) for n in range(request.sampling.n))
        first.siblings = others
        return first

    def _answer(self, request: int, number: int, prompt: list[int], sampling: Sampling) -> _Answer:
        room = min(sampling.max_new_tokens, self._context - len(prompt))
        stream = TextStream(self._text, sampling.stop) if sampling.stop else None
        # the text of an answer has no special tokens, so a special token as a stop string becomes an end token
        ends = self._text.ends | {self._text.special(stop) for stop in sampling.stop}
        return _Answer(request, number, prompt, Sampler(sampling, number), room, ends, stream, list(prompt))

    def _completion(self, index: int, prompt: list[int], answers: list[_Answer]) -> Completion:
        choices = []
        for answer in sorted(answers, key=lambda one: one.number):
            text = self._text.decode(answer.tokens) if answer.stream is None else answer.stream.finish()
            choices.append(Choice(text, len(answer.tokens), answer.finish or "length"))
        self._cost.prompt_tokens += len(prompt)
        self._cost.new_tokens += sum(choice.tokens for choice in choices)
        return Completion(index, tuple(choices), len(prompt))

    # -- steps --

    def _run(self, answers: Iterator[_Answer], every_step: bool = False) -> Iterator[_Answer]:
        """Yield each answer when it is finished; with ``every_step`` also after each of its tokens."""
        free = self._decoder.free_memory()
        queue, running = deque[_Answer](), list[_Answer]()
        while True:
            started = time.monotonic()
            touched: list[_Answer] = []
            while len(running) < self._batch_size:
                if not queue and (answer := next(answers, None)) is not None:
                    queue.append(answer)
                if not queue or not self._admit(queue[0], running, free):
                    break
                answer = queue.popleft()
                running.append(answer)
                if answer.prefix is not None:
                    self._take(answer, answer.prefix[1])
                    answer.prefix = None
                    touched.append(answer)
            active = [answer for answer in running if answer.finish is None]
            if active:
                for answer in self._step(active):
                    touched.append(answer)
                    queue.extendleft(reversed(answer.siblings))
                    answer.siblings = []
            running = [answer for answer in active if answer.finish is None]
            self._cost.seconds += time.monotonic() - started
            for answer in touched:
                if answer.finish is not None:
                    answer.cache = None
                if answer.finish is not None or every_step:
                    yield answer
            if not touched and not running and not queue:
                return

    def _admit(self, answer: _Answer, running: list[_Answer], free: int | None) -> bool:
        """Give the answer a cache; False if the running answers leave too little memory."""
        needed = self._decoder.cache_bytes(answer.capacity)
        occupied = sum(other.cache.bytes for other in running if other.cache is not None)
        if free is not None:
            if running and occupied + needed > _CACHE_SHARE * free:
                return False
            if needed > free:
                raise RequestError(
                    answer.request,
                    f"keys and values of {answer.capacity} tokens need {needed:,} bytes, but only {free:,} are free; "
                    "ask for fewer new tokens",
                )
        answer.cache = self._decoder.new_cache(answer.capacity)
        if answer.prefix is not None:
            answer.cache.take_prefix(answer.prefix[0], len(answer.prompt))
            answer.waiting, answer.position = [], len(answer.prompt)
        return True

    def _step(self, running: list[_Answer]) -> list[_Answer]:
        """One step: one token of each started answer, and as many prompt tokens as fit."""
        room = self._decoder.max_rows
        parts: list[tuple[_Answer, int]] = []
        for answer in sorted(running, key=lambda one: len(one.waiting)):
            count = min(len(answer.waiting), room)
            if count:
                parts.append((answer, count))
                room -= count
        chunks, drawing = [], []
        for answer, count in parts:
            assert answer.cache is not None, "it runs"
            ends = count == len(answer.waiting)
            chunks.append(_Chunk(answer.waiting[:count], answer.position, answer.cache, last=ends))
            answer.position += count
            del answer.waiting[:count]
            if ends:
                drawing.append(answer)
        for answer, line in zip(drawing, _step(self._decoder, chunks), strict=True):
            for other in answer.siblings:
                assert answer.cache is not None, "the cache was just written"
                other.prefix = answer.cache, line.copy()
            self._take(answer, line)
        return drawing

    def _take(self, answer: _Answer, logits: _Logits) -> None:
        """Draw the next token of an answer."""
        try:
            token = answer.sampler.draw(logits)
        except ArmillaryError as error:
            raise RequestError(answer.request, f"new token {len(answer.tokens) + 1}: {error}") from error
        if token in answer.ends:
            answer.finish = "stop"
            return
        answer.tokens.append(token)
        answer.waiting = [token]
        if answer.stream is not None:
            answer.stream.add(token)
            if answer.stream.stopped:
                answer.finish = "stop"
        if answer.finish is None and len(answer.tokens) >= answer.room:
            answer.finish = "length"

    # -- likelihoods --

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """The likelihood of each continuation, in the order of ``pairs``; summed in float64.

        Common prefixes of contexts are computed once.

        Raises:
            BadRequestError: a continuation without tokens, or a pair longer than the context, before anything is
                computed.
        """
        started = time.monotonic()
        fitted = [self._sequence(index, pair) for index, pair in enumerate(pairs)]
        sequences = [one for one, _ in fitted]
        scores = {one: _Score(place) for place, one in reversed(list(enumerate(sequences)))}
        contexts: dict[tuple[int, ...], list[_Sequence]] = {}
        for one in dict.fromkeys(sequences):
            contexts.setdefault(one.context, []).append(one)
        before: tuple[tuple[int, ...], CacheMemory] | None = None
        for wave in _waves(sorted(contexts), self._batch_size):
            before = self._score(wave, contexts, before, scores)
        self._cost.prompt_tokens += sum(len(one.context) + len(one.continuation) for one in sequences)
        self._cost.seconds += time.monotonic() - started
        return [replace(scores[one].likelihood, cut=cut) for one, cut in fitted]

    def _sequence(self, index: int, pair: Pair) -> tuple[_Sequence, int]:
        try:
            parts = split_pair(pair, self._text.encode, self._text.first, index)
        except BadRequestError:
            raise
        except UsageError as error:
            raise BadRequestError(index, str(error), "pair") from error
        context, continuation, cut = fit_pair(parts, pair.last_tokens, self._context, index)
        self._check_tokens(index, context + continuation, "pair")
        return _Sequence(tuple(context), tuple(continuation)), cut

    def _score(
        self,
        wave: list[tuple[int, ...]],
        contexts: dict[tuple[int, ...], list[_Sequence]],
        before: tuple[tuple[int, ...], CacheMemory] | None,
        scores: dict[_Sequence, _Score],
    ) -> tuple[tuple[int, ...], CacheMemory]:
        """Add up the scores of all pairs with these contexts; return the last context and its cache.

        ``before`` is a context that was computed earlier, and its cache.
        """
        decoder, work, caches = self._decoder, list[_Chunk](), list[CacheMemory]()
        for context in wave:
            cache = decoder.new_cache(len(context))
            shared = 0
            if before is not None:
                # the last token is computed again for its logits
                shared = min(_shared(context, before[0]), len(context) - 1)
                cache.take_prefix(before[1], shared)
            work.append(_Chunk(context[shared:], shared, cache, last=True))
            caches.append(cache)
        for context, line in zip(wave, self._steps(work), strict=True):
            for one in contexts[context]:
                scores[one].add(line, one.continuation[0])
        longer = [
            (one, context, cache)
            for context, cache in zip(wave, caches, strict=True)
            for one in contexts[context]
            if len(one.continuation) > 1
        ]
        for first in range(0, len(longer), self._batch_size):
            group = longer[first : first + self._batch_size]
            work = []
            for one, context, cache in group:
                own = decoder.new_cache(len(context) + len(one.continuation) - 1)
                own.take_prefix(cache, len(context))
                work.append(_Chunk(one.continuation[:-1], len(context), own, all_rows=True))
            targets = ((scores[one], token) for one, _, _ in group for token in one.continuation[1:])
            for (score, token), line in zip(targets, self._steps(work), strict=True):
                score.add(line, token)
        return wave[-1], caches[-1]

    def _steps(self, work: list[_Chunk]) -> Iterator[_Logits]:
        """The requested logits of the chunks, in order, in as many steps as needed."""
        parts: list[_Chunk] = []
        room = self._decoder.max_rows
        for chunk in work:
            at = 0
            while at < len(chunk.tokens):
                count = min(room, len(chunk.tokens) - at)
                ends = at + count == len(chunk.tokens)
                piece = _Chunk(chunk.tokens[at : at + count], chunk.position + at, chunk.cache)
                piece.all_rows, piece.last = chunk.all_rows, chunk.last and ends
                parts.append(piece)
                at, room = at + count, room - count
                if not room:
                    yield from _step(self._decoder, parts)
                    parts, room = [], self._decoder.max_rows
        if parts:
            yield from _step(self._decoder, parts)


@dataclass(frozen=True)
class _Sequence:
    """The tokens of a pair; all but the last together fit the model's context."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class _Score:
    """The sum of log probabilities of the continuation of pair number ``place``."""

    def __init__(self, place: int) -> None:
        self._place, self.likelihood = place, Likelihood(0.0, 0, True)

    def add(self, logits: _Logits, token: int) -> None:
        """Add one token, with the logits at its position."""
        exact = logits.astype(np.float64)
        best = exact.argmax()
        try:
            check_logit(float(exact[best]))  # NaN counts as the largest
        except ArmillaryError as error:
            raise RequestError(self._place, str(error), "pair") from error
        value = float(exact[token] - exact[best] - np.log(np.exp(exact - exact[best]).sum()))
        so_far = self.likelihood
        self.likelihood = Likelihood(so_far.value + value, so_far.tokens + 1, so_far.greedy and bool(best == token))


def generate(model: Transformer, prompt: Sequence[int], sampling: Sampling, end_token: int | None) -> list[int]:
    """The tokens that follow ``prompt``, up to ``end_token``; neither is included.

    The result depends only on the model and the arguments. ``sampling.stop`` and ``sampling.n`` apply to text and have
    no effect here.

    Raises:
        UsageError: an empty prompt, a token outside the vocabulary, or more tokens than ``check_length`` allows.
        ArmillaryError: logits that are not finite.
    """
    if not prompt:
        raise UsageError("generate: the prompt is empty; give at least one token (the end token starts a document)")
    outside = [token for token in prompt if not 0 <= token < model.shape.vocab_size]
    if outside:
        raise UsageError(
            f"generate: token {outside[0]} of the prompt is not in the vocabulary of {model.shape.vocab_size} tokens; "
            "encode the prompt with the tokenizer that the model was trained with"
        )
    check_length(model.shape, len(prompt) + sampling.max_new_tokens - 1)
    decoder, sampler = build_decoder(model), Sampler(sampling, 0)
    cache = decoder.new_cache(len(prompt) + sampling.max_new_tokens - 1)
    tokens, waiting = list(prompt), list(prompt)
    while len(tokens) - len(prompt) < sampling.max_new_tokens:
        chunk = waiting[: decoder.max_rows]
        waiting = waiting[len(chunk) :]
        at = len(tokens) - len(waiting) - len(chunk)
        (line,) = _step(decoder, [_Chunk(chunk, at, cache, last=True)])
        if waiting:
            continue
        token = sampler.draw(line)
        if token == end_token:
            break
        tokens.append(token)
        waiting = [token]
    return tokens[len(prompt) :]


def _step(decoder: Decoder, chunks: list[_Chunk]) -> _Logits:
    """The logits of the rows that the chunks request, in order."""
    tokens, positions, sequence, wanted = list[int](), list[int](), list[int](), list[int]()
    for number, chunk in enumerate(chunks):
        if chunk.all_rows:
            wanted += range(len(tokens), len(tokens) + len(chunk.tokens))
        tokens += chunk.tokens
        positions += range(chunk.position, chunk.position + len(chunk.tokens))
        sequence += [number] * len(chunk.tokens)
        if chunk.last:
            wanted.append(len(tokens) - 1)
    rows = Rows(*(np.array(numbers, np.int32) for numbers in (tokens, positions, sequence, wanted)))
    return decoder.step(rows, [chunk.cache for chunk in chunks])


def _waves(contexts: list[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    """Group sorted contexts: a context that shares more with the next one than with its group ends the group."""
    wave: list[tuple[int, ...]] = []
    before: tuple[int, ...] = ()
    for context in contexts:
        worth = bool(wave) and _shared(context, wave[-1]) >= _shared(context, before) + _WORTH_SHARING
        if worth or len(wave) == size:
            yield wave
            wave, before = [], wave[-1]
        wave.append(context)
    if wave:
        yield wave


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """The length of the common prefix of two sequences."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def move(model: Transformer, place: torch.device, folder: Path) -> None:
    """Move a model loaded from ``folder`` to a device.

    Raises:
        ArmillaryError: not enough memory on the device.
    """
    try:
        model.to(place)
    except (RuntimeError, AssertionError) as error:
        raise ArmillaryError(f"{folder}: no memory for the weights on {place} ({error}); use another device") from error


def find_device(name: str | None) -> torch.device:
    """The device of this name; None takes the accelerator if there is one.

    Raises:
        UsageError: no such device.
    """
    if name is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        place = torch.device(name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        said = str(error).split("\n", 1)[0]
        raise UsageError(f"device {name!r} cannot be used ({said}); 'cpu' always works") from error
    return place


def _hash(folder: Path) -> str:
    """SHA-256 over names and content of the files that determine the answers."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja") and path.name != "lineage.json":
            with open(path, "rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()

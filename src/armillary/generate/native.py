"""Our own models behind the ``Backend`` protocol: many sequences in one step, each independent of the others.

When a sequence finishes, a waiting one starts at once (``batch.py``). The text and likelihoods of a request do not
depend on batch size, order or number of threads, to the last bit, because single steps have this property
(``decoder.py``).

It reads a folder that ``armillary`` published, or any other that ``open_model`` reads. It also takes a
model in memory with its tokenizer, to examine models without a published format.

Trade-offs: weights are held in fp32. If the caches of a whole batch do not fit, fewer sequences run at a time. Common
beginnings are computed once: of the pairs of one call of ``loglikelihood``, and of prompts that meet in a batch.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

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
from armillary.generate.batch import Answer, Batch, Chunk, Logits, Recorded, run_step
from armillary.generate.decoder import CacheMemory, build_decoder, check_length
from armillary.generate.sampling import Sampler, log_probabilities
from armillary.generate.text import ModelText, TextStream
from armillary.model import Transformer, build, open_model
from armillary.recipe import ArmillaryError, UsageError

BATCH_SIZE = 32
# If two contexts share at least this many tokens, the second waits for the first.
_WORTH_SHARING = 32


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
        """The backend of a published model, or another folder that ``open_model`` reads, with its tokenizer.

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

    @property
    def text(self) -> ModelText:
        """The tokenizer, with the chat template."""
        return self._text

    @property
    def vocab_size(self) -> int:
        """The size of the model's vocabulary."""
        return self._decoder.shape.vocab_size

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
        unfinished: dict[int, list[Answer]] = {}
        answers = (self.start(index, prompts[index][0], request.sampling) for index, request in enumerate(requests))
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
        first, sent = self.start(0, prompt, request.sampling, Recorded(growing=True)), 0
        stream = first.stream
        assert stream is not None, "it grows"
        done: list[Answer] = []
        for answer in self._run(iter([first]), every_step=True):
            if answer.finish is not None:
                done.append(answer)
            if answer is first:
                text = stream.finish() if answer.finish is not None else stream.text[: stream.shown]
                if len(text) > sent:
                    yield text[sent:]
                    sent = len(text)
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
        size = self.vocab_size
        if tokens and max(tokens) >= size:
            raise BadRequestError(
                index,
                f"the tokenizer returned token {max(tokens)}, but the vocabulary has {size} tokens; use the tokenizer "
                "that the model was trained with",
                what,
            )

    def start(self, index: int, prompt: list[int], sampling: Sampling, recorded: Recorded = Recorded()) -> Answer:
        """The first answer to request ``index``, for a batch; the others are its ``siblings``.

        ``prompt`` has at least one token, none outside the vocabulary, and fits the context.
        """
        first, *others = (self._answer(index, n, prompt, sampling, recorded) for n in range(sampling.n))
        first.siblings = others
        return first

    def _answer(self, request: int, number: int, prompt: list[int], sampling: Sampling, recorded: Recorded) -> Answer:
        room = min(sampling.max_new_tokens, self._context - len(prompt)) if recorded.answer else 0
        # the text of an answer has no special tokens, so a special token as a stop string becomes an end token
        ends = self._text.ends | {self._text.special(stop) for stop in sampling.stop}
        answer = Answer(request, number, prompt, Sampler(sampling, number), room, ends)
        if sampling.stop or recorded.growing:
            answer.stream = TextStream(self._text, sampling.stop)
        answer.top, answer.echo = recorded.top, recorded.echo and number == 0
        return answer

    def _completion(self, index: int, prompt: list[int], answers: list[Answer]) -> Completion:
        choices = []
        for answer in sorted(answers, key=lambda one: one.number):
            text = self._text.decode(answer.tokens) if answer.stream is None else answer.stream.finish()
            choices.append(Choice(text, len(answer.tokens), answer.finish or "length"))
        self._cost.prompt_tokens += len(prompt)
        self._cost.new_tokens += sum(choice.tokens for choice in choices)
        return Completion(index, tuple(choices), len(prompt))

    # -- steps --

    def new_batch(self, size: int) -> Batch:
        """An empty batch for ``size`` answers of this model at a time."""
        return Batch(self._decoder, size)

    def _run(self, answers: Iterator[Answer], every_step: bool = False) -> Iterator[Answer]:
        """Yield each answer when it is finished; with ``every_step`` also after each of its tokens."""
        batch = self.new_batch(self._batch_size)
        while True:
            started = time.monotonic()
            while batch.room > 0 and (answer := next(answers, None)) is not None:
                batch.add(answer)
            if batch.idle:
                return
            touched = batch.step()
            self._cost.seconds += time.monotonic() - started
            for answer in touched:
                if answer.error is not None:
                    raise RequestError(answer.request, str(answer.error)) from answer.error
                if answer.finish is not None or every_step:
                    yield answer

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
        decoder, work, caches = self._decoder, list[Chunk](), list[CacheMemory]()
        for context in wave:
            cache = decoder.new_cache(len(context))
            shared = 0
            if before is not None:
                # the last token is computed again for its logits
                shared = min(_shared(context, before[0]), len(context) - 1)
                cache.take_prefix(before[1], shared)
            work.append(Chunk(context[shared:], shared, cache, last=True))
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
                work.append(Chunk(one.continuation[:-1], len(context), own, all_rows=True))
            targets = ((scores[one], token) for one, _, _ in group for token in one.continuation[1:])
            for (score, token), line in zip(targets, self._steps(work), strict=True):
                score.add(line, token)
        return wave[-1], caches[-1]

    def _steps(self, work: list[Chunk]) -> Iterator[Logits]:
        """The requested logits of the chunks, in order, in as many steps as needed."""
        parts: list[Chunk] = []
        room = self._decoder.max_rows
        for chunk in work:
            at = 0
            while at < len(chunk.tokens):
                count = min(room, len(chunk.tokens) - at)
                ends = at + count == len(chunk.tokens)
                piece = Chunk(chunk.tokens[at : at + count], chunk.position + at, chunk.cache)
                piece.all_rows, piece.last = chunk.all_rows, chunk.last and ends
                parts.append(piece)
                at, room = at + count, room - count
                if not room:
                    yield from run_step(self._decoder, parts)
                    parts, room = [], self._decoder.max_rows
        if parts:
            yield from run_step(self._decoder, parts)


@dataclass(frozen=True)
class _Sequence:
    """The tokens of a pair; all but the last together fit the model's context."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class _Score:
    """The sum of log probabilities of the continuation of pair number ``place``."""

    def __init__(self, place: int) -> None:
        self._place, self.likelihood = place, Likelihood(0.0, 0, True)

    def add(self, logits: Logits, token: int) -> None:
        """Add one token, with the logits at its position."""
        try:
            value = float(log_probabilities(logits)[token])
        except ArmillaryError as error:
            raise RequestError(self._place, str(error), "pair") from error
        so_far = self.likelihood
        self.likelihood = Likelihood(
            so_far.value + value, so_far.tokens + 1, so_far.greedy and int(logits.argmax()) == token
        )


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
        (line,) = run_step(decoder, [Chunk(chunk, at, cache, last=True)])
        if waiting:
            continue
        token = sampler.draw(line)
        if token == end_token:
            break
        tokens.append(token)
        waiting = [token]
    return tokens[len(prompt) :]


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
        reason = str(error).split("\n", 1)[0]
        raise UsageError(f"device {name!r} cannot be used ({reason}); 'cpu' always works") from error
    return place


def _hash(folder: Path) -> str:
    """SHA-256 over names and content of the files that determine the answers."""
    digest = hashlib.sha256()
    suffixes = [".safetensors", ".json", ".jinja"]
    if not (folder / "tokenizer.json").exists():
        suffixes.append(".model")
    for path in sorted(folder.iterdir()):
        if path.suffix in suffixes and path.name != "lineage.json":
            with open(path, "rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()

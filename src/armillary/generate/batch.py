"""Continuous batching: answers join the batch before any step and leave after any step.

The tokens of an answer do not depend on the rest of the batch, bit for bit, because single steps have this property
(``decoder.py``). The scheduler is therefore free to choose the answers of each step:

- New tokens come first, then prompts, in chunks. The oldest prompt gets at least half of the remaining tokens, the
  shortest ones the rest. A long prompt delays the others by at most one step, and short ones cannot block it.
- A free slot goes to the request with the fewest answers in the batch, then to the oldest.
- A cache starts with room for the prompt and some new tokens, and grows. If memory runs out, the youngest answer
  is preempted and recomputed later, with the same result.
- The caches of recent answers are kept while there is memory. A prompt that shares a prefix with one of them, or with a
  running answer, reuses the cached prefix: the turns of a chat, and the examples of a few-shot prompt.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from armillary.generate.decoder import CacheMemory, Decoder, Rows
from armillary.generate.guide import Guide
from armillary.generate.sampling import Sampler, Scored, score
from armillary.generate.text import TextStream
from armillary.recipe import ArmillaryError

# Share of the free memory available to the caches of a batch.
_CACHE_SHARE = 0.5
# Initial positions of a cache beyond its prompt.
_FIRST_ROOM = 256
# Minimum number of shared tokens for which copying keys and values pays off.
_WORTH_COPYING = 16

Logits = NDArray[np.float32]


@dataclass
class Chunk:
    """Tokens that a step appends to a sequence at ``position``; logits are needed for all rows, the last, or none."""

    tokens: Sequence[int]
    position: int
    cache: CacheMemory
    last: bool = False
    all_rows: bool = False


@dataclass(frozen=True)
class Recorded:
    """What is recorded of an answer besides its tokens.

    Attributes:
        growing: its text while it is generated.
        top: how many of the most likely tokens to record at each position, with their log probabilities and those of
            the answer's own tokens; None records no log probabilities.
        echo: also those of the prompt.
        answer: whether an answer is generated, or the prompt is only read.
    """

    growing: bool = False
    top: int | None = None
    echo: bool = False
    answer: bool = True


@dataclass(eq=False)
class Answer:
    """One answer in progress; ``waiting`` are the tokens not yet in a step, starting at ``position``.

    With ``top``, each token (including the end token) is recorded in ``scored`` with its log probability and the
    ``top`` most likely tokens; with ``echo`` also those of the prompt. An answer whose ``room`` is 0 ends with its
    prompt. A ``guide`` excludes tokens from the draw; scores are those of the model all the same. A failed answer has
    an ``error``.
    """

    request: int
    number: int
    prompt: list[int]
    sampler: Sampler
    room: int
    ends: frozenset[int | None]
    stream: TextStream | None = None
    guide: Guide | None = None
    top: int | None = None
    echo: bool = False
    waiting: list[int] = field(default_factory=list)
    position: int = 0
    tokens: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    cache: CacheMemory | None = None
    prefix: tuple[CacheMemory, Logits] | None = None  # of the prompt, computed by the first answer
    siblings: list[Answer] = field(
        default_factory=list
    )  # answers to the same request, which wait for this one's prompt
    finish: Literal["stop", "length"] | None = None
    error: ArmillaryError | None = None
    served: int = 0  # the last step that included it

    def __post_init__(self) -> None:
        self.waiting = list(self.prompt)

    @property
    def capacity(self) -> int:
        """Positions that the cache needs in the end: the last sampled token never enters it."""
        return len(self.prompt) + max(self.room - 1, 0)

    def fail(self, error: ArmillaryError) -> None:
        """End the answer with an error."""
        self.error, self.finish = error, "stop"


class Batch:
    """Up to ``size`` concurrent answers, computed by ``decoder``; others wait in first-in, first-out order."""

    def __init__(self, decoder: Decoder, size: int) -> None:
        self._decoder, self._size = decoder, size
        self._free = decoder.free_memory()
        self._queue = deque[Answer]()
        self._running = list[Answer]()
        self._kept = deque[tuple[list[int], CacheMemory]]()  # tokens and caches of recent answers
        self._steps = 0
        self.reused = 0  # prompt tokens reused from caches

    @property
    def running(self) -> int:
        """The number of answers in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """The number of waiting answers."""
        return len(self._queue)

    @property
    def room(self) -> int:
        """The number of answers that can be added before others have to wait; 0 or less if some already wait."""
        return self._size - len(self._running) - len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether no answer is running or waiting."""
        return not self._running and not self._queue

    def add(self, answer: Answer) -> None:
        """Add an answer with its siblings; it starts as soon as there is a slot."""
        self._queue.append(answer)

    def remove(self, answer: Answer) -> None:
        """Remove an answer, running or waiting, with the siblings that wait for it; its slot is free for the next
        step."""
        answer.siblings = []
        for where in (self._running, self._queue):
            if answer in where:
                where.remove(answer)
        answer.cache = answer.prefix = None

    def step(self) -> list[Answer]:
        """One step: one token of each started answer, and as many prompt tokens as fit.

        Returns:
            The answers that have a new token or have ended; none if the step only read prompts.

        Raises:
            ArmillaryError: the step itself failed; the answers are as before it, or must be removed.
        """
        touched = self._admit()
        self._steps += 1
        parts = self._parts([answer for answer in self._running if answer.finish is None])
        chunks = list[Chunk]()
        for answer, count in parts:
            assert answer.cache is not None, "it runs"
            scores, ends = answer.echo and not answer.tokens, count == len(answer.waiting)
            chunks.append(Chunk(answer.waiting[:count], answer.position, answer.cache, ends and not scores, scores))
        if chunks:
            lines = iter(run_step(self._decoder, chunks))
            for (answer, count), chunk in zip(parts, chunks, strict=True):
                answer.position += count
                answer.served = self._steps
                del answer.waiting[:count]
                ends, line = not answer.waiting, None
                for place in range(len(chunk.tokens) if chunk.all_rows else int(chunk.last)):
                    line = next(lines)
                    if chunk.all_rows:
                        self._read(answer, chunk.position + place + 1, line)
                if ends and answer.finish is None:
                    assert line is not None, "the last row of a prompt has logits"
                    self._release(answer, line)
                    self._take(answer, line)
                if ends or answer.finish is not None:
                    touched.append(answer)
        touched += [answer for answer in self._running if answer.error is not None]
        self._running = [answer for answer in self._running if answer.finish is None]
        for answer in touched:
            if answer.finish is not None and answer.cache is not None:
                if answer.error is None and answer.position >= _WORTH_COPYING:
                    self._kept.append(((answer.prompt + answer.tokens)[: answer.position], answer.cache))
                    if len(self._kept) > self._size:
                        self._kept.popleft()
                answer.cache = None
        return list(dict.fromkeys(touched))

    # -- places and memory --

    def _admit(self) -> list[Answer]:
        """Give the free slots to waiting answers; return those that got a token from this, or failed."""
        touched = []
        while self._queue and len(self._running) < self._size:
            crowd = Counter(answer.request for answer in self._running)
            at = min(range(len(self._queue)), key=lambda i: (crowd[self._queue[i].request], i))
            answer = self._queue[at]
            if not self._fits(answer):
                break
            del self._queue[at]
            if answer.error is None:
                if answer.prefix is None and not answer.echo:
                    self._reuse(answer)
                self._running.append(answer)
            if answer.prefix is not None and answer.error is None:
                cache, line = answer.prefix
                assert answer.cache is not None, "it was just given one"
                answer.cache.take_prefix(cache, len(answer.prompt))
                answer.waiting, answer.position, answer.prefix = [], len(answer.prompt), None
                self._take(answer, line)
            if answer.finish is not None or answer.tokens:
                touched.append(answer)
        return touched

    def _fits(self, answer: Answer) -> bool:
        """Allocate the answer's cache; False if the running answers leave too little memory.

        An answer that could never fit fails.
        """
        decoder, free = self._decoder, self._free
        begin = min(answer.capacity, len(answer.prompt) + len(answer.tokens) + _FIRST_ROOM)
        if free is not None:
            if not self._make_room(decoder.cache_bytes(begin)) and self._running:
                return False
            needed = decoder.cache_bytes(answer.capacity)
            if needed > free:
                answer.fail(
                    ArmillaryError(
                        f"keys and values of {answer.capacity} tokens need {needed:,} bytes, but only {free:,} are "
                        "free; ask for fewer new tokens"
                    )
                )
                return True
        try:
            answer.cache = decoder.new_cache(begin)
        except ArmillaryError as error:
            answer.fail(error)
        return True

    def _make_room(self, needed: int) -> bool:
        """Whether ``needed`` more bytes fit beside the caches of running answers and of shared prompts.

        The oldest caches of past answers are dropped until they do.
        """
        if self._free is None:
            return True
        caches = [answer.cache for answer in self._running if answer.cache is not None]
        caches += [answer.prefix[0] for answer in self._queue if answer.prefix is not None]
        occupied = sum({id(cache): cache.bytes for cache in caches}.values()) + needed
        while self._kept and occupied + sum(cache.bytes for _, cache in self._kept) > _CACHE_SHARE * self._free:
            self._kept.popleft()
        return occupied <= _CACHE_SHARE * self._free

    def _reuse(self, answer: Answer) -> None:
        """Reuse the cache of the longest common prefix; the last token is recomputed for its logits."""
        assert answer.cache is not None, "it was just given one"
        wanted, best, longest = answer.waiting, None, _WORTH_COPYING - 1
        past = [(other.prompt + other.tokens, other.position, other.cache) for other in self._running]
        for tokens, length, cache in (*past, *((tokens, len(tokens), cache) for tokens, cache in self._kept)):
            if tokens[:_WORTH_COPYING] == wanted[:_WORTH_COPYING] and cache is not None:
                common = _common(tokens, wanted, min(length, len(wanted) - 1))
                if common > longest:
                    best, longest = cache, common
        if best is not None:
            answer.cache.take_prefix(best, longest)
            answer.position = longest
            del answer.waiting[:longest]
            self.reused += longest

    def _grow(self, answer: Answer, length: int) -> bool:
        """Grow the cache to ``length`` positions; False if the answer has to wait for memory."""
        assert answer.cache is not None, "it runs"
        old = answer.cache
        if length <= old.capacity:
            return True
        wanted = min(answer.capacity, max(length, 2 * old.capacity))
        more = self._decoder.cache_bytes(wanted) - old.bytes
        while not self._make_room(more):
            youngest = self._running[-1]
            if len(self._running) == 1:
                break
            self._postpone(youngest)
            if youngest is answer:
                return False
        try:
            answer.cache = self._decoder.new_cache(wanted)
        except ArmillaryError as error:
            answer.fail(error)
            return False
        answer.cache.take_prefix(old, answer.position)
        return True

    def _postpone(self, answer: Answer) -> None:
        """Preempt an answer: move it to the front of the queue, to be recomputed."""
        self._running.remove(answer)
        self._queue.appendleft(answer)
        answer.cache, answer.position = None, 0
        answer.waiting = answer.prompt + answer.tokens
        if not answer.tokens:
            answer.scored = []

    # -- rows --

    def _parts(self, active: list[Answer]) -> list[tuple[Answer, int]]:
        """The number of waiting tokens that the next step takes from each answer."""
        room = self._decoder.max_rows
        prompts = [answer for answer in active if len(answer.waiting) > 1]
        started = sorted((answer for answer in active if len(answer.waiting) == 1), key=lambda one: one.served)
        counts = dict.fromkeys(started[: room - room // 4 if prompts else room], 1)
        room -= len(counts)
        if prompts:
            oldest = prompts[0]
            counts[oldest] = min(len(oldest.waiting), max(room // 2, 1))
            room -= counts[oldest]
            for answer in sorted(prompts, key=lambda one: len(one.waiting)):
                more = min(len(answer.waiting) - counts.get(answer, 0), room)
                if more:
                    counts[answer] = counts.get(answer, 0) + more
                    room -= more
        for answer, count in counts.items():
            if answer.cache is not None and answer.finish is None:
                self._grow(answer, answer.position + count)
        return [(one, count) for one, count in counts.items() if one.cache is not None and one.finish is None]

    def _read(self, answer: Answer, place: int, logits: Logits) -> None:
        """Score the prompt token at index ``place`` with the logits of the position before it."""
        if not answer.scored:
            answer.scored.append(Scored(answer.prompt[0], None, ()))
        if answer.finish is not None or place >= len(answer.prompt):
            return
        try:
            answer.scored.append(score(logits, answer.prompt[place], answer.top or 0))
        except ArmillaryError as error:
            answer.fail(error)

    def _release(self, answer: Answer, line: Logits) -> None:
        """Queue the siblings of an answer, with the cache of their common prompt."""
        for other in answer.siblings:
            assert answer.cache is not None, "the cache was just written"
            other.prefix = answer.cache, line.copy()
            other.scored = list(answer.scored)
        self._queue.extendleft(reversed(answer.siblings))
        answer.siblings = []

    def _take(self, answer: Answer, logits: Logits) -> None:
        """Sample the next token of an answer."""
        if not answer.room:
            answer.finish = "length"
            return
        try:
            token = answer.sampler.draw(logits if answer.guide is None else answer.guide.allowed(logits))
        except ArmillaryError as error:
            return answer.fail(ArmillaryError(f"new token {len(answer.tokens) + 1}: {error}"))
        if answer.top is not None:
            answer.scored.append(score(logits, token, answer.top))
        if token in answer.ends:
            answer.finish = "stop"
            return
        answer.tokens.append(token)
        answer.waiting = [token]
        if answer.guide is not None and answer.guide.advance(token):
            answer.finish = "stop"
        if answer.stream is not None:
            answer.stream.add(token)
            if answer.stream.stopped:
                answer.finish = "stop"
        if answer.finish is None and len(answer.tokens) >= answer.room:
            answer.finish = "length"


def _common(one: list[int], other: list[int], most: int) -> int:
    """The length of the common prefix of two lists, up to ``most``."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def run_step(decoder: Decoder, chunks: Sequence[Chunk]) -> Logits:
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

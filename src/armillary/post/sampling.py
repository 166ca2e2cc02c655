"""Samples a model's answers to items, each with its verdict, and computes pass rates with intervals.

A sample and its verdict are one object as soon as the answer exists: an unreadable answer is a sample like any other,
and is never replaced by a later one. An answer cut by the token limit is always unreadable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from armillary.evaluate import mean_interval
from armillary.generate import Answers, Backend, BadRequestError, Completion, Message, Request, Sampling
from armillary.post.items import Item
from armillary.post.verify import Verdict, verify
from armillary.recipe import UsageError


@dataclass(frozen=True)
class SampleOptions:
    """Sampling options: ``samples`` answers per question at each of the ``temperatures``.

    Raises:
        UsageError: a value outside its range.
    """

    samples: int = 4
    temperatures: tuple[float, ...] = (0.6, 1.0)
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"samples is {self.samples}; give 1 or more")
        if not self.temperatures or len(set(self.temperatures)) != len(self.temperatures):
            raise UsageError(f"temperatures are {self.temperatures}; give one or more, each once")
        if self.samples > 1 and min(self.temperatures) <= 0:
            raise UsageError(f"temperature {min(self.temperatures)} would make all samples equal; it must be above 0")

    def requests(self, question: Sequence[Message]) -> list[Request]:
        """The requests for an item: one per temperature."""
        return [
            Request(tuple(question), Sampling(self.max_new_tokens, temperature=t, seed=self.seed, n=self.samples))
            for t in self.temperatures
        ]


@dataclass(frozen=True)
class Sample:
    """One answer: its request, its number among the choices, its text, and its verdict."""

    temperature: float
    request: str
    choice: int
    text: str
    verdict: Verdict


@dataclass(frozen=True)
class PassRate:
    """The numbers of an item's right, wrong and unreadable samples; ``low`` and ``high`` are a 95 % interval.

    ``rate`` is the share of right samples among all; an unreadable sample counts as not solved.
    """

    right: int
    wrong: int
    unreadable: int
    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> PassRate:
        """The pass rate of one or more samples."""
        counts = Counter(sample.verdict.outcome for sample in samples)
        found = mean_interval([float(sample.verdict.outcome == "right") for sample in samples])
        return cls(counts["right"], counts["wrong"], counts["unreadable"], found.value, found.low, found.high)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))


def draw(
    backend: Backend, answers: Answers, items: Sequence[Item], options: SampleOptions
) -> list[list[Sample] | BadRequestError]:
    """The samples of each item, or the error if the model cannot take it; answers in ``answers`` are not repeated.

    Raises:
        UsageError: an item without a check, or with a check that no verifier can use.
        RequestError: a server refused a request; earlier answers are kept.
    """
    drawn: list[list[Sample] | BadRequestError] = [[] for _ in items]
    for place, found in enumerate(complete(backend, answers, [options.requests(item.question) for item in items])):
        if isinstance(found, BadRequestError):
            drawn[place] = found
            continue
        drawn[place] = [
            Sample(temperature, request.key, number, choice.text, judged(items[place], choice.text, choice.finish))
            for temperature, request, completion in zip(
                options.temperatures, options.requests(items[place].question), found, strict=True
            )
            for number, choice in enumerate(completion.choices)
        ]
    return drawn


def judged(item: Item, text: str, finish: str) -> Verdict:
    """The verdict on an answer that ended for the reason ``finish``."""
    if finish == "length":
        return Verdict("unreadable", note="cut at its length limit")
    return verify(item, text)


def complete(
    backend: Backend, answers: Answers, groups: Sequence[Sequence[Request]]
) -> list[list[Completion] | BadRequestError]:
    """The completions of each group of requests, in order, or the error of a request that cannot be sent.

    A refused request affects only its own group. Raises as ``draw``.
    """
    refused: dict[int, BadRequestError] = {}
    while True:
        asked = [(group, place) for group, of in enumerate(groups) if group not in refused for place in range(len(of))]
        found: dict[tuple[int, int], Completion] = {}
        try:
            for completion in answers.complete(backend, [groups[group][place] for group, place in asked]):
                found[asked[completion.index]] = completion
        except BadRequestError as error:
            refused[asked[error.index][0]] = error
            continue
        return [
            refused[group] if group in refused else [found[group, place] for place in range(len(of))]
            for group, of in enumerate(groups)
        ]

"""The base class of contests: items, answers in the contest's format, the official score, and the prompts.

A score is a function of *sums over items*. Each item gives a vector of numbers (``Contest.tally``), and
``Contest.scores`` turns their sum into the metrics. Hence one bootstrap gives every metric an interval, even an F1 or
a composite. It is the Bayesian bootstrap of ``evaluate.intervals``, applied to the vectors: each draw weights the
clusters of items and half a pseudo-item at both ends (all right, all wrong), and ``scores`` reads the weighted sum.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from armillary.evaluate.contests.rows import Row, read_rows
from armillary.evaluate.intervals import DRAWS, LEAST_CONCENTRATION, cluster_totals
from armillary.recipe import UsageError

Numbers = npt.NDArray[np.float64]
# In the contest's own form: letters, events or classes. Equal answers compare equal.
Answer = tuple[Any, ...]

ALL = "all"


@dataclass(frozen=True)
class Item:
    """One question of a contest.

    ``subset`` is the type of task, if the contest reports one score per type. Items with the same ``cluster`` share a
    passage. Few-shot examples are chosen by the similarity of ``text``; ``question`` goes into the prompt.
    """

    id: str
    subset: str
    cluster: str
    text: str
    question: str
    gold: Answer

    @property
    def fingerprint(self) -> str:
        """Hash of subset and question. Equal fingerprints mean the same item, even under different ids."""
        return hashlib.sha256(f"{self.subset}\n{self.question}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Ballot:
    """One voter's answer to one item (None if unreadable), and the voter's weight."""

    answer: Answer | None
    weight: float = 1.0


@dataclass(frozen=True)
class Score:
    """A metric over the items of a subset, with its 95 % interval."""

    metric: str
    subset: str
    value: float
    low: float
    high: float
    n: int


class Contest(ABC):
    """One contest. Answers that are sets are compared as sets."""

    name: str
    title: str
    # The contest's data files: examples come from the first, the second holds the items to examine.
    train_file = "train.jsonl"
    test_file = "dev.jsonl"
    # An example line of predictions, for error messages.
    example_line: str
    # The metric that ranks systems, and the longest answer of a model in tokens.
    main_metric: str
    answer_tokens: int
    # The folder of items shipped with this package, if any.
    own_data: Path | None = None

    @abstractmethod
    def read_items(self, row: Row) -> Iterable[Item]:
        """The items of a line of the contest's data."""

    @abstractmethod
    def read_predictions(self, row: Row) -> Iterable[tuple[str, Answer]]:
        """The item ids and answers of a line of predictions."""

    @abstractmethod
    def prediction_rows(self, items: Sequence[Item], answers: Mapping[str, Answer | None]) -> list[dict[str, Any]]:
        """Lines of predictions in the contest's format. None is written as the empty answer."""

    @abstractmethod
    def tally(self, item: Item, answer: Answer | None) -> Sequence[float]:
        """The item's contribution to the sums that ``scores`` reads. None is a missing answer."""

    @abstractmethod
    def scores(self, sums: Numbers) -> dict[tuple[str, str], Numbers]:
        """The metrics by (metric, subset). The last axis of ``sums`` is that of ``tally``; NaN where no item counts."""

    @abstractmethod
    def value(self, item: Item, answer: Answer | None) -> float:
        """Quality of one answer, from 0 to 1. The weights of voters are learned from it."""

    @abstractmethod
    def combine(self, ballots: Sequence[Ballot], share: float) -> Answer | None:
        """The joint answer of the ballots; of an answer with several parts, those with ``share`` of the weight
        remain."""

    @abstractmethod
    def instruction(self, within: tuple[str, ...] | None) -> str:
        """The instruction of the prompt: task, classes (only those ``within`` the coarse ones), answer format."""

    @abstractmethod
    def coarse_instruction(self) -> str:
        """The instruction of a prompt that asks for coarse classes only."""

    @abstractmethod
    def coarse_of(self, answer: Answer) -> tuple[str, ...]:
        """The coarse classes of an answer, sorted."""

    @abstractmethod
    def written(self, answer: Answer, within: tuple[str, ...] | None) -> str | None:
        """The answer as a model should write it; None if no part of it lies ``within`` the coarse classes."""

    @abstractmethod
    def coarse_written(self, coarse: tuple[str, ...]) -> str:
        """The coarse classes as a model should write them."""

    @abstractmethod
    def read(self, text: str, item: Item, within: tuple[str, ...] | None) -> Answer | None:
        """The answer in the output of a model, or None."""

    @abstractmethod
    def read_coarse(self, text: str) -> tuple[str, ...] | None:
        """The coarse classes in the output of a model, sorted, or None."""

    def items(self, path: Path) -> list[Item]:
        """The items of a file of the contest, in its order.

        Raises:
            UsageError: a wrong line; the message names file, line and field.
        """
        found: dict[str, Item] = {}
        first: dict[str, int] = {}

        def use(row: Row) -> None:
            for item in self.read_items(row):
                if item.id in found:
                    raise UsageError(f"{row.path}:{row.line}: item {item.id} is already in line {first[item.id]}")
                found[item.id] = item
                first[item.id] = row.line

        read_rows(path, use)
        return list(found.values())

    def predictions(self, path: Path, known: Iterable[str] | None) -> dict[str, Answer]:
        """The answers in a file of predictions, by item id.

        Args:
            known: the ids that may occur in the file; None allows any.

        Raises:
            UsageError: a wrong format, an unknown label, a duplicate item or an unknown item. The message names file,
                line and field.
        """
        ids = None if known is None else set(known)
        found: dict[str, Answer] = {}
        first: dict[str, int] = {}

        def use(row: Row) -> None:
            try:
                pairs = list(self.read_predictions(row))
            except UsageError as error:
                if ": is missing; " in str(error):
                    raise UsageError(f"{error}; a line of predictions: {self.example_line}") from error
                raise
            for name, answer in pairs:
                if name in found:
                    raise UsageError(f"{row.path}:{row.line}: item {name} was already answered in line {first[name]}")
                if ids is not None and name not in ids:
                    raise UsageError(f"{row.path}:{row.line}: item {name} is not among the {len(ids)} items examined")
                found[name] = answer
                first[name] = row.line

        read_rows(path, use)
        return found

    def examine(self, items: Sequence[Item], answers: Mapping[str, Answer | None], seed: int = 0) -> list[Score]:
        """The official scores of ``answers`` on ``items``; an item without an answer counts as wrong."""
        mine = [answers.get(item.id) for item in items]
        values = self.scores(self._tallies(items, mine).sum(0))
        draws = {subset: self._draws(items, subset, [mine], seed)[0] for subset in dict.fromkeys(s for _, s in values)}
        return [
            Score(metric, subset, *_interval(float(value), draws[subset][metric, subset]), len(_of(items, subset)))
            for (metric, subset), value in values.items()
            if _of(items, subset)
        ]

    def main_value(self, items: Sequence[Item], answers: Mapping[str, Answer | None]) -> float:
        """The main metric over all items, without an interval."""
        tallies = self._tallies(items, [answers.get(item.id) for item in items])
        return float(self.scores(tallies.sum(0))[self.main_metric, ALL])

    def gain(
        self,
        items: Sequence[Item],
        answers: Mapping[str, Answer | None],
        base: Mapping[str, Answer | None],
        seed: int = 0,
    ) -> Score:
        """The gain of ``answers`` over ``base`` in the main metric, paired by item."""
        both = [[given.get(item.id) for item in items] for given in (answers, base)]
        key = (self.main_metric, ALL)
        mine, other = (float(self.scores(self._tallies(items, one).sum(0))[key]) for one in both)
        draws = self._draws(items, ALL, both, seed)
        return Score(
            f"{self.main_metric} gain", ALL, *_interval(mine - other, draws[0][key] - draws[1][key]), len(items)
        )

    def _tallies(self, items: Sequence[Item], answers: Sequence[Answer | None]) -> Numbers:
        return np.array([self.tally(item, answer) for item, answer in zip(items, answers, strict=True)], np.float64)

    def _draws(
        self, items: Sequence[Item], subset: str, several: Sequence[Sequence[Answer | None]], seed: int
    ) -> list[dict[tuple[str, str], Numbers]]:
        """The metrics of each of ``several`` lists of answers, in draws that share their item weights."""
        places = [place for place, item in enumerate(items) if subset in (ALL, item.subset)]
        if not places:
            return [{} for _ in several]
        of = [items[place] for place in places]
        right, wrong = (self._tallies(of, ends).mean(0) for ends in ([item.gold for item in of], [None] * len(of)))
        tallies = [self._tallies(of, [answers[place] for place in places]) for answers in several]
        # With two lists of answers, a pseudo-item is all right in one list and all wrong in the other.
        ends = np.array([np.concatenate([(right, wrong)[(i + j) % 2] for j in range(len(several))]) for i in (0, 1)])
        sums = weighted_sums(np.hstack(tallies), [item.cluster for item in of], ends, seed)
        return [self.scores(part) for part in np.split(sums, len(several), axis=1)]


def _of(items: Sequence[Item], subset: str) -> list[Item]:
    return [item for item in items if subset in (ALL, item.subset)]


def _interval(value: float, draws: Numbers) -> tuple[float, float, float]:
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return value, min(value, float(low)), max(value, float(high))


def weighted_sums(tallies: Numbers, clusters: Sequence[str], ends: Numbers, seed: int) -> Numbers:
    """Sums of ``tallies`` [n, k] under random weights of the clusters and of two pseudo-items ``ends`` [2, k].

    Returns:
        [DRAWS, k]; see ``evaluate.intervals`` for the choice of the concentration.
    """
    totals, sizes = cluster_totals(tallies, clusters)
    kinds, counts = np.unique(totals, axis=0, return_counts=True)
    concentration = max((len(sizes) - 2) / len(sizes), LEAST_CONCENTRATION)
    shape = np.concatenate([counts * concentration, [0.5, 0.5]])
    weights = np.random.default_rng(seed).standard_gamma(shape, (DRAWS, len(shape)))
    return np.asarray(weights @ np.concatenate([kinds, ends * sizes.mean()]))


def cluster_of(passage: str) -> str:
    """The name of the cluster of all items about ``passage``, independent of their ids."""
    return hashlib.sha256(passage.encode()).hexdigest()[:16]


def ratio(numerator: Numbers, denominator: Numbers) -> Numbers:
    """Elementwise quotient; NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def plurality(ballots: Sequence[Ballot]) -> Answer | None:
    """The answer with the most weight, ignoring empty ones; a tie goes to the answer cast first."""
    weights: dict[Answer, float] = {}
    for ballot in ballots:
        if ballot.answer:
            weights[ballot.answer] = weights.get(ballot.answer, 0.0) + ballot.weight
    return max(weights, key=weights.__getitem__) if weights else None

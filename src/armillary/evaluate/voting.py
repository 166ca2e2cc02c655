"""Combines the answers of several voters. Their weights are learned on development items, which are then excluded.

A voter's weight starts at its mean score on the development items. Coordinate ascent then scales single weights and
moves the share of the weight that a part of an answer needs, as long as the contest's main metric rises. There are few
weights and the grid is coarse, which limits overfitting.

``Weights`` carry the fingerprints of the items that they were learned from. ``vote`` refuses these items, since a score
on them would be a score on training data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.evaluate.contests.contest import Answer, Ballot, Contest, Item
from armillary.recipe import DamagedFileError, UsageError, read_sealed, write_sealed

FORMAT = 1
Answers = Mapping[str, Answer | None]

_FACTORS = (0.0, 0.5, 2.0)
_SHARES = (0.2, 0.35, 0.5, 0.65, 0.8)
_SWEEPS = 3
_REMEDY = "learn the weights again"


@dataclass(frozen=True)
class Weights:
    """The weights of the voters.

    Attributes:
        contest: name of the contest.
        voters: weight of each voter; at least 0, the largest is 1.
        share: share of the total weight that a part of an answer needs.
        learned_from: fingerprints of the items that the weights were learned from.
    """

    contest: str
    voters: dict[str, float]
    share: float
    learned_from: frozenset[str]

    def save(self, path: Path) -> None:
        """Write the weights as a sealed file, so that a lost or edited ``learned_from`` is detected."""
        document = {"contest": self.contest, "voters": self.voters, "share": self.share}
        write_sealed(path, {"format": FORMAT, **document, "learned_from": sorted(self.learned_from)})

    @classmethod
    def load(cls, path: Path) -> Weights:
        """The weights that ``save`` wrote.

        Raises:
            UsageError: there is no such file.
            DamagedFileError: the file is torn or edited, or does not hold weights.
            ForeignFileError: a newer version wrote it.
        """
        try:
            document: dict[str, Any] = read_sealed(path, "weights of voters", FORMAT, _REMEDY)
        except FileNotFoundError as error:
            raise UsageError(f"{path}: no such file; give a file of weights that a vote has learned") from error
        try:
            return cls(
                str(document["contest"]),
                {str(name): float(weight) for name, weight in document["voters"].items()},
                float(document["share"]),
                frozenset(map(str, document["learned_from"])),
            )
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise DamagedFileError(f"{path}: not a file of voter weights ({error!r}); {_REMEDY}") from error


def learn_weights(contest: Contest, items: Sequence[Item], voters: Mapping[str, Answers]) -> Weights:
    """Weights under which the voters' common answers to ``items`` score best.

    Args:
        items: the development items.
        voters: answers by item id, by name of the voter.

    Raises:
        UsageError: no items or no voters.
    """
    if not items or not voters:
        raise UsageError(f"learning weights needs items and voters; given {len(items)} items and {len(voters)} voters")

    def score(weights: Mapping[str, float], share: float) -> float:
        answers = {item.id: _combined(contest, item, weights, share, voters) for item in items}
        return contest.main_value(items, answers)

    best = {
        name: sum(contest.value(item, answers.get(item.id)) for item in items) / len(items)
        for name, answers in voters.items()
    }
    if not any(best.values()):
        best = dict.fromkeys(voters, 1.0)
    share = 0.5
    reached = score(best, share)
    for _ in range(_SWEEPS):
        before = reached
        trials = [({**best, name: best[name] * factor}, share) for name in sorted(voters) for factor in _FACTORS]
        for trial, part in [*trials, *((best, part) for part in _SHARES)]:
            if any(trial.values()) and (found := score(trial, part)) > reached:
                best, share, reached = trial, part, found
        if reached == before:
            break
    largest = max(best.values())
    weights = {name: weight / largest for name, weight in best.items()}
    return Weights(contest.name, weights, share, frozenset(item.fingerprint for item in items))


def vote(
    contest: Contest, weights: Weights, items: Sequence[Item], voters: Mapping[str, Answers]
) -> dict[str, Answer | None]:
    """The common answer of the voters to each item.

    Raises:
        UsageError: the weights were learned from one of the items, for another contest, or for other voters.
    """
    if weights.contest != contest.name:
        raise UsageError(f"the weights were learned for {weights.contest}, not for {contest.name}")
    if set(weights.voters) != set(voters):
        raise UsageError(f"the weights are for {', '.join(sorted(weights.voters))}; given {', '.join(sorted(voters))}")
    seen = [item.id for item in items if item.fingerprint in weights.learned_from]
    if seen:
        raise UsageError(
            f"the weights were learned from {len(seen)} of these {len(items)} items ({', '.join(seen[:3])}…); examine "
            "other items, or learn the weights from different items"
        )
    return {item.id: _combined(contest, item, weights.voters, weights.share, voters) for item in items}


def _combined(
    contest: Contest, item: Item, weights: Mapping[str, float], share: float, voters: Mapping[str, Answers]
) -> Answer | None:
    ballots = [Ballot(answers.get(item.id), weights[name]) for name, answers in voters.items() if weights[name] > 0]
    return contest.combine(ballots, share)

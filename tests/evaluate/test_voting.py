"""Votes of several models: weights are learned on some items and never used on these."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from armillary.evaluate.contests import CONTESTS, Item
from armillary.evaluate.contests.ched import LABELS
from armillary.evaluate.voting import Weights, learn_weights, vote
from armillary.recipe import DamagedFileError, ForeignFileError, UsageError

SPACE, CHED = CONTESTS["space2024"], CONTESTS["ched"]


def choices(first: int, count: int) -> list[Item]:
    return [Item(str(i), "roles", str(i), "", f"问题{i}", ("ABCD"[i % 4],)) for i in range(first, first + count)]


def voter(items: list[Item], accuracy: float, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    return {
        item.id: item.gold if draw.random() < accuracy else (draw.choice(sorted(set("ABCD") - set(item.gold))),)
        for item in items
    }


def test_a_vote_of_independent_voters_beats_the_best_of_them_on_other_items() -> None:
    items, others = choices(0, 300), choices(300, 300)
    accuracies = (0.6, 0.55, 0.5, 0.3)
    mine = {str(p): voter(items, p, place) for place, p in enumerate(accuracies)}
    theirs = {str(p): voter(others, p, 10 + place) for place, p in enumerate(accuracies)}
    weights = learn_weights(SPACE, items, mine)
    assert weights.voters["0.6"] >= weights.voters["0.3"]
    together = SPACE.main_value(others, vote(SPACE, weights, others, theirs))
    assert together > max(SPACE.main_value(others, answers) for answers in theirs.values())


def test_on_its_own_items_a_learned_vote_is_no_worse_than_equal_weights() -> None:
    items = choices(0, 80)
    voters = {str(seed): voter(items, 0.4, seed) for seed in range(3)}
    weights = learn_weights(SPACE, items, voters)
    learned = Weights(weights.contest, weights.voters, weights.share, frozenset())
    equal = Weights(weights.contest, dict.fromkeys(voters, 1.0), 0.5, frozenset())
    values = [SPACE.main_value(items, vote(SPACE, one, items, voters)) for one in (learned, equal)]
    assert values[0] >= values[1]


def test_items_that_weights_were_learned_from_are_refused_under_any_id() -> None:
    items = choices(0, 10)
    voters = {"a": voter(items, 0.5, 1)}
    weights = learn_weights(SPACE, items, voters)
    renamed = [Item("new", item.subset, "new", item.text, item.question, ("A",)) for item in items[:1]]
    for asked in (items, items[9:], [*choices(20, 3), *renamed]):
        with pytest.raises(UsageError, match="were learned from"):
            vote(SPACE, weights, asked, voters)
    assert vote(SPACE, weights, choices(20, 3), voters) == {"20": None, "21": None, "22": None}


def test_events_need_their_share_of_the_weight() -> None:
    item = Item("1", "", "1", "攻城", "攻城", ())
    one, two = ("攻", LABELS[34]), ("城", LABELS[34])
    voters: dict[str, Any] = {"a": {"1": (one, two)}, "b": {"1": (one,)}, "c": {"1": None}}
    for share, expected in ((0.5, {one, two}), (0.51, {one}), (1.0, {one})):
        weights = Weights("ched", dict.fromkeys(voters, 1.0), share, frozenset())
        assert set(vote(CHED, weights, [item], voters)["1"] or ()) == expected


def test_voters_that_are_always_wrong_still_vote() -> None:
    items = choices(0, 5)
    weights = learn_weights(SPACE, items, {"a": {}, "b": {}})
    assert max(weights.voters.values()) == 1


def test_weights_read_back_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    items = choices(0, 5)
    weights = learn_weights(SPACE, items, {"a": voter(items, 0.5, 1)})
    path = tmp_path / "weights.json"
    weights.save(path)
    assert Weights.load(path) == weights
    document = json.loads(path.read_text())
    for change, error in (
        ({"learned_from": []}, DamagedFileError),
        ({"voters": {"a": 2}}, DamagedFileError),
        ({"format": 99}, ForeignFileError),
    ):
        path.write_text(json.dumps({**document, **change}))
        with pytest.raises(error):
            Weights.load(path)
    with pytest.raises(UsageError, match="no such file"):
        Weights.load(tmp_path / "none.json")


def test_weights_of_other_voters_or_another_contest_are_refused() -> None:
    items = choices(0, 5)
    weights = learn_weights(SPACE, items, {"a": {}})
    with pytest.raises(UsageError, match="the weights are for a; given b"):
        vote(SPACE, weights, choices(9, 1), {"b": {}})
    with pytest.raises(UsageError, match="learned for space2024, not for ched"):
        vote(CHED, weights, choices(9, 1), {"a": {}})
    with pytest.raises(UsageError, match="given 0 items and 1 voters"):
        learn_weights(SPACE, [], {"a": {}})

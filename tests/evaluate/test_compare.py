"""Two examinations are compared item by item, and only where they are comparable."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from armillary.evaluate import Examination, Item, Result, compare
from armillary.recipe import UsageError


def examination(scores: Sequence[float], settings: str = "s", task: str = "gsm8k", skip: int = 0) -> Examination:
    """An examination of one task whose items are numbered; the first ``skip`` are missing."""
    items = tuple(
        Item(f"i{n}", task, f"i{n}", settings, "", ("",), "", None, {"exact_match": score})
        for n, score in enumerate(scores)
    )[skip:]
    mean = sum(item.scores["exact_match"] for item in items) / len(items)
    result = Result(task, task, "exact_match", mean, 0.0, 1.0, len(items), 0.0, None, settings)
    return Examination((result,), {task: items})


def test_the_public_case_is_significant_when_paired() -> None:
    first = [1.0] * 41 + [0.0] * 22 + [1.0] * 7 + [0.0] * 94
    second = [1.0] * 41 + [1.0] * 22 + [0.0] * 7 + [0.0] * 94
    (found,) = compare(examination(first), examination(second))
    assert (found.paired.better, found.paired.worse, found.paired.items) == (22, 7, 164)
    assert found.paired.p_value == pytest.approx(0.0081, abs=1e-4)
    assert found.second - found.first == pytest.approx(15 / 164) == found.paired.difference.value
    assert len(found.flips) == 29
    assert [flip.second for flip in found.flips] == [0.0] * 7 + [1.0] * 22


def test_only_items_of_both_are_compared() -> None:
    (found,) = compare(examination([1, 0, 1, 1], skip=1), examination([0, 0, 1, 0, 1]))
    assert (found.paired.items, found.left_out) == (3, 2)
    assert found.first == pytest.approx(2 / 3)


def test_other_settings_are_refused_unless_asked_for() -> None:
    first, second = examination([1, 0], "a"), examination([1, 1], "b")
    with pytest.raises(UsageError, match=r"gsm8k: prompt template.*--any-settings"):
        compare(first, second)
    (found,) = compare(first, second, any_settings=True)
    assert not found.same_settings


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (examination([1, 1], task="mmlu"), "no task and metric in common.*mmlu exact_match"),
        (examination([1, 1, 1, 1], skip=3), "no item in common"),
    ],
)
def test_what_has_nothing_in_common_is_refused(second: Examination, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compare(examination([1, 0]), second)


def test_a_margin_asks_for_equivalence() -> None:
    same = [1.0, 0.0] * 200
    (found,) = compare(examination(same), examination(same), margin=0.05)
    assert found.paired.equivalent

"""Kept outputs are scored again with another extractor, without a model."""

from __future__ import annotations

import pytest

from armillary.evaluate import Examination, Item
from armillary.evaluate.intervals import mean_interval
from armillary.evaluate.tasks import rescore
from armillary.recipe import UsageError

pytest.importorskip("lm_eval")


def examination(task: str, rows: list[tuple[str, str, str]]) -> Examination:
    """Items of (output, gold, former answer)."""
    items = tuple(
        Item(f"i{n}", task, f"i{n}", "old", gold, (output,), answer, None, {"exact_match": 0.0})
        for n, (output, gold, answer) in enumerate(rows)
    )
    return Examination((), {task: items})


ROWS = [
    ("The answer is 18 dollars.", "9*2=18\n#### 18", "[invalid]"),
    ("I say 3. The answer is 4.", "#### 3", "4"),
    ("nothing", "#### 3", "[invalid]"),
]


def test_the_audits_extractor_gives_its_own_score() -> None:
    found = rescore(examination("gsm8k", ROWS), "audit")
    (result,) = found.results
    assert (result.value, result.n) == (pytest.approx(1 / 3), 3)
    assert [item.answer for item in found.items["gsm8k"]] == ["18", "4", None]
    assert [item.second_answer for item in found.items["gsm8k"]] == ["[invalid]", "4", "[invalid]"]
    assert result.extraction_disagreement == pytest.approx(1 / 3)
    assert result.settings not in ("old", rescore(examination("gsm8k", ROWS), "[0-9]+").results[0].settings)


def test_a_regular_expression_takes_its_last_match() -> None:
    found = rescore(examination("gsm8k", ROWS), r"say (\d+)|is (\d+)")
    assert [item.answer for item in found.items["gsm8k"]] == ["18", "4", None]


def test_options_of_bbh_are_compared_without_brackets() -> None:
    rows = [("So the answer is B.", "(B)", ""), ("the answer is (A)", "(B)", "")]
    found = rescore(examination("bbh_zeroshot_navigate", rows), r"answer is (\S+?)\.?$")
    assert [item.scores["exact_match"] for item in found.items["bbh_zeroshot_navigate"]] == [1.0, 0.0]


def test_subsets_have_their_own_score() -> None:
    base = examination("bbh", [("the answer is True", "True", ""), ("the answer is no", "Yes", "")])
    items = tuple(Item(**{**vars(item), "subset": item.id}) for item in base.items["bbh"])
    found = rescore(Examination((), {"bbh": items}), "audit")
    assert [(r.subset, r.value) for r in found.results] == [("bbh", 0.5), ("i0", 1.0), ("i1", 0.0)]


def test_outputs_of_all_prompt_formats_count() -> None:
    rows = [("the answer is 3", "#### 3", "3"), ("the answer is 4", "#### 4", "4")]
    base = examination("gsm8k", rows)
    items = tuple(Item(**{**vars(item), "outputs": (*item.outputs, "the answer is 3")}) for item in base.items["gsm8k"])
    found = rescore(Examination((), {"gsm8k": items}), "audit")
    assert [item.scores["exact_match"] for item in found.items["gsm8k"]] == [1.0, 0.5]
    assert [item.answer for item in found.items["gsm8k"]] == ["3", "4"]
    (result,) = found.results
    of_formats = mean_interval([[1.0, 1.0], [1.0, 0.0]], ["i0", "i1"])
    assert (result.value, result.low, result.high) == (of_formats.value, of_formats.low, of_formats.high)


@pytest.mark.parametrize(
    ("task", "extractor", "words"),
    [
        ("gsm8k", "(", "not a regular expression"),
        ("mmlu", "audit", "none of mmlu extracts answers from text"),
        ("ched", "x", "none of ched"),
    ],
)
def test_what_cannot_be_rescored_is_refused(task: str, extractor: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        rescore(examination(task, ROWS), extractor)

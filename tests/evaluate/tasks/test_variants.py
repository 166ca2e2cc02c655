"""Formats of the prompt: what they change, and that the interval covers them."""

from __future__ import annotations

from pathlib import Path

import pytest

from armillary.evaluate import Examination, Item, Result
from armillary.evaluate.tasks import ExamOptions, audit, prepare
from armillary.evaluate.tasks.variants import over_variants
from armillary.recipe import UsageError

pytest.importorskip("lm_eval")


def prompts(data: Path, task: str, variant: int) -> str:
    """The prompt of the first item with one example."""
    prepared = prepare([task], data, ExamOptions(shots=1), variant)
    (leaf,) = [leaf for named in prepared.named for leaf in named.leaves]
    found = prepared.objects[leaf.name]
    return str(found.fewshot_context(found.eval_docs[0], 1))


def test_formats_change_labels_and_marks_alone(data: Path) -> None:
    assert prompts(data, "cmmlu", 0).endswith("第0题\nA. 1\nB. 2\nC. 3\nD. 4\n答案：")
    assert prompts(data, "cmmlu", 1).endswith("第0题\nA) 1\nB) 2\nC) 3\nD) 4\n答案 ：")
    assert prompts(data, "cmmlu", 2).endswith("(D) 4\n答案：\n")
    assert prompts(data, "gsm8k", 1).count("Question :") == 2
    assert prompts(data, "gsm8k", 3).endswith("answer:")


def test_each_format_has_settings_of_its_own(data: Path) -> None:
    found = [prepare(["gsm8k"], data, ExamOptions(shots=1), variant) for variant in range(4)]
    assert len({one.settings_of(one.named[0]) for one in found}) == 4


def examination(scores: list[float], settings: str) -> Examination:
    """An examination with these scores."""
    items = tuple(
        Item(f"i{n}", "t", f"i{n}", settings, "", (settings,), "", None, {"acc": score}, score == 0)
        for n, score in enumerate(scores)
    )
    mean = sum(scores) / len(scores)
    return Examination((Result("t", "t", "acc", mean, 0.0, 1.0, len(scores), 1 - mean, None, settings),), {"t": items})


def test_the_interval_covers_formats_too() -> None:
    first, second = [1.0] * 30 + [0.0] * 10, [0.0] * 30 + [1.0] * 10
    same = over_variants([examination(first, "a"), examination(first, "b")]).results[0]
    apart = over_variants([examination(first, "a"), examination(second, "b")])
    assert same.value == 0.75 and apart.results[0].value == 0.5
    assert apart.results[0].high - apart.results[0].low > 1.5 * (same.high - same.low)
    item = apart.items["t"][0]
    assert item.outputs == ("a", "b") and item.scores == {"acc": 0.5} and item.truncated


def test_too_many_formats_are_refused() -> None:
    with pytest.raises(UsageError, match="give 1 to 4"):
        ExamOptions(variants=5)


def test_the_audit_lists_what_differs() -> None:
    items = tuple(
        Item(f"i{n}", "gsm8k", f"i{n}", "s", "#### 1", (f"text {n}",), answer, second, {"exact_match": 0.0})
        for n, (answer, second) in enumerate([("1", "1.0"), ("[invalid]", "1"), ("2", "1"), ("[invalid]", None)])
    )
    found = audit(Examination((), {"gsm8k": items}))
    assert [(one.id, one.output) for one in found] == [("i1", "text 1"), ("i2", "text 2")]

"""Pairs of answers from samples: right against wrong ones, or as a judge says, and nothing lost or doubled by kills."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from armillary.evaluate import JudgeOptions
from armillary.generate import Choice, Completion, Cost, Request
from armillary.post.formats import read_pairs
from armillary.post.items import Item
from armillary.post.pairs import Files, PairOptions, PairsMade, alike_in_length, pairs_by_judge, pairs_by_verifier
from armillary.recipe import UsageError

OPTIONS = PairOptions(samples=2, temperatures=(0.7, 1.0))


class Scripted:
    """A backend that answers each question with the texts that ``script`` has for it, in turn."""

    context = 10_000

    def __init__(self, script: Callable[[str], list[str]], name: str = "scripted") -> None:
        self.script, self.name, self.asked, self.left = script, name, 0, -1
        self.cost = Cost()

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": self.name, "model": "none"}

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for place, request in enumerate(requests):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.asked += 1
            assert not isinstance(request.prompt, str)
            texts = self.script(request.prompt[-1].content)
            first = 0 if request.sampling.temperature < 0.8 else request.sampling.n
            chosen = (texts * 4)[first : first + request.sampling.n]
            ends: list[Any] = ["length" if text.endswith("…") else "stop" for text in chosen]
            choices = tuple(Choice(text, 1, end) for text, end in zip(chosen, ends, strict=True))
            yield Completion(place, choices, 1)

    def close(self) -> None:
        """Nothing is open."""


SAMPLES = {
    "1 + 1 = ?": ["The answer is 2.", "The answer is 3, as I was told before.", "The answer is 5.", "It is 2"],
    "2 + 2 = ?": ["The answer is 4.", "4", "The answer is 4", "It is 4"],
    "3 + 3 = ?": ["The answer is 7.", "8", "I do not know", "9"],
    "4 + 4 = ?": ["I do not know", "no idea", "hm", "The answer is 8 and then more…"],
}


def written(tmp_path: Path, questions: Iterable[str] = SAMPLES) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = []
    for question in questions:
        answer = str(2 * int(question[0]))
        messages = [{"role": "user", "content": question}]
        rows.append({"messages": messages, "answer": answer, "check": {"kind": "math"}, "domain": "math"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def outcome(item: Item, text: str) -> Any:
    """By the last number of an answer."""
    numbers = re.findall(r"\d+", text)
    return "unreadable" if not numbers else "right" if numbers[-1] == item.answer else "wrong"


def verified(items: Path, out: Path, backend: Any, options: PairOptions = OPTIONS) -> PairsMade:
    return pairs_by_verifier(Files(items, out), backend, options, outcome)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_right_answers_are_paired_with_wrong_ones_of_about_their_length(tmp_path: Path) -> None:
    made = verified(written(tmp_path), tmp_path / "pairs", Scripted(SAMPLES.__getitem__))
    (row,) = rows_of(made.pairs)
    assert row["prompt"] == [{"role": "user", "content": "1 + 1 = ?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "The answer is 2."}]
    assert row["rejected"] == [{"role": "assistant", "content": "The answer is 5."}]
    assert row["notes"] == {"by": "verifier", "right": 2, "wrong": 2, "unreadable": 0}
    assert made.counts["dropped"] == {"all right": 1, "all wrong": 1, "unreadable": 1}
    assert [pair.where for pair in read_pairs(made.pairs)] == [f"{made.pairs}:1"]
    again = Scripted(SAMPLES.__getitem__)
    assert verified(written(tmp_path), tmp_path / "pairs", again) == made
    assert again.asked == 0


def test_a_killed_stage_asks_for_nothing_twice(tmp_path: Path) -> None:
    questions = written(tmp_path)
    undisturbed = verified(questions, tmp_path / "whole", Scripted(SAMPLES.__getitem__))
    total = 0
    for allowed in (1, 2, 0, 3, 8):
        backend = Scripted(SAMPLES.__getitem__)
        backend.left = allowed
        with contextlib.suppress(KeyboardInterrupt):
            made = verified(questions, tmp_path / "killed", backend)
        total += backend.asked
    assert total == 8 and made.counts == undisturbed.counts
    assert made.pairs.read_bytes() == undisturbed.pairs.read_bytes()
    with pytest.raises(UsageError, match="samples was 2 and is 3"):
        verified(questions, tmp_path / "killed", backend, PairOptions(samples=3, temperatures=(0.7, 1.0)))


def test_no_answer_is_in_two_pairs_and_equal_ones_count_once() -> None:
    right, wrong = ["aa", "aa", "aaaa", " "], ["b", "bbb", "bbbbb"]
    assert alike_in_length(right, wrong, 1) == [("aa", "b")]
    found = alike_in_length(right, wrong, 9)
    assert len(found) == 2 and len({a for a, _ in found}) == len({b for _, b in found}) == 2
    assert alike_in_length([], wrong, 3) == []


def judged(prompt: str) -> list[str]:
    """Prefers the answer with 'good' wherever it stands, cannot tell others apart, and is silent on 4 + 4."""
    if "4 + 4" in prompt:
        return ["I cannot say"]
    first = prompt.index("[Answer A]")
    second = prompt.index("[Answer B]")
    one, two = "good" in prompt[first:second], "good" in prompt[second:]
    return ["[[A]]" if one > two else "[[B]]" if two > one else "[[A]]"]


def test_a_judge_must_prefer_an_answer_in_both_orders(tmp_path: Path) -> None:
    texts = {
        "1 + 1 = ?": ["bad", "good", "worse", "ugly"],
        "2 + 2 = ?": ["same", "same", "same", "same"],
        "3 + 3 = ?": ["bad", "worse", "bad", "bad"],
        "4 + 4 = ?": ["bad", "good", "bad", "bad"],
    }
    models: Any = (Scripted(texts.__getitem__), Scripted(judged, "judge"))
    made = pairs_by_judge(Files(written(tmp_path), tmp_path / "pairs"), models, OPTIONS, JudgeOptions())
    (row,) = rows_of(made.pairs)
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("good", "bad")
    # the judge that says A whatever stands there is a tie
    assert made.counts["dropped"] == {"all alike": 1, "tie": 1, "unread": 1}


def test_questions_without_a_check_are_counted_and_bad_options_refused(tmp_path: Path) -> None:
    path = tmp_path / "open.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "1 + 1 = ?"}]}) + "\n")
    made = verified(path, tmp_path / "pairs", Scripted(SAMPLES.__getitem__))
    assert made.counts["dropped"] == {"no check": 1} and made.counts["kept"] == 0
    for wrong in ({"samples": 0}, {"per_question": 0}, {"temperatures": (0.0,)}, {"temperatures": ()}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            PairOptions(**wrong)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="has no items"):
        verified(tmp_path / "empty.jsonl", tmp_path / "other", Scripted(SAMPLES.__getitem__))

"""Rejection sampling keeps right answers of different reasoning, counts the rest apart, and survives kills."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_backend import Scripted, until_killed
from typer.testing import CliRunner

from armillary.cli.verbs import app
from armillary.generate import Message, open_answers
from armillary.post import Item, RejectOptions, SampleOptions, read_items, reject, to_line
from armillary.post.sampling import PassRate, draw
from armillary.post.verify import verify
from armillary.recipe import UsageError

TWO = RejectOptions(SampleOptions(2, (0.5, 1.0), 64), easy_share=1.0)
WORDS = ("first we add the numbers one by one", "instead count on from the larger number", "draw dots and count them")


def question(text: str, answer: str = "4", level: int = 1) -> Item:
    return Item((Message("user", text),), answer, {"kind": "math"}, "math", "sums", level, "en")


def says(text: str, temperature: float, number: int) -> str:
    """What a question is named after decides how it is answered."""
    right = f"{WORDS[number % 3]}. The answer is 4."
    wrong = "The answer is 5."
    return {
        "all": right,
        "none": wrong,
        "half": right if temperature == 1.0 else wrong,
        "mute": "I do not know.",
        "cut": "CUT",
        "same": "two and two are four. The answer is 4.",
        "late": "CUT" if number == 0 else right,
    }[text.split(maxsplit=1)[0]]


@pytest.fixture
def items(tmp_path: Path) -> Path:
    texts = ["all 1", "none 1", "half 1", "mute 1", "cut 1", "same 1", "late 1", "all too long"]
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"".join(to_line(question(text).to_json()) for text in texts))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_kept_and_why_the_rest_is_not(tmp_path: Path, items: Path) -> None:
    record = reject(items, tmp_path / "out", Scripted(says, tmp_path / "log"), TWO)
    kept = list(read_items(tmp_path / "out/items.jsonl"))
    assert [(item.text, item.notes["reject"]["pass_rate"]["rate"]) for item in kept] == [
        *[("all 1", 1.0), ("half 1", 0.5), ("half 1", 0.5)],
        *[("same 1", 1.0), ("late 1", 0.5)],
    ]
    assert all(verify(item, item.reply).outcome == "right" for item in kept)
    assert {item.text: item.notes["reject"]["alike"] for item in kept} == {
        **{"all 1": 1, "half 1": 0, "same 1": 3, "late 1": 1}
    }
    assert record["counts"]["dropped"] == {"impossible": 1, "refused": 1, "unreadable": 2}
    (row,) = record["counts"]["yield"]
    expected = {"questions": 8, "kept": 4, "answers": 5, "samples right": 12, "samples wrong": 6}
    assert expected.items() <= row.items() and row["samples unreadable"] == 10
    assert record["counts"]["temperatures"] == {
        "0.5": {"right": 5, "wrong": 4, "unreadable": 5},
        "1.0": {"right": 7, "wrong": 2, "unreadable": 5},
    }
    (parent,) = kept[0].origin["parents"]
    assert parent == question("all 1").id and kept[0].origin["temperature"] == 0.5


def test_easy_questions_are_thinned_by_their_id_and_keep_one_answer(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"".join(to_line(question(f"all {n}").to_json()) for n in range(200)))
    options = RejectOptions(SampleOptions(2, (0.5, 1.0), 64), easy_share=0.3)
    record = reject(path, tmp_path / "out", Scripted(says, tmp_path / "log"), options)
    assert 40 <= record["counts"]["kept"] <= 80
    assert record["counts"]["dropped"] == {"easy": 200 - record["counts"]["kept"]}
    again = reject(path, tmp_path / "again", Scripted(says, tmp_path / "log"), options)
    assert again["files"] == record["files"]


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from(["The answer is 4.", "The answer is 5.", "", "no idea", "CUT"]), min_size=8, max_size=8)
)
def test_an_unreadable_answer_never_shifts_verdicts(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("draw")
    backend = Scripted(lambda _, t, n: texts[n + 4 * (t == 1.0)], folder / "log")
    with open_answers(folder / "answers.jsonl", backend.identity) as answers:
        (samples,) = draw(backend, answers, [question("any")], SampleOptions(4, (0.5, 1.0), 64))
    outcomes = {"The answer is 4.": "right", "The answer is 5.": "wrong"}
    assert isinstance(samples, list)
    assert [sample.text for sample in samples] == texts
    assert [sample.verdict.outcome for sample in samples] == [outcomes.get(text, "unreadable") for text in texts]
    rate = PassRate.of(samples)
    assert (rate.right, rate.wrong, rate.unreadable) == tuple(
        sum(outcomes.get(text, "unreadable") == outcome for text in texts)
        for outcome in ("right", "wrong", "unreadable")
    )
    assert rate.low < rate.rate < rate.high or rate.rate in (rate.low, rate.high)


def test_kills_lose_no_generation_and_repeat_none(tmp_path: Path, items: Path) -> None:
    whole = reject(items, tmp_path / "whole", Scripted(says, tmp_path / "whole.log"), TWO)
    log = tmp_path / "log"
    for after in (0, 1, 3, 5):
        killed = until_killed(lambda n=after: reject(items, tmp_path / "out", Scripted(says, log, n), TWO))  # type: ignore[misc]
        assert killed == -signal.SIGKILL
    record = reject(items, tmp_path / "out", Scripted(says, log), TWO)
    assert record["files"] == whole["files"] and record["counts"] == whole["counts"]
    # killed before an answer, never between an answer and its line: each request was asked once
    asked = log.read_text().split()
    assert sorted(asked) == sorted((tmp_path / "whole.log").read_text().split()) and len(set(asked)) == len(asked) == 14
    assert reject(items, tmp_path / "out", Scripted(says, log), TWO) == record
    assert len(log.read_text().split()) == 14


def test_another_model_or_other_rules_are_refused(tmp_path: Path, items: Path) -> None:
    reject(items, tmp_path / "out", Scripted(says, tmp_path / "log"), TWO)
    with pytest.raises(UsageError, match="model was"):
        reject(items, tmp_path / "out", Scripted(says, tmp_path / "log", name="another"), TWO)
    with pytest.raises(UsageError, match="most was 4 and is 1"):
        reject(
            items, tmp_path / "out", Scripted(says, tmp_path / "log"), RejectOptions(TWO.sampling, easy_share=1, most=1)
        )


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"easy": 1.5}, "easy is 1.5"),
        ({"easy": 0.5, "hard": 0.5}, "hard must be the smaller"),
        ({"most": 0}, "most is 0"),
        ({"same": float("nan")}, "same is nan"),
    ],
)
def test_wrong_rules_are_named(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        RejectOptions(**wrong)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"temperatures": ()}, "one or more"),
        ({"temperatures": (0.5, 0.5)}, "each once"),
        ({"temperatures": (0.0,)}, "all samples equal"),
    ],
)
def test_wrong_sampling_is_named(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        SampleOptions(**wrong)


def test_a_question_without_a_check_is_named(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b'{"messages": [{"role": "user", "content": "all 1"}]}\n')
    with pytest.raises(UsageError, match="has no check"):
        reject(path, tmp_path / "out", Scripted(says, tmp_path / "log"), TWO)


def test_the_verb_with_a_model(tmp_path: Path, tiny_hf: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_bytes(to_line(question("1 + 3 = ?").to_json()))
    arguments = ["post", "reject", str(tiny_hf), "--items", str(items), "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, [*arguments, "--samples", "2", "--max-new-tokens", "4", "--temperature", "0.5"])
    assert result.exit_code == 0, result.output
    counts = json.loads(result.stdout)["counts"]
    assert counts["decided"] == 1 and counts["temperatures"]["0.5"]["unreadable"] == 2

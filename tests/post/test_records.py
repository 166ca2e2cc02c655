"""Every verb of data reads every format: the same decisions, nothing lost, and rows that are not questions counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_backend import Scripted

from armillary.post import (
    DecontaminateOptions,
    EvolveOptions,
    RejectOptions,
    SampleOptions,
    decontaminate,
    evolve,
    reject,
)
from armillary.post.diversity import compare_diversity
from armillary.post.items import read_items
from armillary.post.pairs import Files, PairOptions, pairs_by_verifier
from armillary.post.records import read_records
from armillary.post.verify import verify, verify_file
from armillary.recipe import UsageError

ASKED = [("What is 20 + 22?", "42"), ("What is 8 times 8?", "64"), ("What is 90 minus 20?", "70")]
FIELDS = {"check": {"kind": "math"}, "source": "school", "tags": ["a", 1], "domain": "math", "language": "en"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"left": 20, "right": 22}}}
Row = dict[str, Any]


def messages(question: str, reply: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]}


def alpaca(question: str, reply: str) -> Row:
    return {"instruction": question, "input": "", "output": reply, "id": 7}


def sharegpt(question: str, reply: str) -> Row:
    return {"id": "x", "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]}


def telechat(question: str, reply: str) -> Row:
    return {"system": "", "dialog": [{"role": "user", "content": question}, {"role": "bot", "content": reply}]}


def pair(question: str, reply: str) -> Row:
    return {"prompt": question, "chosen": reply, "rejected": "The answer is 0."}


FORMATS = [messages, alpaca, sharegpt, telechat, pair]


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(params=FORMATS, ids=lambda make: make.__name__)
def rows(request: pytest.FixtureRequest) -> list[Row]:
    """Three questions; the reply to the last one is wrong."""
    replies = ["The answer is 42.", "The answer is 64.", "The answer is 7."]
    return [
        {**request.param(question, reply), **FIELDS, "answer": answer}
        for (question, answer), reply in zip(ASKED, replies, strict=True)
    ]


def model(tmp_path: Path) -> Scripted:
    """Right with the first sample, wrong with the others."""
    answers = dict(ASKED)
    return Scripted(
        lambda question, _, number: f"The answer is {answers.get(question, '5') if number == 0 else '5'}.",
        tmp_path / "log",
    )


def test_verify_keeps_right_rows_as_they_are(rows: list[Row], tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", rows)
    record = verify_file(source, tmp_path / "out")
    assert rows_of(tmp_path / "out" / "items.jsonl") == rows[:2]
    assert record["counts"]["outcomes"] == {"right": 2, "wrong": 1, "unreadable": 0}
    assert record["counts"]["by"] == {"domain": {"math": 2}}
    (dropped,) = rows_of(tmp_path / "out" / "dropped.jsonl")
    assert dropped["reason"] == "wrong" and dropped["item"] == rows[2]


def test_decontaminate_keeps_clean_rows_as_they_are(rows: list[Row], tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", rows)
    exam = write(tmp_path / "exam.jsonl", [{"question": ASKED[1][0]}])
    record = decontaminate(source, [exam], tmp_path / "out", DecontaminateOptions())
    assert rows_of(tmp_path / "out" / "items.jsonl") == [rows[0], rows[2]]
    assert record["counts"]["dropped"] == {"exact": 1}
    assert rows_of(tmp_path / "out" / "dropped.jsonl")[0]["item"] == rows[1]


def test_an_exam_in_any_format_is_found(rows: list[Row], tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", [messages(*asked) for asked in ASKED])
    exam = write(tmp_path / "exam.jsonl", rows[:1])
    decontaminate(source, [exam], tmp_path / "out", DecontaminateOptions())
    assert len(rows_of(tmp_path / "out" / "items.jsonl")) == 2


def test_reject_and_pairs_read_the_questions_and_keep_other_fields(rows: list[Row], tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", rows)
    options = RejectOptions(SampleOptions(2, (1.0,), 50))
    record = reject(source, tmp_path / "sampled", model(tmp_path), options)
    kept = list(read_items(tmp_path / "sampled" / "items.jsonl"))
    assert record["counts"]["kept"] == 3 and [item.text for item in kept] == [question for question, _ in ASKED]
    assert [item.reply for item in kept] == [f"The answer is {answer}." for _, answer in ASKED]
    files = Files(source, tmp_path / "pairs")
    made = pairs_by_verifier(
        files, model(tmp_path), PairOptions(2, (1.0,)), lambda item, text: verify(item, text).outcome
    )
    paired = rows_of(made.pairs)
    assert [row["prompt"][-1]["content"] for row in paired] == [question for question, _ in ASKED]
    for row in (*rows_of(tmp_path / "sampled" / "items.jsonl"), *paired):
        assert row["source"] == "school" and row["tags"] == ["a", 1]
    assert compare_diversity([source])[0].to_json()["items"] == 3


def test_evolve_reads_the_questions_and_keeps_other_fields(rows: list[Row], tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", rows)
    options = EvolveOptions(1, 0.0, SampleOptions(1, (1.0,), 50))
    evolve(source, tmp_path / "out", model(tmp_path), model(tmp_path), options)
    kept = rows_of(tmp_path / "out" / "items.jsonl")
    assert [row["messages"][0]["content"] for row in kept[:3]] == [question for question, _ in ASKED]
    assert all(row["source"] == "school" and row["tags"] == ["a", 1] for row in kept)


def test_rows_that_are_no_questions_are_counted_and_the_others_done(tmp_path: Path) -> None:
    """Tools that a stage cannot offer to a model, and turns in another order."""
    fields = {"answer": "42", **FIELDS}
    called: list[Row] = [
        {"role": "user", "content": ASKED[0][0]},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "The secret sum is 42."},
        {"role": "assistant", "content": "The answer is 42."},
    ]
    twice = [{"role": "user", "content": "Hello."}, *messages(*ASKED[0])["messages"]]
    offered = {**messages("Which tools are there?", "The answer is 41."), "tools": [CALL]}
    rows = [
        {"messages": called, **fields},
        {"messages": twice, **fields},
        {**offered, **fields},
        {**messages(ASKED[1][0], "The answer is 64."), **FIELDS, "answer": "64"},
    ]
    source = write(tmp_path / "data.jsonl", rows)
    refused = {"tool calls": 2, "order of turns": 1}
    answering = model(tmp_path)
    options = RejectOptions(SampleOptions(2, (1.0,), 50))
    counts = reject(source, tmp_path / "sampled", answering, options)["counts"]
    assert counts["kept"] == 1 and counts["dropped"] == refused
    counts = evolve(source, tmp_path / "evolved", answering, answering, EvolveOptions(1, 0.0))["counts"]
    assert counts["rounds"]["0"] == refused
    files = Files(source, tmp_path / "pairs")
    made = pairs_by_verifier(files, answering, PairOptions(2, (1.0,)), lambda item, text: verify(item, text).outcome)
    assert made.counts["kept"] == 1 and made.counts["dropped"] == refused
    # the last reply can be judged, and the turns can be compared, also those of a tool
    assert verify_file(source, tmp_path / "verified")["counts"]["outcomes"] == {"right": 3, "wrong": 1, "unreadable": 0}
    exam = write(tmp_path / "exam.jsonl", [{"question": "the secret sum is 42"}])
    decontaminate(source, [exam], tmp_path / "clean", DecontaminateOptions())
    assert rows_of(tmp_path / "clean" / "items.jsonl") == rows[1:]


def test_a_pair_is_kept_only_where_its_rejected_answer_is_not_right(tmp_path: Path) -> None:
    rows = [{**pair(*ASKED[0]), **FIELDS, "answer": "42"} for _ in range(2)]
    rows[1]["rejected"] = "The answer is 42."
    record = verify_file(write(tmp_path / "data.jsonl", rows), tmp_path / "out")
    assert rows_of(tmp_path / "out" / "items.jsonl") == rows[:1]
    assert record["counts"]["dropped"] == {"rejected is right": 1}


def test_questions_alone_are_read_in_every_format(tmp_path: Path) -> None:
    question = ASKED[0][0]
    for number, row in enumerate(
        [
            {"messages": [{"role": "user", "content": question}]},
            {"instruction": question},
            {"instruction": question, "output": ""},
            {"conversations": [{"from": "human", "value": question}]},
            {"dialog": [{"role": "user", "content": question}]},
        ]
    ):
        (found,) = read_records(write(tmp_path / f"{number}.jsonl", [row]))
        assert found.item.text == question and found.reply is None and not found.refusal


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"dialog": [{"role": "robot", "content": "a"}]}, "dialog[0].role: must be one of"),
        ({"instruction": 1}, "instruction: must be text, given 1"),
        ({"conversations": []}, "conversations: is empty"),
        ({"chosen": "a", "rejected": "a", "prompt": "b"}, "chosen and rejected are the same"),
        ({**telechat("a", "b"), "level": "hard"}, "level: must be a whole number from 0 on, given 'hard'; rename"),
        ({**alpaca("a", "b"), "check": "math"}, "check: must be an object with a kind, or null, given 'math'"),
        ({"question": "a"}, "match no known format"),
    ],
)
def test_a_wrong_row_is_named_with_file_line_and_field(tmp_path: Path, row: Row, said: str) -> None:
    good = {"dialog": telechat, "instruction": alpaca, "conversations": sharegpt, "chosen": pair}
    before = next((make("c", "d") for field, make in good.items() if field in row), messages("c", "d"))
    source = write(tmp_path / "data.jsonl", [before, row])
    with pytest.raises(UsageError) as caught:
        verify_file(source, tmp_path / "out")
    assert str(caught.value).startswith(f"{source}:2: ") and said in str(caught.value)

"""Conversations in the formats that users have: read by their fields, refused with file and line, written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armillary.post.formats import (
    Conversation,
    read_conversations,
    read_pairs,
    write_conversations,
    write_pairs,
)
from armillary.recipe import UsageError

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 1}}}
TURNS = [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "2"}]
ROWS: dict[str, tuple[Any, list[Any]]] = {
    "messages": ({"id": 7, "messages": TURNS, "answer": "2"}, TURNS),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in ("1+", "1=?")]}, TURNS[1]]},
        TURNS,
    ),
    "alpaca": ({"instruction": "1+1=?", "input": "", "output": "2"}, TURNS),
    "alpaca with input": (
        {"instruction": "Add.", "input": "1, 1", "output": "2"},
        [{"role": "user", "content": "Add.\n1, 1"}, TURNS[1]],
    ),
    "alpaca with history": (
        {"instruction": "Why?", "output": "So.", "system": "Be short.", "history": [["1+1=?", "2"]]},
        [
            {"role": "system", "content": "Be short."}, *TURNS,
            {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."},
        ],
    ),
    "sharegpt": ({"conversations": [{"from": "human", "value": "1+1=?"}, {"from": "gpt", "value": "2"}]}, TURNS),
    "sharegpt with tools": (
        {
            "conversations": [
                {"from": "human", "value": "1+1=?"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1, "b": 1}}'},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "2"},
            ],
            "tools": '[{"type": "function", "function": {"name": "add"}}]',
        },
        [
            TURNS[0], {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "2"}, TURNS[1],
        ],
    ),
    "telechat": (
        {"system": "", "dialog": [{"role": "user", "content": "1+1=?"}, {"role": "bot", "content": "2"}]},
        TURNS,
    ),
    "arguments as text": (
        {"messages": [
            TURNS[0],
            {"role": "assistant", "content": None, "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 1}'}}
            ]},
        ]},
        [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("form", ["lines", "array"])
def test_every_format_is_known_by_its_fields(name: str, form: str, tmp_path: Path) -> None:
    row, turns = ROWS[name]
    text = json.dumps(row, ensure_ascii=False)
    whole = f"\ufeff{text}\r\n\r\n{text}\r\n" if form == "lines" else f"\ufeff [\n{text},\n {text}\n]\n"
    path = tmp_path / "data.json"
    path.write_text(whole, encoding="utf-8", newline="")
    found = list(read_conversations(path))
    assert [list(map(dict, one.messages)) for one in found] == [turns, turns]
    lines = [1, 3] if form == "lines" else [2, 3]
    assert [one.where for one in found] == [f"{path}:{line}" for line in lines]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"messages": []}', "1: messages: is empty"),
        ('{"messages": [{"role": "bot", "content": "x"}]}', r"1: messages\[0\].role: must be one of system, user"),
        ('{"messages": [{"role": "user", "content": 3}]}', r"messages\[0\].content: must be text, given 3"),
        ('{"messages": [{"role": ["user"], "content": "x"}]}', r"messages\[0\].role: must be one of"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "has no user turn"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}', "would learn"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}', "turn 1: only"),
        ('{"prompt": "x", "completion": "y"}', "fields .'prompt', 'completion'. match no known format"),
        ('{"chosen": "x", "rejected": "y"}', "a preference pair"),
        ('{"messages": [], "conversations": []}', "formats messages and sharegpt"),
        ('{"instruction": "x", "output": ""}', "output: is empty"),
        ('{"conversations": [{"from": "who", "value": "x"}]}', r"conversations\[0\].from: must be one of"),
        ('{"dialog": [{"role": ["bot"], "content": "x"}]}', r"dialog\[0\].role: must be one of user, bot"),
        ("[1]", "1: a JSON int, not an object"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        ('{"messages": NaN}', "NaN"),
        ('{"messages": 1, "messages": 2}', "given twice"),
        ('{"messages": [', "1: not JSON"),
        ('[{"messages": [{"role": "user", "content": "x"}]}', "not closed: torn"),
        ('[{"a": 1} {"a": 1}]', "no known format"),
        ('[{"instruction": "a", "output": "b"} {"a": 1}]', "a comma or ] is missing"),
        ('[{"instruction": "a", "output": "b"}] x', "text after the array"),
        ('[{"instruction": "a", "output": tru', "not JSON"),
        ("", "has no rows"),
        ("[]", "has no rows"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=said) as error:
        list(read_conversations(path))
    assert str(error.value).startswith(str(path))


def test_a_file_of_two_formats_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(ROWS[name][0]) for name in ("messages", "alpaca")))
    with pytest.raises(UsageError, match=r"data.jsonl:2: has the fields of format 'alpaca'"):
        list(read_conversations(path))


def test_an_array_is_read_where_its_rows_are_larger_than_a_chunk(tmp_path: Path) -> None:
    rows = [{"instruction": f"浑仪 {n}", "output": "仪" * size} for n, size in enumerate((10, 200_000, 1, 66_000))]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    found = [one.messages[1]["content"] for one in read_conversations(path)]
    assert found == [row["output"] for row in rows]


words = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@st.composite
def conversations(draw: Any) -> Conversation:
    turns: list[dict[str, Any]] = []
    if draw(st.booleans()):
        turns.append({"role": "system", "content": draw(words)})
    for _ in range(draw(st.integers(1, 3))):
        turns += [{"role": "user", "content": draw(words)}, {"role": "assistant", "content": draw(words)}]
    return Conversation(tuple(turns))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(conversations(), min_size=1, max_size=3), st.sampled_from(["messages", "alpaca", "sharegpt", "telechat"])
)
def test_what_is_written_is_read_again(tmp_path: Path, given: list[Conversation], kind: Any) -> None:
    path = tmp_path / f"{kind}.jsonl"
    assert write_conversations(path, given, kind) == len(given)
    found = list(read_conversations(path))
    assert [list(map(dict, one.messages)) for one in found] == [list(one.messages) for one in given]


def test_calls_of_tools_come_back_and_are_refused_where_a_format_has_none(tmp_path: Path) -> None:
    source = tmp_path / "calls.jsonl"
    source.write_text(json.dumps(ROWS["sharegpt with tools"][0]) + "\n")
    given = list(read_conversations(source))
    for kind in ("messages", "sharegpt"):
        write_conversations(tmp_path / "again.jsonl", given, kind)  # type: ignore[arg-type]
        (again,) = read_conversations(tmp_path / "again.jsonl")
        assert (again.messages, again.tools) == (given[0].messages, given[0].tools)
    with pytest.raises(UsageError, match="calls tools, which format 'alpaca' does not have"):
        write_conversations(tmp_path / "no.jsonl", given, "alpaca")
    assert not (tmp_path / "no.jsonl").exists()


ANSWERS = [{"role": "assistant", "content": "2"}], [{"role": "assistant", "content": "3"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TURNS[:1], "chosen": ANSWERS[0], "rejected": ANSWERS[1]},
        {"prompt": "1+1=?", "chosen": "2", "rejected": "3", "score": 1},
        {"chosen": [*TURNS[:1], *ANSWERS[0]], "rejected": [*TURNS[:1], *ANSWERS[1]]},
    ],
)
def test_pairs_are_read_and_written(row: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row))
    (pair,) = read_pairs(path)
    assert (list(pair.prompt), list(pair.chosen), list(pair.rejected)) == (TURNS[:1], *ANSWERS)
    assert write_pairs(path, [pair, pair]) == 2
    assert [(one.prompt, one.chosen, one.rejected) for one in read_pairs(path)] == [
        (pair.prompt, pair.chosen, pair.rejected)
    ] * 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x", "chosen": "2", "rejected": "2"}, "are the same"),
        ({"prompt": "x", "chosen": "2"}, "no fields chosen and rejected"),
        ({"chosen": "2", "rejected": "3"}, "there is no prompt"),
        ({"prompt": TURNS, "chosen": "2", "rejected": "3"}, "must not end with a turn of the assistant"),
        ({"prompt": "x", "chosen": TURNS[:1], "rejected": "3"}, "chosen: must begin and end"),
    ],
)
def test_a_wrong_pair_is_named(row: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n" + json.dumps(row))
    with pytest.raises(UsageError, match=said) as error:
        list(read_pairs(path))
    assert str(error.value).startswith(f"{path}:2: ")

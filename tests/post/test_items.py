"""Items: their ids, what a line may be, and how a wrong line is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.generate import Message
from armillary.post import Item, read_items, to_line
from armillary.recipe import UsageError

QUESTION = (Message("user", "1+1=?"),)
GOOD = {"messages": [{"role": "user", "content": "1+1=?"}]}


def test_an_id_is_of_the_content_alone() -> None:
    item = Item(QUESTION, "2", {"kind": "math"}, family="sum", level=1)
    assert item.id == Item(QUESTION, "2", {"kind": "math"}, family="other", notes={"rate": 0.5}).id
    assert (
        len({item.id, Item(QUESTION, "3", {"kind": "math"}).id, Item(QUESTION, "2").id, item.with_reply("2").id}) == 4
    )
    assert item.id == "ce6c677f929f7b12a5870167d1156150"  # the same in every version


def test_an_item_with_its_reply() -> None:
    item = Item((Message("system", "Be brief."), *QUESTION), "2", {"kind": "math"})
    answered = item.with_reply("It is 2.")
    assert (item.reply, answered.reply, answered.text) == (None, "It is 2.", "1+1=?")
    assert answered.question == item.messages == answered.with_reply(None).messages
    harder = item.derived("evolve", messages=(Message("user", "1+1+1=?"),), answer="3", origin={"round": 2})
    assert harder.origin == {"stage": "evolve", "parents": [item.id], "round": 2}
    assert harder.id not in (item.id, "")


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=4),
    st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(0, 9),
)
def test_an_item_survives_its_line(turns: list[str], answer: str | None, level: int) -> None:
    roles = ("user", "assistant")
    item = Item(
        tuple(Message(roles[place % 2], turn) for place, turn in enumerate(turns)),  # type: ignore[arg-type]
        answer,
        {"kind": "math", "x": [1]},
        level=level,
        notes={"a": {"b": None}},
    )
    assert Item.from_json(json.loads(to_line(item.to_json()))) == item


def test_what_users_write_is_read(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n  \n" + json.dumps({**GOOD, "id": "mine"}).encode()
    )
    first, second = read_items(path)
    assert first == Item(QUESTION) and second.id == "mine"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"messages": [', "not JSON (the last line, without a line end: torn?)"),
        ("[]", "a JSON list, not an object"),
        ('{"message": []}', "given None; is 'message' meant?"),
        ("{}", "messages: must be a list of objects"),
        ('{"messages": []}', "messages: must be a list of objects"),
        ('{"messages": [{"role": "user"}]}', "messages[0]: must be an object with role and content only"),
        ('{"messages": [{"role": "human", "content": "a"}]}', "messages[0].role: must be one of system, user"),
        ('{"messages": [{"role": "user", "content": " "}]}', "messages[0].content: is empty"),
        ('{"messages": [{"role": "user", "content": 1}]}', "messages[0].content: must be text, given 1"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "messages[0].role: must be user here"),
        ('{"messages": [{"role": "system", "content": "a"}]}', "messages: has no user turn"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "contains a lone surrogate"),
        (json.dumps({**GOOD, "level": True}), "level: must be a whole number from 0 on, given True"),
        (json.dumps({**GOOD, "level": -1}), "level: must be a whole number"),
        (json.dumps({**GOOD, "answer": 2}), "answer: must be text or null, given 2"),
        (json.dumps({**GOOD, "check": {}}), "check: must have a kind"),
        (json.dumps({**GOOD, "origin": []}), "origin: must be an object, given []"),
        (json.dumps({**GOOD, "notes": {"a": float("nan")}}), "NaN is not a JSON value"),
        ('{"id": "a", "id": "b"}', "field 'id' is given twice"),
        ("[" * 100000, "not JSON"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + line)
    with pytest.raises(UsageError) as caught:
        list(read_items(path))
    assert str(caught.value).startswith(f"{path}:3: ") and problem in str(caught.value)


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        list(read_items(tmp_path / "none.jsonl"))
    (tmp_path / "gbk.jsonl").write_bytes('{"id": "好"}'.encode("gbk"))
    with pytest.raises(UsageError, match=r"gbk.jsonl:1: not JSON"):
        list(read_items(tmp_path / "gbk.jsonl"))

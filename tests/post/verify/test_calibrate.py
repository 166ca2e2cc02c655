"""Measured error rates, and the verification of a file."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from armillary.generate import Message
from armillary.post import Item, read_items, to_line
from armillary.post.verify import calibrate, labelled_cases, rule_names, share_interval, verify, verify_file
from armillary.post.verify.form_cases import rule_cases
from armillary.post.verify.gym_cases import gym_cases
from armillary.post.verify.registry import judge_task
from armillary.recipe import UsageError


def test_error_rates_on_labelled_replies() -> None:
    """Without code and formulas, which need subprocesses; the slow test covers them."""
    cases = [case for case in labelled_cases(4) if case.kind not in ("code", "formula")]
    wrongly = [case for case in cases if (judge_task(case.task, case.reply).outcome == "right") != case.right]
    assert len(cases) > 1500 and {case.kind for case in cases} == {"math", "text", "list", "choice", "rules", "all"}
    assert {case.mutation.partition(":")[0] for case in cases if case.kind == "rules"} == set(rule_names())
    assert [case for case in wrongly if not case.right] == [], "a wrong reply is accepted"
    assert len([case for case in wrongly if case.right]) <= 2, wrongly


@pytest.mark.slow
def test_the_whole_calibration() -> None:
    found = calibrate(10)
    kinds = {"math", "text", "list", "choice", "code", "formula", "rules", "all", "gym"} - set(found.missing)
    assert {rates.kind for rates in found.kinds} == kinds
    for rates in found.kinds:
        assert rates.kind == "gym" or rates.false_accepts == 0, found.errors
        assert rates.reject_rate is not None and rates.reject_rate.value < 0.1, rates
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["kinds"][0]["false_accept"]["count"] == 0


GYM = ("chain_sum", "game_of_life_halting", "puzzle24", "coin_flip", "sentence_reordering", "sudoku", "spell_backward")


@pytest.mark.slow
def test_scorers_of_reasoning_gym_that_accept_wrong_answers_or_reject_known_ones() -> None:
    pytest.importorskip("reasoning_gym", reason="needs the extra teach")
    cases = list(gym_cases(2, names=(*GYM, "rearc")))
    wrongly = [case for case in cases if (judge_task(case.task, case.reply).outcome == "right") != case.right]
    assert len(cases) > 100 and wrongly == []


def test_without_reasoning_gym_its_kind_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("armillary.post.verify.calibrate")  # the package has a function of this name
    monkeypatch.setattr(module, "gym_installed", lambda: False)
    monkeypatch.setattr(module, "labelled_cases", lambda n, seed: rule_cases(1))
    found = calibrate(1)
    assert found.missing == ("gym",) and [rates.kind for rates in found.kinds] == ["rules"]
    assert found.to_json()["missing"] == ["gym"]


def test_wilsons_interval() -> None:
    """Wilson 1927; the numbers are those of Newcombe 1998, table I: 81 of 263, and 0 of 20."""
    found = share_interval(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert share_interval(0, 20).low == 0 and round(share_interval(0, 20).high, 4) == 0.1611


def test_a_file_is_verified(tmp_path: Path) -> None:
    question = Item((Message("user", "2+3=?"),), "5", {"kind": "math"}, "math")
    unchecked = Item((Message("user", "Hi"), Message("assistant", "Hello")))
    items = [
        question.with_reply("The answer is 5."),
        question.with_reply("The answer is 6."),
        question.with_reply("Who can say?\nNot I."),
        question,
        unchecked,
        question.with_reply("答案是五。"),
    ]
    data = tmp_path / "items.jsonl"
    data.write_bytes(b"".join(to_line(item.to_json()) for item in items))
    counts = verify_file(data, tmp_path / "out")["counts"]
    assert counts["dropped"] == {"no check": 1, "no reply": 1, "unreadable": 1, "wrong": 1}
    assert counts["outcomes"] == {"right": 2, "wrong": 1, "unreadable": 1}
    assert counts["verified"]["share"] == 0.5 and counts["verified"]["of"] == 4
    assert [item.reply for item in read_items(tmp_path / "out/items.jsonl")] == ["The answer is 5.", "答案是五。"]
    rows = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rows] == ["wrong", "unreadable", "no reply", "no check"]
    assert rows[0]["found"] == "6" and rows[0]["item"]["id"] == items[1].id
    assert verify_file(data, tmp_path / "out")["counts"] == counts


def test_a_file_without_items_or_with_a_wrong_check(tmp_path: Path) -> None:
    data = tmp_path / "items.jsonl"
    data.write_text("\n")
    with pytest.raises(UsageError, match="has no items"):
        verify_file(data, tmp_path / "empty")
    item = Item((Message("user", "2+3=?"), Message("assistant", "5")), "5", {"kind": "maths"})
    data.write_bytes(to_line(item.to_json()))
    with pytest.raises(UsageError, match=f"item {item.id}: check.kind: no verifier 'maths'"):
        verify_file(data, tmp_path / "wrong")
    with pytest.raises(UsageError, match="has no check"):
        verify(Item((Message("user", "Hi"),)), "5")

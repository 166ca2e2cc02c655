"""Verifiers: what is right, wrong and unreadable, in the forms in which people and models answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.generate import Message
from armillary.post import Item
from armillary.post.verify import (
    Task,
    final_answer,
    judge_task,
    register_verifier,
    registry,
    rule_names,
    symbolic,
    verifier_kinds,
    verify,
    verify_all,
)
from armillary.recipe import UsageError


def outcome(check: dict[str, Any], gold: str | None, reply: str) -> str:
    return judge_task(Task(check, gold, ""), reply).outcome


M: dict[str, Any] = {"kind": "math"}


@pytest.mark.parametrize(
    ("gold", "reply", "wanted"),
    [
        ("1/2", "The answer is 0.5.", "right"),
        ("1/2", "答案是50%。", "right"),
        ("1/2", r"So \boxed{\frac{1}{2}}", "right"),
        ("1/2", r"答案是\(\dfrac12\)。", "right"),
        ("1/2", "答案：二分之一", "right"),
        ("1/2", "The answer is １／２", "right"),
        ("1/2", "The answer is one half.", "right"),
        ("1/2", "The answer is 1/2 (= 0.5 = 50%).", "right"),
        ("1234", "#### 1,234", "right"),
        ("1234", "答案是１２３４。", "right"),
        ("1234", r"\boxed{1{,}234}", "right"),
        ("1234", "The answer is 1 234.", "right"),
        ("1234", "The answer is 12,34.", "unreadable"),
        ("12", "The answer is -12", "wrong"),
        ("-12", "The answer is −12.", "right"),
        ("-12", "答案是负十二。", "right"),
        ("105", "答案是一百零五。", "right"),
        ("12000", "答案是1.2万。", "right"),
        ("42", "The answer is forty-two.", "right"),
        ("30000", r"The answer is 3 \times 10^4.", "right"),
        ("1.5", r"\boxed{1\frac{1}{2}}", "right"),
        ("5", "答：她还剩5个苹果。", "right"),
        ("5", "所以她还剩五个苹果。", "right"),
        ("5", "So she has 5 apples left.", "right"),
        ("5", "The answer is x = 5.", "right"),
        ("5", "**Answer:** 5", "right"),
        ("5", "2 + 3 = 5\nThe answer is: **5**", "right"),
        ("5", "$5$", "right"),
        ("5", "5", "right"),
        ("1/3", "The answer is 0.333333.", "right"),
        ("1/3", "The answer is 0.33.", "wrong"),
        ("42", "First 43. The answer is 43. Wait, the answer is 42.", "right"),
        ("42", "The answer is 42. Wait, the answer is 43.", "wrong"),
        ("42", r"\boxed{41}. No: the answer is 42.", "right"),
        # What is mentioned and not given, hedged, taken back, or not carried out.
        ("42", "I looked at 42 and then went home.\nIt was late.", "unreadable"),
        ("42", "The answer is 42 or 43", "unreadable"),
        ("42", "The answer is not 42.", "unreadable"),
        ("42", "答案不是42。", "unreadable"),
        ("42", "The answer is probably 42.", "unreadable"),
        ("42", "The answer is 40 + 2", "unreadable"),
        ("42", "The answer is 42 and 43", "unreadable"),
        ("42", r"\boxed{42", "unreadable"),
        ("3", "The answer is 3/0", "unreadable"),
        ("3", "The answer is:", "unreadable"),
        ("3", " \n", "unreadable"),
        # Formulas.
        (r"\frac{\sqrt{2}}{2}", r"The answer is $\frac{1}{\sqrt{2}}$.", "right"),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", "right"),
        ("x+1", "The answer is 1+x.", "right"),
        ("x+1", "The answer is x-1.", "wrong"),
    ],
)
def test_mathematics(gold: str, reply: str, wanted: str) -> None:
    assert outcome(M, gold, reply) == wanted


@pytest.mark.parametrize(
    ("unit", "gold", "reply", "wanted"),
    [
        ("km", "3 km", "The answer is 3000 m.", "right"),
        ("km", "3", "答案是3千米。", "right"),
        ("km", "3", "答案是3公里。", "right"),
        ("km", "3", "The answer is 3", "right"),
        ("km", "3", "答案是3米。", "wrong"),
        ("km", "3", "答案是3千克。", "unreadable"),
        ("min", "90", "The answer is 1 hour and 30 minutes.", "right"),
        ("min", "90", "答案是1小时30分钟。", "right"),
        ("min", "90", "The answer is 30 minutes and 1 hour and 2 minutes.", "unreadable"),
        ("yuan", "12.5", "答案是12元5角。", "right"),
        ("yuan", "12.5", "答案是￥12.50。", "right"),
        ("yuan", "12.5", "The answer is $12.50.", "unreadable"),
        ("dollar", "5", "The answer is $5.00.", "right"),
        ("%", "50%", "The answer is 50", "right"),
        ("%", "50%", "The answer is 50 percent.", "right"),
        ("%", "50%", "The answer is 0.5", "wrong"),
        ("km/h", "60", "答案是每小时60千米。", "unreadable"),
        ("km/h", "60", "答案是60千米/时。", "right"),
    ],
)
def test_quantities(unit: str, gold: str, reply: str, wanted: str) -> None:
    assert outcome({"kind": "math", "unit": unit}, gold, reply) == wanted


@pytest.mark.parametrize(
    ("check", "gold", "reply", "wanted"),
    [
        ({"kind": "math", "places": 2}, "3.14159", "The answer is 3.14.", "right"),
        ({"kind": "math", "places": 2}, "3.14159", "The answer is 3.15.", "wrong"),
        ({"kind": "choice"}, "B", "The answer is (B).", "right"),
        ({"kind": "choice"}, "B", "选B", "right"),
        ({"kind": "choice"}, "B", "答案是 Ｂ。", "right"),
        ({"kind": "choice"}, "B", "A or B", "unreadable"),
        ({"kind": "choice"}, "B", "The answer is A.", "wrong"),
        ({"kind": "choice", "options": {"A": "3", "B": "4"}}, "B", "The answer is 4.", "right"),
        ({"kind": "choice", "options": {"A": "3", "B": "4"}}, "B", "The answer is C.", "unreadable"),
        ({"kind": "text", "among": ["yes", "no"]}, "yes", "Answer: Yes, he is.", "right"),
        ({"kind": "text", "among": ["yes", "no"]}, "yes", "Answer: yes or no.", "unreadable"),
        ({"kind": "text", "among": ["骗子", "老实人"]}, "骗子", "答案是骗子。", "right"),
        ({"kind": "text", "accept": ["周一"]}, "星期一", "答案是周一。", "right"),
        ({"kind": "text"}, "11:05", "答案是11：05。", "right"),
        ({"kind": "list", "among": ["Ann", "Bob"]}, "Ann, Bob", "The answer is Ann > Bob.", "right"),
        ({"kind": "list", "among": ["Ann", "Bob"]}, "Ann, Bob", "The answer is Bob, then Ann.", "wrong"),
        ({"kind": "list", "ordered": False}, "1, 2, 3", "The answer is {3, 2, 1}.", "right"),
        ({"kind": "list", "ordered": False}, "1, 2, 3", "The answer is {3, 2, 1, 1}.", "wrong"),
        ({"kind": "list"}, "1, 2, 3", "The answer is [3, 2, 1].", "wrong"),
        ({"kind": "list"}, "none", "答案是空集。", "right"),
        ({"kind": "list"}, "1", "答案是空集。", "wrong"),
    ],
)
def test_words_and_lists(check: dict[str, Any], gold: str, reply: str, wanted: str) -> None:
    assert outcome(check, gold, reply) == wanted


CODE = {"kind": "code", "entry": "f", "tests": "assert f(2) == 4", "cpu_s": 1}


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("Here:\n```python\ndef f(x):\n    return x * x\n```\nDone.", "right"),
        ("f = lambda x: x + x", "right"),
        ("```python\ndef f(x):\n    return x\n```", "wrong"),
        ("```python\ndef f(x):\n    raise SystemExit(0)\n```", "wrong"),
        pytest.param("def f(x):\n    while True: pass", "wrong", marks=pytest.mark.slow),
        ("```python\ndef g(x):\n    return 4\n```", "unreadable"),
        ("The function squares x.", "unreadable"),
    ],
)
def test_code_runs_in_the_sandbox(reply: str, wanted: str) -> None:
    assert outcome(CODE, None, reply) == wanted


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        ({"rule": "words", "least": 2, "most": 3}, "one two 三", "one"),
        ({"rule": "characters", "most": 4}, "一 二三四", "12345"),
        ({"rule": "sentences", "least": 2, "most": 2}, "One. 二。", "One, two."),
        ({"rule": "paragraphs", "least": 2}, "a\n\nb", "a\nb"),
        ({"rule": "lines", "most": 2}, "a\n\nb", "a\nb\nc"),
        ({"rule": "bullets", "least": 2}, "- a\n1. b", "a - b"),
        ({"rule": "includes", "words": ["cat", "猫"]}, "The Cat: 大猫", "category 猫"),
        ({"rule": "excludes", "words": ["cat"]}, "category", "a cat."),
        ({"rule": "frequency", "word": "a", "count": 2}, "a b a", "a abc"),
        ({"rule": "starts", "text": "Dear"}, "Dear all", "To Dear"),
        ({"rule": "ends", "text": "Bye."}, "So. Bye.", "Bye. So."),
        ({"rule": "json"}, '```json\n{"a": [1]}\n```', "{a: 1}"),
        ({"rule": "json_keys", "keys": ["a", "b"]}, '{"b": 1, "a": 2}', '{"a": 1}'),
        ({"rule": "no_commas"}, "a b", "一，二"),
        ({"rule": "upper_case"}, "ABC 1", "ABc"),
        ({"rule": "lower_case"}, "abc 1", "123"),
        ({"rule": "title"}, "《题》内容", "题"),
        ({"rule": "quoted"}, '"all of it"', '"not" all'),
        ({"rule": "chinese"}, "这是 abc 中文回答", "English 字"),
        ({"rule": "english"}, "only English", "only 英文"),
    ],
)
def test_rules_of_form(rule: dict[str, Any], right: str, wrong: str) -> None:
    check = {"kind": "rules", "rules": [rule]}
    assert (outcome(check, None, right), outcome(check, None, wrong)) == ("right", "wrong")


def test_every_rule_has_a_case() -> None:
    (marker,) = [one for one in test_rules_of_form.pytestmark if one.name == "parametrize"]
    assert {rule["rule"] for rule, *_ in marker.args[1]} == set(rule_names())


def test_answer_and_form_at_once() -> None:
    check = {"kind": "all", "checks": [M, {"kind": "rules", "rules": [{"rule": "words", "most": 4}]}]}
    assert outcome(check, "5", "The answer is 5") == "right"
    assert outcome(check, "5", "The answer is 6") == "wrong"
    assert outcome(check, "5", "I think that the answer is 5") == "wrong"
    assert outcome(check, "5", "I do not know") == "unreadable"


@pytest.mark.slow
def test_a_task_of_reasoning_gym() -> None:
    gym = pytest.importorskip("reasoning_gym")
    entry = gym.create_dataset("chain_sum", size=1, seed=1)[0]
    check = {"kind": "gym", "dataset": "chain_sum", "entry": entry}
    assert outcome(check, None, f"The answer is {entry['answer']}.") == "right"
    assert outcome(check, None, "The answer is 12345.") == "wrong"
    assert outcome(check, None, "I cannot do this, and I will explain at length why.\nIt is too hard.") == "unreadable"
    with pytest.raises(UsageError, match="no data set 'chain_sums'"):
        outcome({**check, "dataset": "chain_sums"}, None, "1")


def test_one_verdict_for_each_reply_in_order() -> None:
    item = Item((Message("user", "2+3=?"),), "5", M)
    replies = ["", "The answer is 5.", None, "Who can say?\nNot I.", "The answer is 6.", "\ud800"]
    found = [verdict.outcome for verdict in verify_all((item, reply) for reply in replies)]
    assert found == ["unreadable", "right", "unreadable", "unreadable", "wrong", "unreadable"]


@pytest.mark.parametrize(
    ("check", "answer", "problem"),
    [
        (None, "5", "has no check"),
        ({"kind": "maths"}, "5", "no verifier 'maths'; nearest: 'math'"),
        ({"kind": "math", "units": "km"}, "5", "check.units: a check of the kind 'math' has no such parameter"),
        ({"kind": "math", "unit": "parsec"}, "5", "check.unit: no unit 'parsec'"),
        ({"kind": "math", "places": -1}, "5", "check.places: must be a whole number"),
        ({"kind": "math"}, None, "answer: a check of the kind 'math' needs the right answer"),
        ({"kind": "code", "entry": "f"}, None, "check.tests: must be non-empty text"),
        ({"kind": "code", "entry": "f", "tests": "1", "cpu_s": 0}, None, "check.cpu_s: must be a number of seconds"),
        ({"kind": "text", "among": [1]}, "a", "check.among: must be a list of texts"),
        ({"kind": "rules", "rules": []}, None, "check.rules: must be a non-empty list"),
        ({"kind": "rules", "rules": [{"rule": "word"}]}, None, "check.rules[0]: no rule 'word'"),
        ({"kind": "rules", "rules": [{"rule": "words"}]}, None, "least, most or both, given none"),
        ({"kind": "rules", "rules": [{"rule": "starts", "text": 1}]}, None, "text: must be str, given 1"),
        ({"kind": "all", "checks": [1]}, None, "check.checks: must be a non-empty list of checks"),
    ],
)
def test_a_check_that_cannot_be_used_is_named(check: dict[str, Any] | None, answer: str | None, problem: str) -> None:
    item = Item((Message("user", "?"),), answer, check)
    with pytest.raises(UsageError) as caught:
        verify(item, "The answer is 5.")
    assert str(caught.value).startswith(f"item {item.id}: ") and problem in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["The answer is ", "答案是", "\\boxed{", "So ", ""]),
    st.text(
        st.sampled_from(list("0123456789.,/-+%=$\\{}()[] frac一二百零分之点万eE^xor，。:：\n\ud800½²")), max_size=30
    ),
)
def test_any_reply_gets_a_verdict(before: str, text: str) -> None:
    """With checks that need no subprocess."""
    for check, gold in (
        (M, "5"),
        ({"kind": "math", "unit": "km"}, "5"),
        ({"kind": "choice"}, "A"),
        ({"kind": "text", "among": ["一", "二"]}, "一"),
        ({"kind": "list"}, "1, 2"),
        ({"kind": "rules", "rules": [{"rule": "words", "most": 3}]}, None),
    ):
        assert outcome(check, gold, before + text) in ("right", "wrong", "unreadable")


@pytest.mark.parametrize("part", ["1", "1,", "1 ", "一", "百", "one and ", " ", "(", "\\frac{1}", "$", "answer is "])
def test_a_reply_without_an_end_is_read_in_no_time(part: str) -> None:
    """Each of these took minutes where a pattern backtracked over all of it."""
    for check in (
        M,
        {"kind": "text"},
        {"kind": "list"},
        {"kind": "rules", "rules": [{"rule": "sentences", "most": 9}]},
    ):
        assert outcome(check, "5", "The answer is " + part * (20_000 // len(part))) != ""


@pytest.mark.slow
def test_a_formula_that_takes_too_long_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed; the next formula gets a new one."""
    monkeypatch.setattr(symbolic, "TIME_LIMIT_S", 0.0)
    assert symbolic.same_formula("x+1", "1+x") is None
    monkeypatch.undo()
    assert symbolic.same_formula("x+1", "1+x") is True
    assert symbolic.same_formula("x+1", "x" * 1000) is None


def test_a_verifier_can_be_added() -> None:
    try:

        @register_verifier("shout")
        def loud(task: Task, reply: str) -> registry.Verdict:
            return registry.Verdict("right" if reply.isupper() else "wrong")

        assert "shout" in verifier_kinds() and outcome({"kind": "shout"}, None, "YES") == "right"
    finally:
        registry._VERIFIERS.pop("shout")


def test_the_final_answer_in_a_reply() -> None:
    assert final_answer("3 + 4 = 7\nThe answer is 7.") == "7"
    assert final_answer("The answer is 3.5. That was easy.") == "3.5"
    assert final_answer("The final answer to the question is: $\\boxed{3}$") == "3"
    assert final_answer("最终答案为：\n3") == "3"
    assert final_answer("It has 3 legs.\nI like it.") is None

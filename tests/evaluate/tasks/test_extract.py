"""The audit's extractors read what a reader would take as the answer."""

from __future__ import annotations

import pytest

from armillary.evaluate.tasks.extract import CODE, MATH, NUMBER, SHORT, Extractor


@pytest.mark.parametrize(
    ("extractor", "text", "gold", "answer"),
    [
        (NUMBER, "16 - 3 = 13, 13 * 2 = $26. The answer is 26 dollars for 2 days.", "26", "26"),
        (NUMBER, "She has 1,234.50 left", "0", "1234.50"),
        (NUMBER, "#### -7", "0", "-7"),
        (NUMBER, "所以答案是 42。共 3 步", "0", "42"),
        (NUMBER, "**Final answer: 12**\n\nQ: another 13", "0", "12"),
        (NUMBER, "no number", "0", None),
        (SHORT, "So the answer is (B).", "(A)", "(B)"),
        (SHORT, "The answer is B. A bat", "(A)", "B"),
        (SHORT, "Options (A) and (C) fail, hence (B)", "(A)", "(B)"),
        (SHORT, "A bat is here", "(A)", None),
        (SHORT, "It is not valid. The answer is invalid.", "valid", "invalid"),
        (SHORT, "Yes, he did", "No", "Yes"),
        (SHORT, "sum\nSo the answer is 24.", "25", "24"),
        (SHORT, "The answer is apple bee cat.", "apple bee", "apple bee cat"),
        (MATH, "thus \\boxed{\\frac{1}{2}} and so on", "", "\\frac{1}{2}"),
        (MATH, "Final Answer: The final answer is $x+1$. I hope it is correct.", "", "x+1"),
        (MATH, "so $a$ is $7$", "", "7"),
        (MATH, "unknown \\boxed{1", "", None),
        (CODE, "Here:\n```python\ndef f():\n    return 1\n```\nDone", "", "def f():\n    return 1\n"),
        (CODE, "def f():\n    return 1\nThis is prose here", "", "def f():\n    return 1"),
        (CODE, "This is prose here", "", None),
    ],
)
def test_an_answer_is_read(extractor: Extractor, text: str, gold: str, answer: str | None) -> None:
    assert extractor.read(text, gold) == answer


@pytest.mark.parametrize(
    ("extractor", "first", "second", "agree"),
    [
        (NUMBER, "18.", "18", True),
        (NUMBER, "1,000", "1000.0", True),
        (NUMBER, "18", "81", False),
        (NUMBER, "[invalid]", None, True),
        (NUMBER, "[invalid]", "3", False),
        (SHORT, "(B)", "B", True),
        (SHORT, "True", "true.", True),
        (SHORT, "valid", "invalid", False),
        (MATH, "\\dfrac12", "\\frac{1}{2}", True),
        (MATH, "\\left( 3, x \\right)", "(3,x)", True),
        (MATH, "12", "21", False),
        (CODE, "def f(): return 1", "def f():\n    return 1", True),
        (CODE, "def f(): return 1", "def f(): return 2", False),
        (CODE, "def f(:", "def f(", False),
    ],
)
def test_equal_answers_agree(extractor: Extractor, first: str, second: str | None, agree: bool) -> None:
    assert extractor.agree(first, second) is agree


@pytest.mark.parametrize("extractor", [NUMBER, SHORT, MATH, CODE])
def test_a_long_text_is_read_in_time(extractor: Extractor) -> None:
    for text in ("answer is " * 5_000, "\\boxed{" * 5_000, "(" * 5_000, "$1" * 5_000, "x = 1\n" * 300 + "(\n" * 300):
        extractor.read(text, "(A)")

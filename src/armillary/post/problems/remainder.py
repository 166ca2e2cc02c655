"""Equal sharing: how many each gets, how many are left, and remainders of a division."""

from __future__ import annotations

import random
import re

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill, language_of, numbers_in

_SHARE = {
    "en": (
        "{a} candies are shared equally among {b} children.",
        "A teacher shares {a} candies equally among {b} children.",
    ),
    "zh": ("把{a}颗糖平均分给{b}个小朋友。", "老师有{a}颗糖，平均分给{b}个小朋友。"),
}
_LEFT = {
    "en": ("How many candies are left over?", "How many candies remain?"),
    "zh": ("还剩几颗糖？", "最后剩下多少颗糖？"),
}
_EACH = {
    "en": ("How many candies does each child get?", "How many whole candies does every child receive?"),
    "zh": ("每个小朋友分到几颗糖？", "每人得到多少颗糖？"),
}
_BARE = {
    "en": ("What is the remainder when {a} is divided by {b}?", "Divide {a} by {b}. What is the remainder?"),
    "zh": ("{a}除以{b}的余数是多少？", "求{a}除以{b}的余数。"),
}


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 shares up to 40, 2 up to 150, 3 asks for the remainder of a division up to 2,000."""
    b = rng.randint(3, 9 if level < 3 else 25)
    a = rng.randint(b + 1, (40, 150, 2000)[level - 1])
    quotient, rest = divmod(a, b)
    if level == 3:
        text, kind, answer = fill(rng, _BARE[language], a=a, b=b), "rest", rest
    else:
        kind = rng.choice(("rest", "each"))
        ask = _LEFT if kind == "rest" else _EACH
        space = " " if language == "en" else ""
        text = fill(rng, _SHARE[language], a=a, b=b) + space + fill(rng, ask[language])
        answer = rest if kind == "rest" else quotient
    steps = (f"{b} × {quotient} = {b * quotient}", f"{a} - {b * quotient} = {rest}")
    return Problem(text, str(answer), {"kind": "math"}, steps[: 1 if kind == "each" else 2], [a, b, kind])


def read(text: str) -> str | None:
    """Counts down by the divisor; the question's words decide what is asked."""
    found = [int(number) for number in numbers_in(text) if number.denominator == 1]
    if len(found) != 2 or not 0 < found[1] < found[0] or re.search(r"\b(?:more|another|lost|ate)\b|又|再", text):
        return None
    if language_of(text) == "en":
        left = re.search(r"left|remain|remainder|leftover", text, re.I)
        each = re.search(r"how many[^.?]*\b(?:each|every)\b[^.?]*\b(?:get|gets|receive|receives|have)\b", text, re.I)
        divided = re.search(r"equally|evenly|divid|shar(?:e|ing)", text, re.I)
    else:
        left, each = re.search(r"剩|余", text), re.search(r"每(?:个|位|人)[^。]*(?:几|多少)", text)
        divided = re.search(r"平均|除以|平分", text)
    if not divided or bool(left) == bool(each):
        return None
    rest, times = found[0], 0
    while rest >= found[1]:
        rest, times = rest - found[1], times + 1
    return str(rest if left else times)


register_family(Family("remainder", "math", make, read))

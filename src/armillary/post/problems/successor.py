"""The whole number that comes right after or right before another one."""

from __future__ import annotations

import random
import re

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill

_ASK = {
    "en": {
        "after": ("Which number comes right after {n}?", "Which whole number follows {n}?", "What is {n} plus one?"),
        "before": (
            "Which number comes right before {n}?",
            "Which whole number precedes {n}?",
            "What is {n} minus one?",
        ),
    },
    "zh": {
        "after": ("{n}后面的一个数是几？", "紧跟在{n}之后的整数是多少？", "比{n}大1的数是多少？"),
        "before": ("{n}前面的一个数是几？", "紧挨在{n}之前的整数是多少？", "比{n}小1的数是多少？"),
    },
}
_AFTER = re.compile(
    r"\bright after\b|\bimmediately after\b|\bfollows\b|\bplus (?:one|1)\b|\bone more than\b|后面的一个|"
    r"之后的(?:一个)?整数|大1的",
    re.IGNORECASE,
)
_BEFORE = re.compile(
    r"\bright before\b|\bimmediately before\b|\bprecedes\b|\bminus (?:one|1)\b|\bone less than\b|前面的一个|"
    r"之前的(?:一个)?整数|小1的",
    re.IGNORECASE,
)
_OTHER = re.compile(r"\beven\b|\bodd\b|\bprime\b|\bmultiple|\bnot\b|\btwo\b|偶数|奇数|质数|倍数|不是", re.IGNORECASE)


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 asks for the number after one below 1,000, 2 and 3 also for that before, below 10^5 and 10^7."""
    n = rng.randint(10, (999, 99_999, 9_999_999)[level - 1])
    where = "after" if level == 1 else rng.choice(("after", "before"))
    answer = n + 1 if where == "after" else n - 1
    return Problem(fill(rng, _ASK[language][where], n=n), str(answer), {"kind": "math"}, (), [n, where])


def read(text: str) -> str | None:
    """Turns the digits over from the last one on, as a counter does."""
    plain = re.sub(r"(?<=[大小])1(?=的)|(?<=plus )1\b|(?<=minus )1\b", "", text)
    found = re.findall(r"(?<![\d.,-])\d+(?![.,]?\d)", plain)
    after, before = _AFTER.search(text), _BEFORE.search(text)
    if len(found) != 1 or len(re.findall(r"\d+", plain)) != 1 or bool(after) == bool(before) or _OTHER.search(text):
        return None
    digits, place = [int(digit) for digit in found[0]], len(found[0]) - 1
    full, step = (9, 1) if after else (0, -1)
    while place >= 0 and digits[place] == full:
        digits[place] = 9 - full
        place -= 1
    if place < 0:
        return "1" + "0" * len(digits) if after else None
    digits[place] += step
    return "".join(map(str, digits)).lstrip("0") or "0"


register_family(Family("successor", "math", make, read))

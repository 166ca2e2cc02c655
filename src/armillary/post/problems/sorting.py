"""A row of numbers, to be put in order from the smallest or from the largest."""

from __future__ import annotations

import random
import re

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill

_ASK = {
    "en": {
        False: ("Sort these numbers from smallest to largest: {numbers}.", "Put in ascending order: {numbers}."),
        True: ("Sort these numbers from largest to smallest: {numbers}.", "Put in descending order: {numbers}."),
    },
    "zh": {
        False: ("把这些数从小到大排列：{numbers}。", "请按升序写出：{numbers}。"),
        True: ("把这些数从大到小排列：{numbers}。", "请按降序写出：{numbers}。"),
    },
}
_UP = re.compile(
    r"\bascending\b|\bincreasing\b|from (?:the )?(?:smallest|lowest|least) to|smallest first|从小到大|由小到大|升序",
    re.IGNORECASE,
)
_DOWN = re.compile(
    r"\bdescending\b|\bdecreasing\b|from (?:the )?(?:largest|greatest|highest|biggest) to|largest first|从大到小|"
    r"由大到小|降序",
    re.IGNORECASE,
)
_OTHER = re.compile(r"\babsolute\b|\bdigit|\bexcept\b|\bonly\b|\bnot\b|绝对值|数字之和|除了|只写|不要", re.IGNORECASE)


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 has three numbers of one digit, smallest first; 2 four below 100, 3 five to seven below 1,000."""
    count, below = ((3, 10), (4, 100), (rng.randint(5, 7), 1000))[level - 1]
    numbers = rng.sample(range(below), count)
    down = level > 1 and rng.random() < 0.5
    text = fill(rng, _ASK[language][down], numbers=", ".join(map(str, numbers)))
    answer = ", ".join(map(str, sorted(numbers, reverse=down)))
    return Problem(text, answer, {"kind": "list"}, (), [numbers, down])


def read(text: str) -> str | None:
    """Repeatedly takes the smallest remaining number."""
    rows = re.findall(r"(?<![\d.])-?\d+(?:\s*[,，、]\s*-?\d+)+(?![\d.]\d)", text)
    up, down = _UP.search(text), _DOWN.search(text)
    if len(rows) != 1 or bool(up) == bool(down) or _OTHER.search(text):
        return None
    left = [int(number) for number in re.findall(r"-?\d+", rows[0])]
    if len(re.findall(r"\d+", text)) != len(left) or len(set(left)) != len(left):
        return None
    taken = []
    while left:
        taken.append(left.pop(left.index(min(left))))
    return ", ".join(map(str, taken if up else taken[::-1]))


register_family(Family("sorting", "math", make, read))

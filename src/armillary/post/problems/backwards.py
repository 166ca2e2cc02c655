"""A row of letters, to be written from its end to its beginning."""

from __future__ import annotations

import random
import re

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill

# Without i, l and o, which look like digits, and a, which is also a word.
_LETTERS = "bcdefghjkmnpqrstuvwxyz"
_ASK = {
    "en": (
        "Write these letters backwards: {letters}.",
        "Write these letters in reverse order: {letters}.",
        "Start with the last letter and write all of them: {letters}.",
    ),
    "zh": (
        "把这些字母倒过来写：{letters}。",
        "请按相反的顺序写出这些字母：{letters}。",
        "从最后一个字母开始写出全部字母：{letters}。",
    ),
}
_BACK = re.compile(
    r"\bbackwards?\b|\breversed?\b|\bopposite order\b|\b(?:from|with) the (?:last|end)\b|倒过来|倒着|反过来|相反|"
    r"从(?:最后|后往前|末尾)",
    re.IGNORECASE,
)
# What would change the task: another order, a part of the row, a change of the letters.
_OTHER = re.compile(
    r"\balphabet|\bsort|\bforwards?\b|\bexcept\b|\bwithout\b|\bonly\b|\btwice\b|\bnot\b|\bcapital|\bupper|\bfirst\b|"
    r"字母表|排序|除了|去掉|只写|两遍|大写|不要",
    re.IGNORECASE,
)


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 has three letters, 2 four or five, 3 six to eight."""
    row = rng.sample(_LETTERS, rng.randint(*((3, 3), (4, 5), (6, 8))[level - 1]))
    text = fill(rng, _ASK[language], letters=", ".join(row))
    return Problem(text, ", ".join(reversed(row)), {"kind": "list"}, (), row)


def read(text: str) -> str | None:
    """Moves one letter after the other in front of those before it."""
    rows = re.findall(r"(?<![A-Za-z])[A-Za-z](?:\s*[,，、]\s*[A-Za-z](?![A-Za-z]))+", text)
    if len(rows) != 1 or not _BACK.search(text) or _OTHER.search(text.replace(rows[0], "")):
        return None
    turned: list[str] = []
    for letter in re.findall("[A-Za-z]", rows[0]):
        turned.insert(0, letter)
    return ", ".join(turned)


register_family(Family("backwards", "logic", make, read))

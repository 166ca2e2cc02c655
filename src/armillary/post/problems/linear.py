"""Linear equations with one unknown, as formulas and in words."""

from __future__ import annotations

import random
import re
from fractions import Fraction

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill, written

_SOLVE = {
    "en": ("Solve for x: {equation}", "Find x if {equation}.", "What is x when {equation}?"),
    "zh": ("解方程：{equation}", "已知{equation}，求x。", "若{equation}，x等于多少？"),
}
_WORDS = {
    "en": (
        "{a} times a number {plus} {b} is {c}. What is the number?",
        "If you multiply a number by {a} and then {add} {b}, you get {c}. Find the number.",
    ),
    "zh": ("一个数的{a}倍{plus}{b}等于{c}，这个数是多少？", "某数乘以{a}再{plus}{b}，结果是{c}。求这个数。"),
}


def _side(a: int, b: int) -> str:
    first = {1: "x", -1: "-x"}.get(a, f"{a}x")
    return first if b == 0 else f"{first} {'+' if b > 0 else '-'} {abs(b)}"


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 is a x + b = c, 2 has larger numbers and negative solutions, 3 has x on both sides."""
    a, x = rng.randint(2, 4 + 3 * level), rng.randint(1 if level == 1 else -12, 12 * level)
    b = rng.choice((-1, 1)) * rng.randint(1, 15 * level)
    steps: tuple[str, ...]
    if level == 3:
        d = rng.choice([d for d in range(1, a + 6) if d != a])
        e = (a - d) * x + b
        equation = f"{_side(a, b)} = {_side(d, e)}"
        text = fill(rng, _SOLVE[language], equation=equation)
        left, right = a - d, e - b
        steps = (
            f"{equation}",
            f"{_side(left, 0)} = {right}",
            f"x = {right} ÷ {left} = {x}" if left > 0 else f"x = {right} ÷ ({left}) = {x}",
        )
        return Problem(text, str(x), {"kind": "math"}, steps, [a, b, d, e])
    c = a * x + b
    steps = (f"{a}x = {c} {'-' if b > 0 else '+'} {abs(b)} = {c - b}", f"x = {c - b} ÷ {a} = {x}")
    if x > 0 and c > 0 and rng.random() < 0.4:
        plus, add = ("plus", "add") if b > 0 else ("minus", "subtract")
        if language == "zh":
            plus = "加上" if b > 0 else "减去"
        text = fill(rng, _WORDS[language], a=a, b=abs(b), c=c, plus=plus, add=add)
    else:
        text = fill(rng, _SOLVE[language], equation=f"{_side(a, b)} = {c}")
    return Problem(text, str(x), {"kind": "math"}, steps, [a, b, 0, c])


def _at(side: str, x: int) -> Fraction | None:
    """The value of a side such as 3x + 5 where the unknown is ``x``."""
    terms = re.findall(r"([-+]?)(\d*)\s*\*?\s*(x?)", re.sub(r"\s", "", side))
    if "".join("".join(term) for term in terms).replace("*", "") != re.sub(r"[\s*]", "", side):
        return None
    total = Fraction(0)
    for sign, digits, unknown in terms:
        if not digits and not unknown:
            continue
        value = Fraction(digits or 1) * (x if unknown else 1)
        total += -value if sign == "-" else value
    return total


def read(text: str) -> str | None:
    """The zero of left minus right, from its values at 0 and 1."""
    text = text.replace("−", "-").replace("×", "*")
    if text.count("=") == 1:
        found = re.search(r"([-+\dx*\s]*x?[-+\dx*\s]*)=([-+\dx*\s]+)", text)
        if found is None or len(re.findall(r"\d+", text)) != len(re.findall(r"\d+", found[0])):
            return None
        sides = [found[1].strip(), found[2].strip()]
        # A word such as "when " may end in characters of a side.
        if any(not side for side in sides):
            return None
    else:
        number = r"(\d+)"
        shape = (
            re.search(
                rf"{number} times (?:a|some|the) (?:certain )?number,? (plus|minus) {number},? "
                rf"(?:is|equals|gives|results in) {number}",
                text,
                re.I,
            )
            or re.search(
                rf"multiply a number by {number},? and (?:then )?(add|subtract) {number},? "
                rf"(?:to it,? |from it,? )?(?:you get|the result is|it equals) {number}",
                text,
                re.I,
            )
            or re.search(rf"数的{number}倍(?:再)?(加上|减去|加|减){number}(?:等于|是|得|得到|为){number}", text)
            or re.search(
                rf"数乘以{number}[，,]?再(加上|减去|加|减){number}[，,]?(?:结果)?(?:是|等于|得|得到|为){number}", text
            )
        )
        if shape is None or len(re.findall(r"\d+", text)) != 3:
            return None
        sign = "-" if shape[2].lower() in ("minus", "subtract", "减去", "减") else "+"
        sides = [f"{shape[1]}x{sign}{shape[3]}", shape[4]]
    values = [[_at(side, x) for side in sides] for x in (0, 1)]
    (l0, r0), (l1, r1) = values
    if l0 is None or r0 is None or l1 is None or r1 is None:
        return None
    zero, slope = l0 - r0, (l1 - r1) - (l0 - r0)
    return None if slope == 0 else written(-zero / slope)


register_family(Family("linear", "math", make, read))

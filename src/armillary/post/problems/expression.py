"""Arithmetic expressions with precedence and parentheses."""

from __future__ import annotations

import random
import re
from fractions import Fraction

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill, written

_ASK = {
    "en": ("Calculate {what}.", "What is {what}?", "Work out {what}.", "Compute {what}."),
    "zh": ("计算{what}。", "{what}等于多少？", "求{what}的值。", "算一算：{what}。"),
}


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 has one operation, 2 has two with precedence, 3 has three with parentheses."""
    a, b, c, d = (rng.randint(2, 9 if level > 1 else 50) for _ in range(4))
    steps: tuple[str, ...]
    if level == 1:
        sign = rng.choice("+-×")
        b = rng.randint(2, 9) if sign == "×" else b
        value = {"+": a + b, "-": a - b, "×": a * b}[sign]
        what, steps = f"{a} {sign} {b}", (f"{a} {sign} {b} = {value}",)
    elif level == 2:
        a, sign = rng.randint(10, 60), rng.choice("+-")
        value = a + b * c if sign == "+" else a - b * c
        what, steps = f"{a} {sign} {b} × {c}", (f"{b} × {c} = {b * c}", f"{a} {sign} {b * c} = {value}")
    else:
        total = a + b
        sign = rng.choice("+-")
        value = total * c + d if sign == "+" else total * c - d
        what = f"({a} + {b}) × {c} {sign} {d}"
        steps = (f"{a} + {b} = {total}", f"{total} × {c} = {total * c}", f"{total * c} {sign} {d} = {value}")
    return Problem(fill(rng, _ASK[language], what=what), str(value), {"kind": "math"}, steps, what)


def read(text: str) -> str | None:
    """Uses a separate parser on the only expression in the text."""
    plain = text.replace("×", "*").replace("÷", "/").replace("−", "-").replace("（", "(").replace("）", ")")
    for word, sign in (
        ("multiplied by", "*"),
        ("times", "*"),
        ("plus", "+"),
        ("minus", "-"),
        ("乘以", "*"),
        ("加上", "+"),
        ("减去", "-"),
        ("加", "+"),
        ("减", "-"),
        ("乘", "*"),
    ):
        plain = re.sub(rf"(?<=[\d)])\s*{word}\s*(?=[\d(])", f" {sign} ", plain)
    runs = [run for run in re.findall(r"[-+*/()\d.\s]*\d[-+*/()\d\s.]*", plain) if re.search(r"\d", run)]
    if len(runs) != 1:
        return None
    tokens = re.findall(r"\d+|[-+*/()]", runs[0].rstrip(". "))
    value, end = _sum(tokens, 0)
    return None if value is None or end != len(tokens) or len(tokens) < 3 else written(value)


def _sum(tokens: list[str], place: int) -> tuple[Fraction | None, int]:
    total, place = _product(tokens, place)
    while total is not None and place < len(tokens) and tokens[place] in "+-":
        sign = tokens[place]
        value, place = _product(tokens, place + 1)
        if value is None:
            return None, place
        total = total + value if sign == "+" else total - value
    return total, place


def _product(tokens: list[str], place: int) -> tuple[Fraction | None, int]:
    total, place = _operand(tokens, place)
    while total is not None and place < len(tokens) and tokens[place] in "*/":
        sign = tokens[place]
        value, place = _operand(tokens, place + 1)
        if value is None or (sign == "/" and value == 0):
            return None, place
        total = total * value if sign == "*" else total / value
    return total, place


def _operand(tokens: list[str], place: int) -> tuple[Fraction | None, int]:
    if place >= len(tokens):
        return None, place
    if tokens[place] == "(":
        value, place = _sum(tokens, place + 1)
        return (value, place + 1) if place < len(tokens) and tokens[place] == ")" else (None, place)
    return (Fraction(tokens[place]), place + 1) if tokens[place].isdigit() else (None, place)


register_family(Family("expression", "math", make, read))

"""The next number of a sequence: arithmetic, geometric, or with a second difference."""

from __future__ import annotations

import itertools
import random
import re
from fractions import Fraction

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill, written

_ASK = {
    "en": (
        "What is the next number in the sequence {terms}?",
        "Find the next term: {terms}, …",
        "The sequence {terms} continues by the same rule. Which number comes next?",
    ),
    "zh": (
        "数列{terms}的下一个数是多少？",
        "按规律填数：{terms}，…，下一个数是几？",
        "找规律：{terms}，接下来的数是多少？",
    ),
}


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 adds a number, 2 multiplies by one, 3 adds a number that itself grows."""
    start, step = rng.randint(1, 20), rng.randint(2, 12)
    if level == 1:
        step = rng.choice((-1, 1)) * step
        start += 60 if step < 0 else 0
        terms = [start + step * place for place in range(6)]
        steps = [f"{terms[1]} - {terms[0]} = {step}", f"{terms[4]} {'+' if step > 0 else '-'} {abs(step)} = {terms[5]}"]
    elif level == 2:
        ratio = rng.randint(2, 4)
        terms = [start * ratio**place for place in range(6)]
        steps = [f"{terms[1]} ÷ {terms[0]} = {ratio}", f"{terms[4]} × {ratio} = {terms[5]}"]
    else:
        grow = rng.randint(1, 6)
        terms = [start + step * place + grow * place * (place - 1) // 2 for place in range(6)]
        gaps = [after - before for before, after in itertools.pairwise(terms)]
        steps = [
            f"{', '.join(map(str, gaps[:4]))}: + {grow}",
            f"{gaps[3]} + {grow} = {gaps[4]}",
            f"{terms[4]} + {gaps[4]} = {terms[5]}",
        ]
    shown = ", ".join(map(str, terms[:5])) if language == "en" else "，".join(map(str, terms[:5]))
    return Problem(fill(rng, _ASK[language], terms=shown), str(terms[5]), {"kind": "math"}, tuple(steps), terms[:5])


def read(text: str) -> str | None:
    """By a constant ratio, or else by differences until they are constant."""
    run = re.findall(r"-?\d+(?:\s*[,，、]\s*-?\d+)+", text.replace("−", "-"))
    if len(run) != 1 or not re.search(r"next|follow|下一|接下来|后面", text, re.I):
        return None
    terms = [Fraction(term) for term in re.findall(r"-?\d+", run[0])]
    if len(terms) < 4 or len(re.findall(r"\d+", text)) != len(terms):
        return None
    if 0 not in terms and len({after / before for before, after in itertools.pairwise(terms)}) == 1:
        return written(terms[-1] * terms[1] / terms[0])
    last, row = [terms[-1]], terms
    while len(set(row)) > 1 and len(row) > 2:
        row = [after - before for before, after in itertools.pairwise(row)]
        last.append(row[-1])
    return written(sum(last, Fraction(0))) if len(set(row)) == 1 and len(row) > 1 else None


register_family(Family("sequence", "math", make, read))

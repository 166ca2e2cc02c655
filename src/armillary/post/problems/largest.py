"""A choice of four numbers in different forms: which is the largest or smallest."""

from __future__ import annotations

import random
import re
from fractions import Fraction

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill, language_of, written

_ASK = {
    "en": {
        "largest": ("Which of these numbers is the largest?", "Which number is the largest?"),
        "smallest": ("Which of these numbers is the smallest?", "Which number is the smallest?"),
    },
    "zh": {
        "largest": ("下列各数中哪个最大？", "哪一个数最大？"),
        "smallest": ("下列各数中哪个最小？", "哪一个数最小？"),
    },
}


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 has whole numbers, 2 has decimals of different lengths, 3 has fractions, decimals and percents."""
    values: set[Fraction] = set()
    while len(values) < 4:
        if level == 1:
            values.add(Fraction(rng.randint(-30, 200)))
        elif level == 2:
            values.add(Fraction(rng.randint(1, 999), rng.choice((10, 100, 1000))))
        else:
            values.add(Fraction(rng.randint(1, 9), rng.choice((2, 3, 4, 5, 8, 10))))
    options = {}
    for letter, value in zip("ABCD", rng.sample(sorted(values), 4), strict=True):
        forms = [written(value)]
        if level == 3:
            forms.append(f"{value.numerator}/{value.denominator}")
            if (value * 100).denominator == 1:
                forms.append(f"{value * 100}%")
        options[letter] = (rng.choice(forms), value)
    kind = rng.choice(("largest", "smallest"))
    pick = max if kind == "largest" else min
    answer = pick(options, key=lambda letter: options[letter][1])
    listed = "\n".join(f"{letter}. {form}" for letter, (form, _) in options.items())
    text = fill(rng, _ASK[language][kind]) + "\n" + listed
    order = sorted(options, key=lambda letter: options[letter][1], reverse=True)
    steps = (" > ".join(options[letter][0] for letter in order),)
    check = {"kind": "choice", "options": {letter: form for letter, (form, _) in options.items()}}
    return Problem(text, answer, check, steps, [[form for form, _ in options.values()], kind])


def read(text: str) -> str | None:
    """Compares the numbers after the letters by cross multiplication."""
    options = re.findall(r"(?:^|[\s(（])([A-D])[.)）:、]\s*(-?\d+(?:\.\d+|/\d+)?%?)", text.replace("−", "-"))
    if [letter for letter, _ in options] != list("ABCD"):
        return None
    most = re.search(r"\b(?:largest|greatest|biggest|highest)\b|最大", text, re.I)
    least = re.search(r"\b(?:smallest|least|lowest)\b|最小", text, re.I)
    if bool(most) == bool(least) or re.search(r"second|第二|absolute|绝对值|\bnot\b|不是", text, re.I):
        return None
    stem = text[: text.index(options[0][0] + text[text.index(options[0][0]) + 1])] if language_of(text) == "en" else ""
    if re.search(r"\d", re.sub(r"[A-D][.)].*", "", stem, flags=re.DOTALL)):
        return None
    pairs = []
    for letter, form in options:
        top, _, bottom = form.rstrip("%").partition("/")
        whole, _, places = top.partition(".")
        above = int(whole + places)
        pairs.append((letter, above, 10 ** len(places) * int(bottom or 1) * (100 if form.endswith("%") else 1)))
    best = pairs[0]
    for pair in pairs[1:]:
        larger = pair[1] * best[2] > best[1] * pair[2]
        if larger == bool(most) and pair[1] * best[2] != best[1] * pair[2]:
            best = pair
    return str(best[0])


register_family(Family("largest", "logic", make, read))

"""Conversion between units of length, mass, time and volume."""

from __future__ import annotations

import random
import re
from fractions import Fraction

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill, language_of, written

# Unit of the check, English plural, Chinese name, base units per unit.
_UNITS = {
    "length": (
        ("mm", "millimeters", "毫米", 1),
        ("cm", "centimeters", "厘米", 10),
        ("m", "meters", "米", 1000),
        ("km", "kilometers", "千米", 10**6),
    ),
    "mass": (("mg", "milligrams", "毫克", 1), ("g", "grams", "克", 1000), ("kg", "kilograms", "千克", 10**6)),
    "time": (
        ("s", "seconds", "秒", 1),
        ("min", "minutes", "分钟", 60),
        ("h", "hours", "小时", 3600),
        ("day", "days", "天", 86400),
    ),
    "volume": (("ml", "milliliters", "毫升", 1), ("l", "liters", "升", 1000)),
}
_ASK = {
    "en": (
        "How many {to} are {n} {of}?",
        "Convert {n} {of} to {to}.",
        "Express {n} {of} in {to}.",
        "{n} {of} is how many {to}?",
    ),
    "zh": ("{n}{of}等于多少{to}？", "把{n}{of}换算成{to}。", "{n}{of}是多少{to}？", "请将{n}{of}换算为{to}。"),
}
_WORDS = {
    "en": {name: (unit, factor) for units in _UNITS.values() for unit, name, _, factor in units},
    "zh": {name: (unit, factor) for units in _UNITS.values() for unit, _, name, factor in units},
}


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 goes to the next smaller unit, 2 in both directions with decimals, 3 over more than one unit."""
    units = rng.choice([units for units in _UNITS.values() if level < 3 or len(units) > 2])
    low = rng.randrange(len(units) - (2 if level == 3 else 1))
    high = rng.randint(low + 2, len(units) - 1) if level == 3 else low + 1
    ratio = units[high][3] // units[low][3]
    down = level == 1 or rng.random() < 0.5
    if down:
        value = Fraction(rng.randint(2, 60 * level), 10 if level > 1 else 1)
        of, to, answer, sign = units[high], units[low], value * ratio, "×"
    else:
        # So that the answer is a decimal with at most two places.
        answer = Fraction(rng.randint(2, 60 * level), rng.choice((1, 2, 4)) if level > 1 else 1)
        of, to, value, sign = units[low], units[high], answer * ratio, "÷"
    place = 1 if language == "en" else 2
    text = fill(rng, _ASK[language], n=written(value), of=of[place], to=to[place])
    one = (
        f"1 {units[high][1]} = {ratio} {units[low][1]}"
        if language == "en"
        else f"1{units[high][2]}={ratio}{units[low][2]}"
    )
    if language == "en":
        one = one.replace(units[high][1], units[high][1][:-1], 1)
    steps = (one, f"{written(value)} {sign} {ratio} = {written(answer)}")
    answered = f"{written(answer)} {to[1]}" if language == "en" else f"{written(answer)}{to[2]}"
    return Problem(text, answered, {"kind": "math", "unit": to[0]}, steps, [str(value), of[0], to[0]])


def read(text: str) -> str | None:
    """The one number with the unit behind it, and the one other unit."""
    language = language_of(text)
    words = _WORDS[language]
    if language == "en":
        text = re.sub(r"\b(milli|centi|kilo)(metre|litre)", lambda found: found[0].replace("tre", "ter"), text.lower())
        names = "|".join(name.removesuffix("s") for name in words)
        found = [f"{name}s" for name in re.findall(rf"\b({names})s?\b", text)]
        given = re.findall(rf"(\d+(?:\.\d+)?)\s+({names})s?\b", text)
    else:
        names = "|".join(sorted(words, key=len, reverse=True))
        found = re.findall(names, text.replace("公里", "千米").replace("公斤", "千克"))
        given = re.findall(rf"(\d+(?:\.\d+)?)\s*({names})", text.replace("公里", "千米").replace("公斤", "千克"))
    if len(given) != 1 or len(found) != 2 or len(re.findall(r"\d+(?:\.\d+)?", text)) != 1:
        return None
    number, of = given[0][0], given[0][1] + ("s" if language == "en" else "")
    to = found[1] if found[0] == of else found[0]
    dimension = next(units for units in _UNITS.values() if words[of][0] in [unit[0] for unit in units])
    if of == to or words[to][0] not in [unit[0] for unit in dimension]:
        return None
    value = Fraction(number) * words[of][1] / words[to][1]
    return f"{written(value)} {to}" if language == "en" else f"{written(value)}{to}"


register_family(Family("conversion", "math", make, read))

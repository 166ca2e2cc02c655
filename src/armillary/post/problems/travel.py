"""Distance, time and speed: two are given, the third is asked for."""

from __future__ import annotations

import random
import re
from fractions import Fraction

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill, written

_WHO = {"en": ("A car", "A bus", "A cyclist", "A train"), "zh": ("一辆汽车", "一辆公共汽车", "一位骑车人", "一列火车")}
_DISTANCE = {
    "en": (
        "{who} moves at {v} km/h for {t} hours. How many kilometers does it cover?",
        "{who} travels for {t} hours at a speed of {v} km/h. How far does it go, in kilometers?",
    ),
    "zh": (
        "{who}以每小时{v}千米的速度行驶{t}小时，共行驶多少千米？",
        "{who}的速度是每小时{v}千米，{t}小时行驶多少千米？",
    ),
}
_TIME = {
    "en": (
        "{who} moves at {v} km/h. How many hours does it need for {s} km?",
        "At a speed of {v} km/h, {small} has to cover {s} km. How many hours does this take?",
    ),
    "zh": (
        "{who}以每小时{v}千米的速度行驶{s}千米，需要多少小时？",
        "{who}的速度是每小时{v}千米，行驶{s}千米要几小时？",
    ),
}
_SPEED = {
    "en": (
        "{who} covers {s} km in {t} hours. What is its average speed in km/h?",
        "In {t} hours, {small} travels {s} km. What is its average speed in km/h?",
    ),
    "zh": (
        "{who}{t}小时行驶了{s}千米，平均每小时行驶多少千米？",
        "{who}用{t}小时行驶{s}千米，它的平均速度是每小时多少千米？",
    ),
}


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 asks for the distance, 2 also for time and speed, 3 has half hours."""
    v = rng.randint(2, 12) * 5 if level < 3 else rng.randint(4, 30) * 2
    t = Fraction(rng.randint(2, 4 + 2 * level)) + (Fraction(1, 2) if level == 3 else 0)
    s = v * t
    kind = "distance" if level == 1 else rng.choice(("distance", "time", "speed"))
    who = rng.choice(_WHO[language])
    templates = {"distance": _DISTANCE, "time": _TIME, "speed": _SPEED}[kind]
    text = fill(rng, templates[language], who=who, small=who[0].lower() + who[1:], v=v, t=written(t), s=written(s))
    answer, unit, step = {
        "distance": (s, "km", f"{v} × {written(t)} = {written(s)}"),
        "time": (t, "h", f"{written(s)} ÷ {v} = {written(t)}"),
        "speed": (Fraction(v), "km/h", f"{written(s)} ÷ {written(t)} = {v}"),
    }[kind]
    return Problem(text, written(answer), {"kind": "math", "unit": unit}, (step,), [v, str(t), kind])


def read(text: str) -> str | None:
    """Finds each of the three by its unit; two must be given, and the question must be for the third."""
    number = r"(\d+(?:\.\d+)?)"
    speed = re.findall(
        rf"{number}\s*(?:km/h|kilometers per hour|kilometers an hour)|每小时(?:行驶)?\s*{number}\s*(?:千米|公里)",
        text,
        re.I,
    )
    rest = re.sub(
        rf"{number}\s*(?:km/h|kilometers per hour|kilometers an hour)|每小时(?:行驶)?\s*{number}\s*(?:千米|公里)",
        " ",
        text,
        flags=re.I,
    )
    way = re.findall(rf"{number}\s*(?:km\b|kilometers?\b|千米|公里)", rest, re.I)
    time = re.findall(rf"{number}[ -]?(?:hours?\b|小时)", rest, re.I)
    if (
        len(speed) > 1
        or len(way) > 1
        or len(time) > 1
        or len(re.findall(number, text)) != len(speed) + len(way) + len(time)
    ):
        return None
    asks = {
        "distance": r"how (?:many kilometers|far)|distance|多少千米|多少公里|多远",
        "time": r"how (?:many hours|long)|多少小时|几(?:个)?小时|多长时间|时间是多少",
        "speed": r"speed (?:in|of)[^.?]*\?|average speed|how fast|每小时(?:行驶)?多少|平均速度",
    }
    v = Fraction(next(filter(None, speed[0]))) if speed else None
    s = Fraction(way[0]) if way else None
    t = Fraction(time[0]) if time else None
    if re.search(r"minutes?|分钟|另|another|stops?|rests?|休息", text, re.I):
        return None
    if v is not None and t is not None and s is None and re.search(asks["distance"], rest, re.I):
        return written(v * t)
    if v is not None and s is not None and t is None and v and re.search(asks["time"], rest, re.I):
        return written(s / v)
    if s is not None and t is not None and v is None and t and re.search(asks["speed"], text, re.I):
        return written(s / t)
    return None


register_family(Family("travel", "math", make, read))

"""Days of the week: which day it is some days later or earlier."""

from __future__ import annotations

import random
import re

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill, language_of, numbers_in

_DAYS = {
    "en": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "zh": ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"),
}
_AFTER = {
    "en": (
        "Today is {day}. What day of the week will it be in {n} days?",
        "If today is {day}, which day of the week is {n} days from now?",
        "It is {day} today. What day of the week comes {n} days later?",
    ),
    "zh": (
        "今天是{day}，{n}天后是星期几？",
        "今天是{day}，再过{n}天是星期几？",
        "如果今天是{day}，那么{n}天之后是星期几？",
    ),
}
_BEFORE = {
    "en": (
        "Today is {day}. What day of the week was it {n} days ago?",
        "If today is {day}, which day of the week was {n} days earlier?",
    ),
    "zh": ("今天是{day}，{n}天前是星期几？", "如果今天是{day}，那么{n}天之前是星期几？"),
}


def spellings(place: int, language: Language) -> list[str]:
    """Other names of a day."""
    name = _DAYS[language][place]
    if language == "en":
        return [name[:3]]
    last = name[-1]
    return [f"周{last}", f"礼拜{last}"] + (["星期天", "周天", "礼拜天"] if last == "日" else [])


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 asks for a day at most 13 days ahead, level 2 at most 60, level 3 at most 400 days ahead or back."""
    day, n = rng.randrange(7), rng.randint(2, (13, 60, 400)[level - 1])
    back = level == 3 and rng.random() < 0.5
    text = fill(rng, (_BEFORE if back else _AFTER)[language], day=_DAYS[language][day], n=n)
    target, rest = (day - n if back else day + n) % 7, n % 7
    answer = _DAYS[language][target]
    direction = ("before" if back else "after") if language == "en" else ("前" if back else "后")
    if language == "en":
        steps = (f"{n} = 7 × {n // 7} + {rest}", f"{rest} days {direction} {_DAYS['en'][day]} is {answer}.")
    else:
        steps = (f"{n} = 7 × {n // 7} + {rest}", f"{_DAYS['zh'][day]}的{rest}天{direction}是{answer}。")
    among = [one for place in range(7) for one in (_DAYS[language][place], *spellings(place, language))]
    check = {"kind": "text", "accept": spellings(target, language), "among": among}
    return Problem(text, answer, check, steps, [day, -n if back else n])


def read(text: str) -> str | None:
    """Walks the days one by one."""
    language = language_of(text)
    if language == "zh":
        text = re.sub("(?:周|礼拜)([一二三四五六日天])", r"星期\1", text).replace("星期天", "星期日")
        back, ahead = re.search(r"天(?:之|以)?前", text), re.search(r"天(?:之|以)?后|再过\s*\d+\s*天|过\d+天", text)
    else:
        back = re.search(r"\bago\b|\bearlier\b|\bbefore\b", text, re.I)
        ahead = re.search(
            r"\bin \d+ days\b|from (?:now|today|[MTWFS][a-z]+day)|\blater\b|\bafter\b|\bpass\b", text, re.I
        )
    named = [place for place, day in enumerate(_DAYS[language]) if re.search(day, text, re.I)]
    found = numbers_in(text)
    if (
        len(named) != 1
        or len(found) != 1
        or bool(back) == bool(ahead)
        or re.search("week(?:s)? (?:later|ago)|tomorrow|yesterday|明天|昨天|[^礼]周后", text)
    ):
        return None
    if not re.search(r"\bdays?\b|天", text):
        return None
    day = named[0]
    for _ in range(int(found[0])):
        day = (6 if day == 0 else day - 1) if back else (0 if day == 6 else day + 1)
    return _DAYS[language][day]


register_family(Family("calendar", "logic", make, read))

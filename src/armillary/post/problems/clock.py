"""Times of the day: the end of something from its start and duration, or the duration between two times."""

from __future__ import annotations

import datetime
import random
import re

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill

_ENDS = {
    "en": (
        "A train leaves at {a} and travels for {n} minutes. At what time does it arrive?",
        "A film starts at {a} and lasts {n} minutes. When does it end?",
        "A lesson begins at {a} and takes {n} minutes. At what time is it over?",
    ),
    "zh": (
        "一列火车{a}出发，行驶{n}分钟。它几点到达？",
        "一部电影{a}开始，放映{n}分钟。几点结束？",
        "一节课{a}开始，上{n}分钟。几点下课？",
    ),
}
_LASTS = {
    "en": (
        "A train leaves at {a} and arrives at {b} on the same day. How many minutes does it travel?",
        "A film starts at {a} and ends at {b}. How many minutes does it last?",
    ),
    "zh": ("一列火车{a}出发，当天{b}到达。它行驶了多少分钟？", "一部电影{a}开始，{b}结束。放映了多少分钟？"),
}


def _time(minutes: int) -> str:
    return f"{minutes // 60}:{minutes % 60:02d}"


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 stays within an hour, 2 crosses one, 3 asks for the minutes between two times."""
    hour = rng.randint(6, 19)
    start = 60 * hour + 5 * rng.randrange(12) if level < 3 else 60 * hour + rng.randrange(60)
    n = rng.randint(2, 59 - start % 60) if level == 1 and start % 60 < 57 else rng.randint(60 - start % 60, 230)
    end = start + n
    if level < 3:
        text = fill(rng, _ENDS[language], a=_time(start), n=n)
        h, m = divmod(end, 60)
        check = {
            "kind": "text",
            "accept": [f"{h:02d}:{m:02d}", f"{h}点{m}分", f"{h}时{m}分", *([f"{h}点"] if m == 0 else [])],
        }
        total = start % 60 + n
        steps = [f"{start % 60} + {n} = {total}"]
        if total >= 60:
            steps.append(f"{total} = {total // 60} × 60 + {total % 60}, {hour} + {total // 60} = {h}")
        return Problem(text, _time(end), check, tuple(steps), [start, n, "end"])
    text = fill(rng, _LASTS[language], a=_time(start), b=_time(end))
    rest = 60 - start % 60
    steps = [
        f"{_time(start)} → {hour + 1}:00: {rest}",
        f"{hour + 1}:00 → {_time(end)}: {n - rest}",
        f"{rest} + {n - rest} = {n}",
    ]
    return Problem(text, str(n), {"kind": "math", "unit": "min"}, tuple(steps), [start, n, "lasts"])


def read(text: str) -> str | None:
    """The answer from the text, computed with ``datetime``."""
    times = [(int(h), int(m)) for h, m in re.findall(r"(?<!\d)(\d{1,2})[:：](\d{2})(?!\d)", text)]
    rest = re.sub(r"\d{1,2}[:：]\d{2}", "", text)
    minutes = re.findall(r"(\d+)\s*(?:minutes|minute|分钟)", rest)
    if re.search(r"\b[ap]\.?m\b|hours?\b|小时|上午|下午|晚上|\bbefore\b|earlier|之前", text, re.I) or any(
        h > 23 or m > 59 for h, m in times
    ):
        return None
    if len(re.findall(r"\d+", rest)) != len(minutes):
        return None
    day = [datetime.datetime(2001, 1, 1, h, m) for h, m in times]
    if len(day) == 1 and len(minutes) == 1:
        end = day[0] + datetime.timedelta(minutes=int(minutes[0]))
        return (
            f"{end.hour}:{end.minute:02d}"
            if re.search(r"when|what time|几点|什么时候|何时|什么时间", text, re.I)
            else None
        )
    if len(day) == 2 and not minutes and day[1] > day[0] and re.search(r"how many minutes|多少分钟|几分钟", text, re.I):
        return str(int((day[1] - day[0]).total_seconds() // 60))
    return None


register_family(Family("clock", "math", make, read))

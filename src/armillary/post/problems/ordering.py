"""Comparison: who is the tallest, oldest or fastest, from statements about two people each."""

from __future__ import annotations

import itertools
import random
import re

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import PEOPLE, fill, language_of

# Comparative and its opposite, superlative and its opposite.
_SCALES = {
    "en": (
        ("taller", "shorter", "tallest", "shortest"),
        ("older", "younger", "oldest", "youngest"),
        ("faster", "slower", "fastest", "slowest"),
        ("heavier", "lighter", "heaviest", "lightest"),
    ),
    "zh": (
        ("高", "矮", "最高", "最矮"),
        ("大", "小", "年龄最大", "年龄最小"),
        ("快", "慢", "最快", "最慢"),
        ("重", "轻", "最重", "最轻"),
    ),
}
_ASK = {
    "en": ("Who is the {top}?", "Which of them is the {top}?"),
    "zh": ("谁{top}？", "他们当中谁{top}？"),
}
_LIST = {
    "en": ("List all of them from {top} to {bottom}.", "Put them in order from {top} to {bottom}."),
    "zh": ("请按从{more}到{less}的顺序排列。",),
}
_DIRECTION = {"高": "高", "大": "大", "快": "快", "重": "重"}


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 has three people, 2 has four, 3 has four or five and asks for the whole order."""
    people = rng.sample(PEOPLE[language], level + 2 if level < 3 else rng.randint(4, 5))
    more, less, top, bottom = rng.choice(_SCALES[language])
    parts = []
    for above, below in itertools.pairwise(people):
        forward = rng.random() < 0.5
        one, word, other = (above, more, below) if forward else (below, less, above)
        if language == "en":
            parts.append(f"{one} is {word} than {other}.")
        else:
            parts.append(f"{one}比{other}{'年龄' if word in '大小' else ''}{word}。")
    rng.shuffle(parts)
    chain = " > ".join(people)
    if level == 3:
        ask = fill(rng, _LIST[language], top=top, bottom=bottom, more=more, less=less)
        answer, check = ", ".join(people), {"kind": "list", "among": sorted(people)}
        reversed_ask = False
    else:
        reversed_ask = rng.random() < 0.5
        ask = fill(rng, _ASK[language], top=bottom if reversed_ask else top)
        answer = people[-1] if reversed_ask else people[0]
        check = {"kind": "text", "among": sorted(people)}
    text = (" " if language == "en" else "").join([*parts, ask])
    return Problem(text, answer, check, (chain,), [people, more, reversed_ask, level == 3])


def read(text: str) -> str | None:
    """Tries all orders of the people and takes the one that every statement allows."""
    language = language_of(text)
    people = [
        name for name in PEOPLE[language] if (re.search(rf"\b{name}\b", text) if language == "en" else name in text)
    ]
    names = "|".join(people)
    if not 2 < len(people) < 7:
        return None
    shape = (
        rf"({names}) (?:is|runs|was) (\w+) than ({names})"
        if language == "en"
        else rf"({names})(?:的?年龄|的?体重|的?身高|跑得)?比({names})(?:的)?(?:年龄|体重|身高|个子|跑得)?"
        r"(?:更|要|还)?([\u3400-\u9fff])"
    )
    found = re.findall(shape, text)
    triples = [(a, word, b) for a, word, b in found] if language == "en" else [(a, word, b) for a, b, word in found]
    words = {word for _, word, _ in triples}
    scale = [scale for scale in _SCALES[language] if words <= {scale[0], scale[1]}]
    if len(scale) != 1 or not triples or re.search(r"\bnot\b|\bas \w+ as\b|n't|不|一样|没有", text):
        return None
    if len(re.findall(r"\bthan\b|比", text)) != len(triples):
        return None
    more, less, top, bottom = scale[0]
    orders = [
        order
        for order in itertools.permutations(people)
        if all((order.index(a) < order.index(b)) == (word == more) for a, word, b in triples)
    ]
    if len(orders) != 1:
        return None
    order = orders[0]
    rest = re.sub(shape, "", text)
    if language == "en":
        listed = re.search(rf"from (?:the )?({top}|{bottom}) to (?:the )?({top}|{bottom})", rest, re.I)
        if listed:
            return ", ".join(order if listed[1].lower() == top else reversed(order)) if listed[1] != listed[2] else None
        asked = [word for word in (top, bottom) if re.search(rf"\b{word}\b", rest, re.I)]
    else:
        listed = re.search(rf"从({more}|{less})到({more}|{less})", rest)
        if listed:
            return ", ".join(order if listed[1] == more else reversed(order)) if listed[1] != listed[2] else None
        asked = [word for word in (more, less) if re.search(rf"最{word}", rest)]
        top = more
    if len(asked) != 1:
        return None
    return order[0] if asked[0] == top else order[-1]


register_family(Family("ordering", "logic", make, read))

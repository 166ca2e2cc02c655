"""Words that several families share: people, things, languages, and numbers in a text."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from fractions import Fraction

from armillary.post.problems.family import Language

PEOPLE: dict[Language, tuple[str, ...]] = {
    "en": ("Ann", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate", "Leo", "Mia"),
    "zh": ("小明", "小红", "小华", "小丽", "小刚", "小芳", "小军", "小梅", "小强", "小兰", "小杰", "小雨", "小云"),
}
# Singular and plural; in Chinese measure word and thing.
THINGS: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (
        *(("apple", "apples"), ("book", "books"), ("marble", "marbles"), ("sticker", "stickers")),
        *(("pencil", "pencils"), ("coin", "coins"), ("card", "cards"), ("stamp", "stamps")),
    ),
    "zh": (
        *(("个", "苹果"), ("本", "书"), ("颗", "弹珠"), ("张", "贴纸")),
        *(("支", "铅笔"), ("枚", "硬币"), ("张", "卡片"), ("枚", "邮票")),
    ),
}
_NUMBER = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?")


def language_of(text: str) -> Language:
    """zh where there is a Chinese character."""
    return "zh" if re.search("[\u3400-\u9fff]", text) else "en"


def numbers_in(text: str) -> list[Fraction]:
    """The numbers written in digits, in their order."""
    return [Fraction(found.replace(",", "")) for found in _NUMBER.findall(text)]


def clauses(text: str) -> list[str]:
    """Parts of a text between punctuation marks and joining words; points and commas in numbers stay."""
    parts = re.split(
        r"[。；！？;!?\n]|[,，](?!\d)|\.(?!\d)|\b(?:and|then|but)\b|(?:然后|接着|又(?=[买得收送])|并且?|而且)", text
    )
    return [part.strip() for part in parts if part.strip()]


def written(value: Fraction | int) -> str:
    """A number as a decimal where that has an end, else as a fraction."""
    value = Fraction(value)
    if value.denominator == 1:
        return str(value.numerator)
    for places in range(1, 7):
        if (value * 10**places).denominator == 1:
            return f"{float(value):.{places}f}"
    return f"{value.numerator}/{value.denominator}"


def fill(rng: random.Random, templates: Sequence[str], **values: object) -> str:
    """One of ``templates`` with its fields filled."""
    return rng.choice(templates).format(**values)

"""Percentages of a price: reductions and increases."""

from __future__ import annotations

import random
import re
from fractions import Fraction

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import fill, language_of, written

_GOODS = {
    "en": ("coat", "bicycle", "lamp", "chair", "watch", "bag"),
    "zh": ("外套", "自行车", "台灯", "椅子", "手表", "书包"),
}
_DOWN = {
    "en": (
        "A {good} costs {price} dollars. Its price is reduced by {p}%. What is the new price in dollars?",
        "The price of a {good} is {price} dollars, and today it is {p}% off. How many dollars does it cost today?",
    ),
    "zh": (
        "一件商品({good})原价{price}元，降价{p}%。现价是多少元？",
        "{good}原价{price}元，现在降价{p}%出售。现在卖多少元？",
    ),
}
_UP = {
    "en": (
        "A {good} costs {price} dollars. Its price goes up by {p}%. What is the new price in dollars?",
        "The price of a {good} is {price} dollars and increases by {p}%. What is the new price in dollars?",
    ),
    "zh": ("{good}原价{price}元，涨价{p}%。现价是多少元？", "{good}原来卖{price}元，价格上涨了{p}%。现在卖多少元？"),
}


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 takes tenths off hundreds, 2 takes fives off tens, 3 goes both ways with any percentage."""
    p = rng.choice(((10, 20, 50), (5, 10, 15, 20, 25, 40), tuple(range(2, 60)))[level - 1])
    price = rng.randint(2, 20) * (100, 20, 10)[level - 1]
    up = level == 3 and rng.random() < 0.5
    part = Fraction(price * p, 100)
    answer = price + part if up else price - part
    text = fill(rng, (_UP if up else _DOWN)[language], good=rng.choice(_GOODS[language]), price=price, p=p)
    steps = (
        f"{price} × {p} ÷ 100 = {written(part)}",
        f"{price} {'+' if up else '-'} {written(part)} = {written(answer)}",
    )
    check = {"kind": "math", "unit": "dollar" if language == "en" else "yuan"}
    return Problem(text, written(answer), check, steps, [price, p, up])


def read(text: str) -> str | None:
    """The price times the remaining share of 100 %."""
    down = re.search(r"\boff\b|reduc|discount|cheaper|drop|decreas|lower(?:ed)?\b|降|减价|便宜", text, re.I)
    up = re.search(r"increas|goes up|went up|raised?|rises?|rose|涨|上调|提高", text, re.I)
    percent = re.findall(r"(\d+(?:\.\d+)?)\s*(?:%|percent)", text)
    price = re.findall(r"\$\s*(\d+(?:\.\d+)?)|(\d+(?:\.\d+)?)[ -]?(?:dollars?|元)", text)
    # The reader takes the price in the text for the old one.
    if re.search(
        r"现价(?:是|为)?\s*\d|\b(?:now|currently|current price)\b[^.?\d]{0,25}\d+(?:\.\d+)?\s*dollars?", text, re.I
    ):
        return None
    if bool(down) == bool(up) or len(percent) != 1 or len(price) != 1 or len(re.findall(r"\d+(?:\.\d+)?", text)) != 2:
        return None
    asks = (
        r"new price|how (?:much|many)|cost (?:now|today)|price (?:now|after|today)"
        if language_of(text) == "en"
        else r"现价|现在|多少元"
    )
    if not re.search(asks, text, re.I) or re.search(
        r"how much (?:money )?(?:is|was|do|does)[^?]*\bsaved?\b|便宜了多少|降了多少|涨了多少|(?:amount|size) of the",
        text,
        re.I,
    ):
        return None
    hundredths = 100 - Fraction(percent[0]) if down else 100 + Fraction(percent[0])
    return written(Fraction(next(filter(None, price[0]))) * hundredths / 100)


register_family(Family("discount", "math", make, read))

"""Shopping: what a number of things costs, and the change from what is paid."""

from __future__ import annotations

import random
import re
from fractions import Fraction

from armillary.post.problems.family import Family, Language, Problem, register_family
from armillary.post.problems.wording import PEOPLE, fill, language_of, numbers_in, written

_GOODS = {
    "en": ("pen", "notebook", "ruler", "eraser", "cake", "toy", "ticket", "cup"),
    "zh": ("钢笔", "笔记本", "尺子", "橡皮", "蛋糕", "玩具", "门票", "杯子"),
}
_MEASURE = {
    "钢笔": "支",
    "笔记本": "本",
    "尺子": "把",
    "橡皮": "块",
    "蛋糕": "块",
    "玩具": "个",
    "门票": "张",
    "杯子": "个",
}
_PRICE = {
    "en": (
        "One {good} costs {price} dollars.",
        "The price of a {good} is {price} dollars.",
        "A {good} costs {price} dollars.",
    ),
    "zh": ("每{m}{good}{price}元。", "一{m}{good}的价格是{price}元。", "{good}每{m}{price}元。"),
}
_BUY = {
    "en": ("{who} buys {what}", "{who} wants to buy {what}", "{who} takes {what}"),
    "zh": ("{who}买了{what}", "{who}要买{what}", "{who}买{what}"),
}
_PAY = {
    "en": (
        " and pays with {paid} dollars. How much change does {who} get?",
        " and pays {paid} dollars. How many dollars come back as change?",
    ),
    "zh": ("，付了{paid}元。应找回多少元？", "，付给店员{paid}元。找零是多少元？"),
}
_TOTAL = {
    "en": (". How many dollars does this cost in total?", ". How much must {who} pay in dollars?"),
    "zh": ("。一共要付多少元？", "。总共花了多少元？"),
}


def make(rng: random.Random, level: int, language: Language) -> Problem:
    """Level 1 asks for the price of several equal things, 2 for the change, 3 for the change after buying two kinds."""
    who, goods = rng.choice(PEOPLE[language]), rng.sample(_GOODS[language], 2 if level == 3 else 1)
    prices = [Fraction(rng.randint(4, 30 * level), 2 if level == 3 else 1) for _ in goods]
    counts = [rng.randint(2, 9) for _ in goods]
    total = sum((price * count for price, count in zip(prices, counts, strict=True)), Fraction(0))
    words = {"who": who}
    listed = [
        f"{n} {good}s" if language == "en" else f"{n}{_MEASURE[good]}{good}"
        for n, good in zip(counts, goods, strict=True)
    ]
    parts = [
        fill(rng, _PRICE[language], good=good, price=written(price), m=_MEASURE.get(good, ""))
        for good, price in zip(goods, prices, strict=True)
    ]
    buy = fill(rng, _BUY[language], what=(" and " if language == "en" else "和").join(listed), **words)
    steps = [f"{n} × {written(p)} = {written(n * p)}" for n, p in zip(counts, prices, strict=True)]
    if len(goods) == 2:
        steps.append(f"{written(counts[0] * prices[0])} + {written(counts[1] * prices[1])} = {written(total)}")
    if level == 1:
        answer, tail, paid = total, fill(rng, _TOTAL[language], **words), 0
    else:
        paid = -(-total // 10) * 10 + rng.choice((0, 10, 50))
        answer, tail = paid - total, fill(rng, _PAY[language], paid=paid, **words)
        steps.append(f"{paid} - {written(total)} = {written(answer)}")
    text = (" " if language == "en" else "").join([*parts, buy + tail])
    check = {"kind": "math", "unit": "dollar" if language == "en" else "yuan"}
    parameters = [[str(price) for price in prices], counts, paid]
    return Problem(text, written(answer), check, tuple(steps), parameters)


def read(text: str) -> str | None:
    """Finds price and number of each thing by its name; the remaining number, if any, is the amount paid."""
    language = language_of(text)
    number = r"(\d+(?:\.\d+)?)"
    goods = [good for good in _GOODS[language] if good in text.lower()]
    total, left = Fraction(0), numbers_in(text)
    for good in goods:
        if language == "en":
            # If there is only one kind of thing, "each" identifies it.
            name = rf"(?:\b{good}s?|\beach(?: one)?)" if len(goods) == 1 else rf"\b{good}s?"
            prices = re.findall(
                rf"{name}\s+(?:each\s+)?(?:costs?|is|are|is priced at|sells for|priced at)\s+\$?{number}(?!\d)|"
                rf"\$?{number}\s+dollars?\s+(?:for (?:a|one|each)|per|a)\s+{good}\b",
                text,
                re.IGNORECASE,
            )
            counts = re.findall(rf"\b(\d+)\s+{good}s?\b", text, re.IGNORECASE)
        else:
            measure = _MEASURE[good]
            prices = re.findall(
                rf"(?:每|一){measure}{good}(?:的价格)?(?:是|为|卖|要|售价)?{number}元|"
                rf"{good}(?:的价格是|的单价是)?每{measure}(?:是|卖|要)?{number}元",
                text,
            )
            counts = re.findall(rf"(\d+){measure}{good}(?!每)", text)
        found = [Fraction(next(filter(None, pair))) for pair in prices]
        if len(found) != 1 or len(counts) != 1:
            return None
        total += found[0] * int(counts[0])
        for value in (found[0], Fraction(counts[0])):
            if value not in left:
                return None
            left.remove(value)
    asks = re.search(r"change\b|come back|找回|找零|找给|应找", text, re.IGNORECASE)
    pays = re.search(r"\b(?:pays?|paid|hands over|gives the clerk)\b|付(?:了|给)", text, re.IGNORECASE)
    if not goods or len(left) != bool(asks) or re.search(r"%|\boff\b|discount|折|free", text):
        return None
    if asks:
        return written(left[0] - total) if pays else None
    return written(total)


register_family(Family("purchase", "math", make, read))

"""Reads numbers with units as written in Chinese and English: digits, fractions, percentages, words.

``read_quantity`` reads one quantity from a short phrase, exactly, as a fraction. It never guesses: for two different
quantities or an unfinished calculation, it returns None.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

# Per dimension: the size of each unit in base units, and its names.
_DIMENSIONS: dict[str, dict[str, tuple[Fraction, tuple[str, ...]]]] = {
    "length": {
        "mm": (Fraction(1, 1000), ("mm", "millimeter", "millimetre", "毫米")),
        "cm": (Fraction(1, 100), ("cm", "centimeter", "centimetre", "厘米", "公分")),
        "dm": (Fraction(1, 10), ("dm", "decimeter", "decimetre", "分米")),
        "m": (Fraction(1), ("m", "meter", "metre", "米")),
        "km": (Fraction(1000), ("km", "kilometer", "kilometre", "千米", "公里")),
    },
    "mass": {
        "mg": (Fraction(1, 1000), ("mg", "milligram", "毫克")),
        "g": (Fraction(1), ("g", "gram", "gramme", "克")),
        "kg": (Fraction(1000), ("kg", "kilogram", "kilo", "千克", "公斤")),
        "t": (Fraction(1_000_000), ("t", "ton", "tonne", "吨")),
    },
    "time": {
        "s": (Fraction(1), ("s", "sec", "second", "秒", "秒钟")),
        "min": (Fraction(60), ("min", "minute", "分", "分钟")),
        "h": (Fraction(3600), ("h", "hr", "hour", "小时", "个小时", "时")),
        "day": (Fraction(86400), ("day", "d", "天", "日")),
        "week": (Fraction(604800), ("week", "周", "星期", "个星期", "礼拜")),
    },
    "volume": {
        "ml": (Fraction(1, 1000), ("ml", "mL", "milliliter", "millilitre", "毫升")),
        "l": (Fraction(1), ("l", "L", "liter", "litre", "升")),
    },
    "yuan": {
        "yuan": (Fraction(1), ("yuan", "¥", "￥", "rmb", "cny", "元", "块", "块钱", "圆")),
        "jiao": (Fraction(1, 10), ("jiao", "角", "毛")),
        "fen": (Fraction(1, 100), ("fen", "分")),
    },
    "dollar": {
        "dollar": (Fraction(1), ("dollar", "$", "usd", "美元")),
        "cent": (Fraction(1, 100), ("cent", "¢", "美分")),
    },
    "speed": {
        "km/h": (
            Fraction(1),
            ("km/h", "kph", "kilometers per hour", "kilometres per hour", "km per hour", "公里每小时"),
        ),
        "m/s": (Fraction(18, 5), ("m/s", "meters per second", "metres per second", "米每秒", "米/秒")),
    },
    "percent": {"%": (Fraction(1, 100), ("%", "percent", "per cent", "百分点"))},
}
_SPEED_WORDS = {"千米/时": "km/h", "千米/小时": "km/h", "公里/小时": "km/h", "公里/时": "km/h", "千米每小时": "km/h"}

# Per name: the units that it can mean, by dimension. 分 is a minute or a hundredth of a yuan.
_NAMES: dict[str, dict[str, Fraction]] = {}
_UNITS: dict[str, tuple[str, Fraction]] = {}
for _dimension, _units in _DIMENSIONS.items():
    for _unit, (_base_units, _aliases) in _units.items():
        _UNITS[_unit] = (_dimension, _base_units)
        for _alias in _aliases:
            for _form in {_alias, f"{_alias}s", _alias.lower()} if _alias.isascii() else {_alias}:
                _NAMES.setdefault(_form, {})[_dimension] = _base_units
for _alias, _unit in _SPEED_WORDS.items():
    _NAMES[_alias] = {"speed": _UNITS[_unit][1]}

_SCALES = {"万": 10**4, "亿": 10**8, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_CHINESE = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_CHINESE_UNITS = {"十": 10, "百": 100, "千": 1000}
_UNDER_TWENTY = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ENGLISH = {word: value for value, word in enumerate(_UNDER_TWENTY)} | {
    word: 10 * value for value, word in enumerate(_TENS, 2)
}

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ ]\d{3})+(?![\d/.])|\d+(?:_\d{3})*)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)])[-+])?\s*(?P<money>[$¥￥])?\s*(?P<inner>-)?"
    rf"(?:(?P<whole>\d+)\s+(?P<mixed>\d+/\d+)"
    rf"|\(?(?P<over>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})\)?"
    rf"|(?P<decimal>{_DECIMAL})(?:e(?P<power>[-+]?\d{{1,3}}))?)"
    r"\s*(?P<scale>万|亿|thousand\b|million\b|billion\b)?"
)
# Signs that mark a phrase as a calculation instead of a number.
_CALCULATION = re.compile(r"[\d)]\s*[-+*×÷^]\s*[\d(]|\d\s*/\s*\d+\s*/|sqrt|√")
# In characters; a longer number would be written as a formula.
_LONGEST = 200
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


@dataclass(frozen=True)
class Quantity:
    """A ``value`` in the unit given to ``read_quantity``, and whether the phrase has a unit."""

    value: Fraction
    unit_given: bool


def unit_names() -> tuple[str, ...]:
    """The units available to a check."""
    return tuple(_UNITS)


def plain(text: str) -> str:
    """``text`` with half-width characters, plain signs and LaTeX's numbers and units as plain text."""
    text = text.replace("，", ", ").replace("、", ", ")
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: "^" + found[0].translate(_SUPERSCRIPT), text)
    text = unicodedata.normalize("NFKC", text)
    text = text.replace("−", "-").replace("–", "-").replace("⁄", "/").replace("∕", "/")
    text = text.replace("\u00a0", " ").replace("\u2009", " ").replace("\u202f", " ")
    text = re.sub(r"\\(?:left|right|displaystyle|,|;|!|:|quad|qquad)(?![a-zA-Z])|\\ ", "", text.replace(r"{,}", ","))
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\\[dtc]?frac\s*(\d)\s*(\d)", r" \1/\2", text)
    text = re.sub(r"(\d)\s*\\[dtc]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1 \2/\3", text)
    text = re.sub(r"\\[dtc]?frac\s*\{\s*([-\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}", r"\1/\2", text)
    text = re.sub(r"\s*(?:×|\\times|\\cdot|\*)\s*10\s*\^\s*\{?\s*([-+]?\d{1,3})\s*\}?", r"e\1", text)
    text = text.replace(r"\%", "%").replace(r"\$", "$").replace(r"\\", " ")
    text = re.sub(r"\\[()\[\]]|\$(?=[^\d$]*\$)|\*\*|__|`", "", text)
    # A dollar sign is money before a number without a second dollar sign after it; otherwise it is LaTeX.
    if text.count("$") % 2 == 0:
        text = re.sub(r"\$([^$]*)\$", r"\1", text)
    return text


def read_quantity(phrase: str, unit: str | None = None) -> Quantity | None:
    """The single quantity in ``phrase``, converted to ``unit`` if given.

    A number without a unit is taken to be in ``unit``. "1 h 30 min" is one quantity. So is "1/2 (= 0.5)", since both
    are equal. "5 or 6" is not.

    Returns:
        None for no quantity, more than one, a calculation, or a unit of another dimension.
    """
    if len(phrase) > _LONGEST:
        return None
    text = _words_to_digits(plain(phrase))
    # A calculation in parentheses after a number explains it.
    text = re.sub(r"(?<=\S)\s*\([^()]*\d\s*[-+*×÷/][^()]*\)", "", text) if re.match(r"\D{0,20}\d", text) else text
    equation = re.split(r"[=≈]", text)
    if len(equation) > 1 and equation[-1].strip():
        text = equation[-1] if len(equation) == 2 or not re.search(r"[a-zA-Z]\s*$", equation[-2]) else text
    if _CALCULATION.search(text):
        return None
    dimension = None if unit is None else _UNITS[unit][0]
    found: list[tuple[Fraction, Fraction | None, int]] = []
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is None:
            return None
        try:
            factor = _factor(text, match, dimension)
        except ValueError:
            return None
        found.append((value, factor, match.end()))
    if not found:
        return None
    if dimension is None:
        values = {value * (factor if factor is not None else 1) for value, factor, _ in found}
        given = any(factor is not None for _, factor, _ in found)
        return Quantity(values.pop(), given) if len(values) == 1 else None
    own = _UNITS[unit or ""][1]
    values = {value * factor / own if factor is not None else value for value, factor, _ in found}
    given = any(factor is not None for _, factor, _ in found)
    if len(values) > 1 and _is_compound(found):
        values = {sum((value * (factor or 0) for value, factor, _ in found), Fraction(0)) / own}
    return Quantity(values.pop(), given) if len(values) == 1 else None


def _is_compound(found: list[tuple[Fraction, Fraction | None, int]]) -> bool:
    """Whether the parts form one quantity, as in "1 hour 30 minutes": each unit is smaller than the previous one."""
    factors = [factor for _, factor, _ in found]
    values = [value for value, _, _ in found]
    if any(factor is None for factor in factors) or any(value < 0 for value in values):
        return False
    pairs = itertools.pairwise(factors)
    return all(first is not None and second is not None and first > second for first, second in pairs)


def _value(match: re.Match[str]) -> Fraction | None:
    def exact(text: str) -> Fraction:
        return Fraction(re.sub(r"[, _]", "", text))

    try:
        if match["mixed"]:
            value = Fraction(match["whole"]) + Fraction(match["mixed"])
        elif match["over"]:
            value = exact(match["over"]) / exact(match["under"])
        else:
            value = exact(match["decimal"]) * Fraction(10) ** int(match["power"] or 0)
    except (ZeroDivisionError, ValueError):
        return None
    value *= _SCALES.get((match["scale"] or "").strip(), 1)
    return -value if (match["sign"] or "").strip() == "-" or match["inner"] else value


def _factor(text: str, match: re.Match[str], dimension: str | None) -> Fraction | None:
    """Base units per unit of the number in ``match``; None without a unit.

    Raises:
        ValueError: the unit has another dimension.
    """
    if match["money"] and dimension is not None:
        # $ and ¥ precede the number.
        if dimension != ("yuan" if match["money"] in "¥￥" else "dollar"):
            raise ValueError
        return Fraction(1)
    rest = text[match.end() :].lstrip()
    name = _unit_at(rest)
    if name is None:
        return None
    if dimension is None:
        # If the question has no unit, only a percent sign changes a value.
        return _NAMES[name].get("percent")
    if dimension not in _NAMES[name]:
        raise ValueError
    return _NAMES[name][dimension]


def _unit_at(rest: str) -> str | None:
    """The longest name of a unit at the start of ``rest``."""
    if found := re.match(r"[a-zA-Z]+/[a-zA-Z]+|[a-zA-Z]+(?: per [a-zA-Z]+)?|[%$¢¥]", rest):
        for name in (found[0], found[0].lower(), found[0].split(" ")[0], found[0].split(" ")[0].lower()):
            if name in _NAMES:
                return name
        return None
    for size in range(min(6, len(rest)), 0, -1):
        if rest[:size] in _NAMES:
            return rest[:size]
    return None


def _words_to_digits(text: str) -> str:
    """Replace number words with digits: 百分之五十, 三分之二, 一百零五, 'forty-two', 'one half'."""
    text = re.sub(
        rf"(负)?百分之({_RUN}|\d+(?:\.\d+)?)", lambda found: f"{'-' if found[1] else ''}{_chinese(found[2])}%", text
    )
    text = re.sub(
        rf"(负)?({_RUN}|\d+)分之({_RUN}|\d+)",
        lambda found: f"{'-' if found[1] else ''}{_chinese(found[3])}/{_chinese(found[2])}",
        text,
    )
    text = text.replace("一半", "1/2")
    text = re.sub(rf"(负)?({_RUN})(?![a-z])", _chinese_run, text)
    text = re.sub(r"负\s*(?=\d)", "-", text)
    text = re.sub(r"\b(?:minus|negative)\s+(?=\d|[a-z])", "-", text, flags=re.IGNORECASE)
    text = re.sub(r"\b(?:one|a) half\b", "1/2", text, flags=re.IGNORECASE)
    return _ENGLISH_RUN.sub(_english_run, text)


_RUN = f"[{''.join(_CHINESE)}十百千万亿]+"
_WORD = "|".join(sorted(_ENGLISH, key=len, reverse=True))
_ENGLISH_RUN = re.compile(
    rf"(?<![a-z])(?:{_WORD})(?:(?:[\s-]+|\s+and\s+)(?:{_WORD}|hundred|thousand))*(?![a-z])", re.IGNORECASE
)


def _chinese_run(found: re.Match[str]) -> str:
    # 万 and 亿 after digits are scales; a lone 千 or 十 in a word (千克, 十分) is not a number.
    run = found[2]
    if not set(run) & _CHINESE.keys() and not run.startswith("十"):
        return found[0]
    before, after = found.string[: found.start()], found.string[found.end() :]
    if (
        run in ("一", "两")
        and re.match(r"[个共起样般些下定方次]|直", after)
        and not before.rstrip().endswith(("是", "为"))
    ):
        return found[0]
    if run.endswith("千") and after[:1] in ("克", "米") and run != "千":
        return f"{'-' if found[1] else ''}{_chinese(run[:-1])}千"
    return f"{'-' if found[1] else ''}{_chinese(run)}"


def _chinese(run: str) -> str:
    """A Chinese numeral as digits; digits stay unchanged."""
    if run[0].isdigit() and run[0].isascii():
        return run
    if not set(run) & set("十百千万亿"):
        return "".join(str(_CHINESE[digit]) for digit in run)
    total = section = digit = 0
    for sign in run:
        if sign in _CHINESE:
            digit = _CHINESE[sign]
        elif sign in _CHINESE_UNITS:
            section += (digit or 1) * _CHINESE_UNITS[sign]
            digit = 0
        else:
            total = (total + section + digit) * (10**4 if sign == "万" else 10**8)
            section = digit = 0
    return str(total + section + digit)


def _english_run(found: re.Match[str]) -> str:
    total = part = 0
    for word in re.split(r"[\s-]+", found[0].lower()):
        if word == "hundred":
            part = max(part, 1) * 100
        elif word == "thousand":
            total, part = total + max(part, 1) * 1000, 0
        elif word in _ENGLISH:
            part += _ENGLISH[word]
    return str(total + part)

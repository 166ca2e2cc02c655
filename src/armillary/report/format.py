"""Numbers as the report prints them: tabular, with true minus signs, and a dash for infinity and NaN."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from armillary.report.text import Words

MISSING = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def loss(value: float | None) -> str:
    """A loss, an error or bits per byte: three decimals."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.3f}".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference of losses: three decimals and always a sign."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:+.3f}".replace("-", "−")


def interval(low: float, high: float) -> str:
    """The two ends of an interval of losses."""
    return f"[{loss(low)}, {loss(high)}]"


def difference(mean: float, low: float, high: float) -> str:
    """A difference of losses with its interval."""
    return f"{signed(mean)} [{signed(low)}, {signed(high)}]"


def percent(share: float | None) -> str:
    """A share as a percentage, one decimal."""
    return MISSING if share is None or not math.isfinite(share) else f"{100 * share:.1f}%"


def percents(low: float | None, high: float | None) -> str:
    """The ends of an interval of a share, as percentages with one decimal."""
    return MISSING if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def points(mean: float | None, low: float | None, high: float | None) -> str:
    """A difference of shares with its interval, in percentage points."""
    if mean is None or low is None or high is None:
        return MISSING
    middle, *ends = (f"{100 * value:+.1f}".replace("-", "−") for value in (mean, low, high))
    return f"{middle} [{ends[0]}, {ends[1]}]"


def probability(value: float | None) -> str:
    """A probability with two digits; below a thousandth only ``< 0.001``."""
    if value is None or not math.isfinite(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def relation(value: float | None) -> str:
    """A probability as it follows ``p`` in a sentence: ``= 0.011``, ``< 0.001``."""
    text = probability(value)
    return text if text.startswith("<") else f"= {text}"


def share(value: float) -> str:
    """A chosen share, such as a setting, as a percentage of up to three digits: ``40%``."""
    return f"{100 * value:.3g}%"


def passes(value: float | None) -> str:
    """Passes over a domain's text: two decimals, below a tenth two digits (``0.0023``)."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{float(f'{value:.2g}'):.9f}".rstrip("0")


def rank(value: float) -> str:
    """A rank correlation: two decimals."""
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else MISSING


def count(value: float) -> str:
    """A count with thousands separated."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """A count in thousands, millions or billions: three digits."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 999,500 would round to 1000 k: let the next unit take it
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def power(value: float) -> str:
    """A large number as ``a × 10ⁿ``, such as a count of FLOPs."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else MISSING
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def power_short(value: float) -> str:
    """A tick of a logarithmic axis: ``10ⁿ``, or ``a × 10ⁿ`` if it is not a power of ten."""
    mantissa, exponent = f"{value:.0e}".split("e")
    ten = f"10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return ten if mantissa == "1" else f"{mantissa} × {ten}"


def ratio(value: float | None) -> str:
    """A ratio of two quantities: three digits, ``∞`` if it is infinite."""
    if value is None or math.isnan(value):
        return MISSING
    return "∞" if math.isinf(value) else f"{value:.3g}"


def general(value: float) -> str:
    """A fitted parameter: four digits, as a power of ten if it is very large or small."""
    if value != 0 and math.isfinite(value) and not 1e-3 <= abs(value) < 1e5:
        return power(value).replace("-", "−")
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else MISSING


_GREEK = {"alpha": "α", "beta": "β", "delta": "δ", "gamma": "γ"}


def symbol(name: str) -> str:
    """The symbol of a law's parameter in formulas."""
    return _GREEK.get(name, name)


def duration(words: Words, seconds: float) -> str:
    """A span of time in the two largest units that fit."""
    if seconds < 60:
        return words("seconds", seconds=seconds)
    whole = round(seconds)
    if whole < 3600:
        return words("minutes_seconds", minutes=whole // 60, seconds=whole % 60)
    minutes = round(seconds / 60)
    return words("hours_minutes", hours=minutes // 60, minutes=minutes % 60)


def moment(text: str) -> datetime:
    """An ISO 8601 date as a point in time; UTC if it has no time zone."""
    value = datetime.fromisoformat(text)
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def date(text: str) -> str:
    """An ISO 8601 date in UTC to the second."""
    return f"{moment(text).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"

"""A budget as people write it: wall time or FLOPs."""

from __future__ import annotations

import math
import re
from typing import Literal

from armillary.recipe.errors import UsageError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_ONE = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*(s|m|h|d|flops?)", re.ASCII)
_SEVERAL = re.compile(r"(?:(\d+)\s*d\s*)?(?:(\d+)\s*h\s*)?(?:(\d+)\s*m\s*)?(?:(\d+)\s*s)?", re.ASCII)


def parse_budget(text: str) -> tuple[float, Literal["s", "flops"]]:
    """``90s``, ``20m``, ``2 h``, ``1.5h``, ``1h30m``, ``3m30s``, ``1d`` or ``1e15flops`` as a number and its unit.

    Raises:
        UsageError: anything else, with the forms that are understood.
    """
    plain = text.strip().lower()
    one, several = _ONE.fullmatch(plain), _SEVERAL.fullmatch(plain)
    value, unit = 0.0, "s"
    try:
        if one is not None:
            value, unit = float(one[1]), one[2]
        elif several is not None:
            days, hours, minutes, seconds = (float(part or 0) for part in several.groups())
            value = days * _SECONDS["d"] + hours * _SECONDS["h"] + minutes * _SECONDS["m"] + seconds
    except ValueError:  # two points in one number
        value = 0.0
    if not 0 < value < math.inf:
        raise UsageError(f"budget '{text}' is neither a time (90s, 3m30s, 20m, 1.5h, 1h30m, 1d) nor FLOPs (1e15flops)")
    if unit.startswith("f"):
        return value, "flops"
    return value * _SECONDS[unit], "s"

"""``math``: numbers and quantities exactly, formulas by symbolic equality.

Parameters of the check: ``unit`` (the unit that the question asks for), ``places`` (the decimal places to round to).

If the correct answer is a number, the reply's answer must be a number too: an unfinished calculation ("the answer is
40 + 2" for the question 40 + 2) is unreadable, although it is equal.
"""

from __future__ import annotations

from fractions import Fraction

from armillary.post.verify.numbers import plain, read_quantity, unit_names
from armillary.post.verify.reading import final_answer, gives_two
from armillary.post.verify.registry import Task, Verdict, register_verifier
from armillary.post.verify.symbolic import same_formula
from armillary.recipe import UsageError

# With at least this many places, a decimal can stand for a repeating fraction, as in math-verify (``float_rounding``).
_PLACES = 6


@register_verifier("math", ("unit", "places"))
def verify_math(task: Task, reply: str) -> Verdict:
    """Judge the final answer of ``reply`` against the correct one."""
    unit, places = task.check.get("unit"), task.check.get("places")
    if unit is not None and unit not in unit_names():
        raise UsageError(f"check.unit: no unit {unit!r}; known are {', '.join(unit_names())}")
    if places is not None and (not isinstance(places, int) or isinstance(places, bool) or places < 0):
        raise UsageError(f"check.places: must be a whole number of decimal places, given {places!r}")
    phrase = final_answer(reply)
    if phrase is None:
        return Verdict("unreadable", note="no final answer")
    if gives_two(phrase):
        return Verdict("unreadable", phrase, "leaves a choice")
    gold = read_quantity(task.gold, unit)
    if gold is not None:
        found = read_quantity(phrase, unit)
        if found is None:
            return Verdict("unreadable", phrase, "not one number, or in a unit of another kind")
        return Verdict("right" if _same(gold.value, found.value, places) else "wrong", phrase)
    same = same_formula(task.gold, plain(phrase) if "\\" not in phrase else phrase)
    if same is None:
        return Verdict("unreadable", phrase, "no formula, or not within the time limit")
    return Verdict("right" if same else "wrong", phrase)


def _same(gold: Fraction, found: Fraction, places: int | None) -> bool:
    if gold == found:
        return True
    if places is not None:
        return bool(abs(gold - found) * 10**places * 2 <= 1 and (found * 10**places).denominator == 1)
    # One third is a repeating decimal; 0.333333 can stand for it.
    endless = _factors_beyond_10(gold.denominator) > 1 and _factors_beyond_10(found.denominator) == 1
    return endless and abs(gold - found) * 10**_PLACES * 2 <= 1


def _factors_beyond_10(number: int) -> int:
    for prime in (2, 5):
        while number % prime == 0:
            number //= prime
    return number

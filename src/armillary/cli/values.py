"""Checks the ranges of option values before any work; an error names the option."""

from __future__ import annotations

import math

import typer


def probability(value: float | None) -> float | None:
    """``value`` if it is above 0 and below 1."""
    return _checked(value, value is None or 0 < value < 1, "must be above 0 and below 1")


def share(value: float | None) -> float | None:
    """``value`` if it is at least 0 and below 1."""
    return _checked(value, value is None or 0 <= value < 1, "must be at least 0 and below 1")


def nucleus(value: float | None) -> float | None:
    """``value`` if it is above 0 and at most 1."""
    return _checked(value, value is None or 0 < value <= 1, "must be above 0 and at most 1")


def fraction(value: float | None) -> float | None:
    """``value`` if it is at least 0 and at most 1."""
    return _checked(value, value is None or 0 <= value <= 1, "must be at least 0 and at most 1")


def positive(value: float | None) -> float | None:
    """``value`` if it is finite and above 0."""
    return _checked(value, value is None or 0 < value < math.inf, "must be a finite number above 0", percent=False)


def not_negative(value: float | None) -> float | None:
    """``value`` if it is finite and at least 0."""
    return _checked(
        value, value is None or 0 <= value < math.inf, "must be a finite number of at least 0", percent=False
    )


def size(text: str | None) -> str | None:
    """``text`` if it is a number of parameters or tokens, such as 25M."""
    if text is not None:
        from armillary.laws import parse_size
        from armillary.recipe import UsageError

        try:
            parse_size(text)
        except UsageError as error:
            raise typer.BadParameter(str(error)) from error
    return text


def of_option(error: BaseException, message: str) -> str:
    """The message for a wrong option value, from the underlying error and Typer's message ``message``."""
    from pydantic import ValidationError

    from armillary.recipe import in_words

    if not isinstance(error, ValidationError):
        return message
    first = error.errors()[0]
    kinds = {"int_parsing": "is not a whole number", "int_from_float": "is not a whole number"}
    kinds |= {"float_parsing": "is not a number"}
    if first["type"] in kinds:
        return f"{first['input']!r} {kinds[first['type']]}"
    words = in_words(first)
    return f"{first['input']} {words}" if words.startswith("must ") else words


def _checked(value: float | None, good: bool, rule: str, percent: bool = True) -> float | None:
    if not good:
        assert value is not None
        hint = f"; did you mean {value / 100:g}?" if percent and 1 < value < 100 else ""
        raise typer.BadParameter(f"{value:g} {rule}{hint}")
    return value

"""Words of messages: what is wrong with a value, in the place of pydantic's texts, and nouns after a count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

_PLURALS = {"copy": "copies", "entry": "entries", "micro-batch": "micro-batches"}

_WHOLE = "must be a whole number, such as 20000, 1e6 or 20M"
_NUMBER = "must be a number, such as 0.05, 4e-3 or 5%"
_SWITCH = "must be true or false"
# What a part of the wrong kind should be, by pydantic's word for it.
KINDS = {
    "model_type": "must be a mapping, with a 'key: value' on each line",
    "model_attributes_type": "must be a mapping, with a 'key: value' on each line",
    "dict_type": "must be a mapping, with a 'name: value' on each line",
    "tuple_type": "must be a list, such as [1, 2]",
    "list_type": "must be a list, such as [1, 2]",
    "string_type": "must be text",
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "int_type": _WHOLE,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "bool_parsing": _SWITCH,
    "bool_type": _SWITCH,
}
_LIMITS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "literal_error": lambda c: f"must be {c['expected']}",
    "enum": lambda c: f"must be {c['expected']}",
    "greater_than": lambda c: f"must be above {c['gt']:.10g}",
    "greater_than_equal": lambda c: f"must be at least {c['ge']:.10g}",
    "less_than": lambda c: f"must be below {c['lt']:.10g}",
    "less_than_equal": lambda c: f"must be at most {c['le']:.10g}",
    "multiple_of": lambda c: f"must be a multiple of {c['multiple_of']:.10g}",
    "finite_number": lambda _: "must be a finite number",
    "too_short": lambda c: f"must have at least {counted(c['min_length'], 'entry')}, found {c['actual_length']}",
    "too_long": lambda c: f"must have at most {counted(c['max_length'], 'entry')}, found {c['actual_length']}",
    "string_too_short": lambda c: f"must have at least {counted(c['min_length'], 'character')}",
    "string_too_long": lambda c: f"must have at most {counted(c['max_length'], 'character')}",
    "string_pattern_mismatch": lambda c: f"must match {c['pattern']}",
    "union_tag_not_found": lambda c: f"needs the key {c['discriminator']}",
    "union_tag_invalid": lambda c: f"{c['discriminator']}: must be one of {c['expected_tags']}",
    "missing": lambda _: "is missing",
    "extra_forbidden": lambda _: "is not a known key",
}


def reason_of(error: BaseException | str) -> str:
    """The message of the system for an OSError, without the path; the text of any other error."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def one_line(error: BaseException) -> str:
    """The message of an error on one line; the name of its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def counted(number: int, noun: str) -> str:
    """``number`` with the noun in its right form: ``1 file``, ``1,200 files``."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """The plural of a noun of this program's messages."""
    return _PLURALS.get(noun, f"{noun}s")


def in_words(error: Mapping[str, Any]) -> str:
    """One of ``ValidationError.errors()`` as the end of a sentence about its field."""
    kind = error["type"]
    if kind in KINDS:
        return KINDS[kind]
    if kind in _LIMITS:
        return _LIMITS[kind](error.get("ctx", {}))
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message.replace("Input should be", "must be")


def first_problem(error: ValidationError) -> str:
    """The first problem of a document that does not fit: its field, and what is wrong there."""
    return next(iter(all_problems(error)))


def all_problems(error: ValidationError) -> list[str]:
    """Every problem of a document that does not fit, each with its field."""
    found = []
    for one in error.errors():
        # a check of several fields names the one at fault itself
        place = [*one["loc"], *getattr(one.get("ctx", {}).get("error"), "location", ())]
        found.append(": ".join(filter(None, [".".join(map(str, place)), in_words(one)])))
    return found

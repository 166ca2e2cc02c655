"""Families of problems: what a generator and its reader are, and the registry that names them.

A family is one file with two functions. ``make`` draws a problem: wording, answer and a worked solution. ``read``
computes the answer again from the text alone, by another path, and returns None where it does not understand the text
beyond doubt. ``read`` judges what a teacher made of a problem; a family without doubt in its reader is worth more than
one with more wording.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from armillary.generate import Message
from armillary.post.items import Item
from armillary.recipe import Language, UsageError

__all__ = [
    "LANGUAGES",
    "LEVELS",
    "Family",
    "Language",
    "Problem",
    "family_names",
    "family_of",
    "is_held_out",
    "register_family",
]

LANGUAGES: tuple[Language, ...] = ("zh", "en")  # their order decides which items are drawn
LEVELS = 3

_SAID: dict[Language, str] = {"zh": "答案是{}。", "en": "The answer is {}."}


@dataclass(frozen=True)
class Problem:
    """A question with its answer.

    Attributes:
        text: the question.
        answer: in the form in which a reply gives it.
        check: how replies are judged (see ``post.verify``).
        steps: the worked solution, without the sentence that gives the answer.
        parameters: what was drawn besides the wording, as JSON; decides whether a problem is held out.
        program: the answer to a code problem, which a reply shows as a block.
    """

    text: str
    answer: str
    check: Mapping[str, Any]
    steps: tuple[str, ...]
    parameters: Any
    program: str | None = None

    def reply(self, language: Language) -> str:
        """The worked solution with its answer."""
        last = _SAID[language].format(self.answer) if self.program is None else f"```python\n{self.program}\n```"
        return "\n".join([*self.steps, last])


@dataclass(frozen=True)
class Family:
    """A registered family. ``make`` takes a generator of random numbers, a level from 1 to ``LEVELS``, a language."""

    name: str
    domain: str
    make: Callable[[random.Random, int, Language], Problem]
    read: Callable[[str], str | None]

    def item(self, problem: Problem, level: int, language: Language) -> Item:
        """The problem with its worked solution as an item of training data."""
        messages = (Message("user", problem.text), Message("assistant", problem.reply(language)))
        answer = problem.program or problem.answer
        return Item(messages, answer, problem.check, self.domain, self.name, level, language)

    def same(self, text: str, item: Item) -> bool | None:
        """Whether ``text`` asks for the answer of ``item``; None where the reader does not understand it."""
        read = self.read(text)
        if read is None:
            return None
        return bool(read == (item.check or {}).get("tests", item.answer))


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Adds a family; its name must be new."""
    if family.name in _FAMILIES:
        raise ValueError(f"a family {family.name!r} exists")
    _FAMILIES[family.name] = family


def family_names() -> tuple[str, ...]:
    """The families that there are, in alphabetical order."""
    return tuple(sorted(_FAMILIES))


def family_of(name: str) -> Family:
    """The family of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in _FAMILIES:
        close = difflib.get_close_matches(name, _FAMILIES, 1)
        nearest = f"; nearest: {close[0]!r}" if close else ""
        raise UsageError(f"no family {name!r}{nearest}; there are {', '.join(family_names())}")
    return _FAMILIES[name]


def is_held_out(family: str, problem: Problem, share: float) -> bool:
    """Whether a problem belongs to the held-out part: decided by its parameters, whatever its wording and language."""
    text = json.dumps([family, problem.parameters], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2**64

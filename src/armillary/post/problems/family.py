"""Families of problems: generators, readers, and their registry.

A family is one file with two functions. ``make`` draws a problem: wording, answer and a worked solution. ``read``
recomputes the answer from the text alone, in a different way, and returns None unless it is sure to understand the
text. ``read`` judges a teacher's rewording of a problem, so a reliable reader matters more than varied wording.
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

LANGUAGES: tuple[Language, ...] = ("zh", "en")  # their order affects which items are drawn
LEVELS = 3

_SAID: dict[Language, str] = {"zh": "答案是{}。", "en": "The answer is {}."}


@dataclass(frozen=True)
class Problem:
    """A question with its answer.

    Attributes:
        text: the question.
        answer: the answer as a reply states it.
        check: how to judge replies (see ``post.verify``).
        steps: the worked solution, without the sentence that states the answer.
        parameters: the random draws except the wording, as JSON; they decide whether a problem is held out.
        program: the answer to a code problem, which a reply shows as a code block.
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
    """A registered family. ``make`` takes a random number generator, a level from 1 to ``LEVELS``, and a language."""

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
        """Whether the answer to ``text`` is that of ``item``; None if the reader does not understand it."""
        read = self.read(text)
        if read is None:
            return None
        return bool(read == (item.check or {}).get("tests", item.answer))


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Register a family; its name must be new."""
    if family.name in _FAMILIES:
        raise ValueError(f"a family {family.name!r} exists")
    _FAMILIES[family.name] = family


def family_names() -> tuple[str, ...]:
    """The names of all families, in alphabetical order."""
    return tuple(sorted(_FAMILIES))


def family_of(name: str) -> Family:
    """The family of this name.

    Raises:
        UsageError: no such family.
    """
    if name not in _FAMILIES:
        close = difflib.get_close_matches(name, _FAMILIES, 1)
        nearest = f"; nearest: {close[0]!r}" if close else ""
        raise UsageError(f"no family {name!r}{nearest}; known are {', '.join(family_names())}")
    return _FAMILIES[name]


def is_held_out(family: str, problem: Problem, share: float) -> bool:
    """Whether a problem belongs to the held-out part. Its parameters decide, not its wording or language."""
    text = json.dumps([family, problem.parameters], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2**64

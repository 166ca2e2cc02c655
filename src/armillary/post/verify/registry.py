"""Verifiers by ``check.kind``, and the one function that judges an answer.

A verifier is a registered function of the check's parameters and the reply. It returns one of three outcomes:
``right``, ``wrong``, or ``unreadable`` if the reply has no answer of the requested kind. Every call returns a verdict,
so verdicts and replies cannot get out of step.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from armillary.post.items import Item
from armillary.recipe import UsageError

Outcome = Literal["right", "wrong", "unreadable"]
OUTCOMES: tuple[Outcome, ...] = ("right", "wrong", "unreadable")


@dataclass(frozen=True)
class Verdict:
    """The ``outcome``, the answer ``found`` in the reply, and a ``note`` with the reason if it is not right."""

    outcome: Outcome
    found: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Task:
    """The input of a verifier: the parameters of the check, the correct answer, and the language of the question."""

    check: Mapping[str, Any]
    answer: str | None
    language: str

    def text(self, name: str) -> str:
        """A parameter that must be a text."""
        value = self.check.get(name)
        if not isinstance(value, str) or not value:
            raise UsageError(f"check.{name}: must be non-empty text, given {value!r:.200}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A parameter that must be a list of texts; empty if it is missing."""
        value = self.check.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            raise UsageError(f"check.{name}: must be a list of texts, given {value!r:.200}")
        return tuple(value)

    @property
    def gold(self) -> str:
        """The correct answer."""
        if not self.answer:
            raise UsageError(
                f"answer: a check of the kind {self.check['kind']!r} needs the right answer, but none is given"
            )
        return self.answer


Verifier = Callable[[Task, str], Verdict]
_VERIFIERS: dict[str, tuple[Verifier, frozenset[str]]] = {}


def register_verifier(kind: str, parameters: Iterable[str] = ()) -> Callable[[Verifier], Verifier]:
    """Register a verifier for checks of ``kind``, which may have these ``parameters``."""

    def add(verifier: Verifier) -> Verifier:
        _VERIFIERS[kind] = verifier, frozenset(parameters)
        return verifier

    return add


def verifier_kinds() -> tuple[str, ...]:
    """All kinds of checks."""
    return tuple(sorted(_VERIFIERS))


def judge_task(task: Task, reply: str) -> Verdict:
    """The verdict on ``reply``; see ``verify``."""
    kind = task.check.get("kind")
    if kind not in _VERIFIERS:
        close = difflib.get_close_matches(str(kind), _VERIFIERS, 1)
        nearest = f"; nearest: {close[0]!r}" if close else ""
        raise UsageError(f"check.kind: no verifier {kind!r}{nearest}; known are {', '.join(verifier_kinds())}")
    verifier, parameters = _VERIFIERS[kind]
    if unknown := sorted(task.check.keys() - parameters - {"kind"}):
        raise UsageError(
            f"check.{unknown[0]}: a check of the kind {kind!r} has no such parameter; it has "
            f"{', '.join(sorted(parameters)) or 'none'}"
        )
    if not reply.strip():
        return Verdict("unreadable", note="empty")
    return verifier(task, reply)


def verify(item: Item, reply: str | None) -> Verdict:
    """Judge ``reply`` as an answer to ``item``.

    Raises:
        UsageError: the item has no check, or one that no verifier can use; the message names the item and the field.
        ArmillaryError: the verifier itself failed (no sandbox, a missing library); never because of the reply.
    """
    if item.check is None:
        raise UsageError(f"item {item.id}: has no check, so answers to it cannot be verified")
    try:
        return judge_task(Task(item.check, item.answer, item.language), reply or "")
    except UsageError as error:
        raise UsageError(f"item {item.id}: {error}") from None


def verify_all(pairs: Iterable[tuple[Item, str | None]]) -> Iterator[Verdict]:
    """Yield one verdict for each pair of item and reply, in order."""
    for item, reply in pairs:
        yield verify(item, reply)

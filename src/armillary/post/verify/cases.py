"""A labelled reply: the unit of which error rates are measured (``calibrate``)."""

from __future__ import annotations

from dataclasses import dataclass

from armillary.post.verify.registry import Task


@dataclass(frozen=True)
class Case:
    """A reply with a known verdict: ``right`` says whether it must be accepted; ``mutation`` names the change."""

    kind: str
    mutation: str
    right: bool
    task: Task
    reply: str

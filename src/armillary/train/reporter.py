"""Reports of a run: events to its file, steps to its caller, and lines for the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from armillary.goodput import EventKind, EventWriter


@dataclass(frozen=True)
class Reporter:
    """``events`` are those of this rank; an event common to all ranks is written only by the ``first``.

    ``progress`` is called after each step with the number of finished steps; ``tell`` gets lines for the user. ``busy``
    is called with the name of work that may take longer than a step, and with None when steps follow.
    """

    events: EventWriter
    progress: Callable[[int], None]
    tell: Callable[[str], None] = lambda text: None
    busy: Callable[[str | None], None] = lambda work: None
    first: bool = True

    def write(self, kind: EventKind, step: int, duration_s: float | None = None, **data: Any) -> None:
        """Append one event that happens now."""
        self.events.write(kind, step, duration_s, **data)

    def fault(self, step: int, checkpoint: str, problem: str, remedy: str) -> None:
        """Report that a checkpoint is damaged or lost."""
        if not self.first:
            return
        self.write("fault", step, checkpoint=checkpoint, problem=problem, remedy=remedy)
        self.tell(f"checkpoint {checkpoint}: {problem}; {remedy}")

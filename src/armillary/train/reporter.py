"""What a run reports: events to its file, steps to its caller, and lines for a person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from armillary.goodput import EventKind, EventWriter


@dataclass(frozen=True)
class Reporter:
    """``events`` is None on ranks other than the first, which alone writes them.

    ``progress`` is called after each step with the number of finished steps; ``tell`` takes a line for a person.
    """

    events: EventWriter | None
    progress: Callable[[int], None]
    tell: Callable[[str], None] = lambda text: None

    def write(self, kind: EventKind, step: int, duration_s: float | None = None, **data: Any) -> None:
        """Append one event that happens now."""
        if self.events is not None:
            self.events.write(kind, step, duration_s, **data)

    def fault(self, step: int, checkpoint: str, problem: str, remedy: str) -> None:
        """Report that a checkpoint is damaged or lost."""
        self.write("fault", step, checkpoint=checkpoint, problem=problem, remedy=remedy)
        self.tell(f"checkpoint {checkpoint}: {problem}; {remedy}")

"""One schema for all that happens to a run (contract 3). Imports no torch."""

from armillary.goodput.events import Event, EventKind, EventWriter, read_events

__all__ = ["Event", "EventKind", "EventWriter", "read_events"]

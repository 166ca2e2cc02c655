"""One schema for all that happens to a run (contract 3). Imports no torch."""

from armillary.goodput.events import Event, EventKind, EventWriter, first_start_s, read_events

__all__ = ["Event", "EventKind", "EventWriter", "first_start_s", "read_events"]

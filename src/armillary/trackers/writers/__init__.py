"""A writer per tracker, each over the tracker's own package, which is imported when it is first used."""

from armillary.trackers.writers.writer import Writer, flat, open_writer

__all__ = ["Writer", "flat", "open_writer"]

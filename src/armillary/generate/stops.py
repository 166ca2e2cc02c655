"""Cuts an answer at its stop strings, and finds the part of a growing answer that is final."""

from __future__ import annotations

from collections.abc import Sequence


def before_stop(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first of the stop strings in it."""
    return text[: min([text.index(stop) for stop in stops if stop in text], default=len(text))]


def safe_end(text: str, stops: Sequence[str]) -> int:
    """The length of ``text`` that can be shown: it excludes a stop string, a possible start of one, and an unfinished
    character."""
    end = len(before_stop(text, stops))
    for stop in stops:
        sizes = range(min(len(stop) - 1, len(text)), 0, -1)
        end = min(end, len(text) - next((size for size in sizes if text.endswith(stop[:size])), 0))
    return min(end, len(text.rstrip("\ufffd")))

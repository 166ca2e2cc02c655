"""Verifies a file of items: keeps those with a right reply, and counts the others by outcome."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from armillary.post.items import read_rows
from armillary.post.records import Record, read_records
from armillary.post.stage import StageSpec, open_stage
from armillary.post.verify.registry import OUTCOMES, verify
from armillary.post.verify.shares import share_interval
from armillary.recipe import UsageError

_WINDOW = 64


def verify_file(
    data: Path, out: Path, progress: Callable[[int, int, str], None] = lambda done, total, note: None
) -> dict[str, Any]:
    """Run the stage ``verify`` in ``out`` over the items in ``data``; return its record.

    ``data`` has any format of `formats`. A row is kept, unchanged and in its own format, if its last reply is right; a
    preference pair if its chosen answer is right and its rejected one is not. Dropped rows say ``wrong``,
    ``unreadable``, ``no check``, ``no reply`` or ``rejected is right``, with the row, the answer found and the reason.
    ``progress`` gets the number of decided items, of all items, and a
    note.

    Raises:
        UsageError: the file, a row, or a check cannot be used; names file, line or item.
        ArmillaryError: see ``open_stage``, and ``verify``.
    """
    with open_stage(out, StageSpec("verify", {"version": 1}, {"items": data})) as stage:
        if stage.record is not None:
            return stage.record
        total = sum(1 for _ in read_records(data))
        if total == 0:
            raise UsageError(f"{data}: has no items; write one JSON object per line")
        # Programs run in sandboxes, which are separate processes: threads keep all cores busy.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for window in _windows(stage.pending(read_records(data))):
                for one, (outcome, row) in zip(window, pool.map(_judged, window), strict=True):
                    if outcome == "right":
                        stage.keep_rows(one.id, [one.row])
                    else:
                        stage.drop(one.id, outcome, {**row, "item": dict(one.row)})
                    progress(stage.decisions, total, f"{stage.kept} right")
        return stage.finish(_counts(stage.out, {**stage.dropped, "right": stage.kept}))


def _windows(records: Iterable[Record]) -> Iterator[list[Record]]:
    rest = iter(records)
    while window := list(itertools.islice(rest, _WINDOW)):
        yield window


def _judged(one: Record) -> tuple[str, Mapping[str, Any]]:
    item = one.judged
    if item.check is None:
        return "no check", {}
    if one.reply is None:
        return "no reply", {}
    verdict = verify(item, one.reply)
    found = {"found": verdict.found, "note": verdict.note}
    if verdict.outcome == "right" and one.rejected is not None:
        text = one.rejected[-1]["content"]
        if verify(item, text).outcome == "right":
            return "rejected is right", found
    return verdict.outcome, found


def _counts(out: Path, outcomes: Mapping[str, int]) -> dict[str, Any]:
    judged = {name: outcomes.get(name, 0) for name in OUTCOMES}
    total = sum(judged.values())
    share = share_interval(judged["right"], total) if total else None
    by = Counter(str(row.get("domain") or "none") for _, row in read_rows(out / "items.jsonl"))
    return {
        "outcomes": judged,
        "by": {"domain": dict(sorted(by.items()))},
        "verified": share and {"share": share.value, "low": share.low, "high": share.high, "of": total},
    }

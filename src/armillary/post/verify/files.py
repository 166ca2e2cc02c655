"""Verifies a file of items: keeps those with a right reply, and counts the others by outcome."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from armillary.post.items import Item, read_items
from armillary.post.stage import StageSpec, open_stage
from armillary.post.verify.registry import OUTCOMES, verify
from armillary.post.verify.shares import share_interval
from armillary.recipe import UsageError

_WINDOW = 64


def verify_file(
    data: Path, out: Path, progress: Callable[[int, int, str], None] = lambda done, total, note: None
) -> dict[str, Any]:
    """Run the stage ``verify`` in ``out`` over the items in ``data``; return its record.

    An item is kept if its reply is right. Dropped rows say ``wrong``, ``unreadable``, ``no check`` or ``no reply``,
    with the item, the answer found and the reason. ``progress`` gets the number of decided items, of all items, and a
    note.

    Raises:
        UsageError: the file, a row, or a check cannot be used; names file, line or item.
        ArmillaryError: see ``open_stage``, and ``verify``.
    """
    with open_stage(out, StageSpec("verify", {"version": 1}, {"items": data})) as stage:
        if stage.record is not None:
            return stage.record
        total = sum(1 for _ in read_items(data))
        if total == 0:
            raise UsageError(f"{data}: has no items; write one JSON object per line")
        # Programs run in sandboxes, which are separate processes: threads keep all cores busy.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for window in _windows(stage.pending(read_items(data))):
                for item, (outcome, row) in zip(window, pool.map(_judged, window), strict=True):
                    if outcome == "right":
                        stage.keep(item.id, item)
                    else:
                        stage.drop(item.id, outcome, {**row, "item": item.to_json()})
                    progress(stage.decisions, total, f"{stage.kept} right")
        return stage.finish(_counts(stage.out, {**stage.dropped, "right": stage.kept}))


def _windows(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while window := list(itertools.islice(rest, _WINDOW)):
        yield window


def _judged(item: Item) -> tuple[str, Mapping[str, Any]]:
    if item.check is None:
        return "no check", {}
    if item.reply is None:
        return "no reply", {}
    verdict = verify(item, item.reply)
    return verdict.outcome, {"found": verdict.found, "note": verdict.note}


def _counts(out: Path, outcomes: Mapping[str, int]) -> dict[str, Any]:
    judged = {name: outcomes.get(name, 0) for name in OUTCOMES}
    total = sum(judged.values())
    share = share_interval(judged["right"], total) if total else None
    by = Counter(item.domain or "none" for item in read_items(out / "items.jsonl"))
    return {
        "outcomes": judged,
        "by": {"domain": dict(sorted(by.items()))},
        "verified": share and {"share": share.value, "low": share.low, "high": share.high, "of": total},
    }

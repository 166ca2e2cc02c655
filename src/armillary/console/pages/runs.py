"""The list of runs with its filters, and the page of one run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from armillary.console import svg
from armillary.console.app import Page, missing
from armillary.console.curves import curve, metric_names, raw_events
from armillary.console.pages.compare import Chosen, panel
from armillary.console.places import Place, Run, rank_files
from armillary.recipe import EVENTS
from armillary.store import Key, ListedRun, RunFilter

STATUSES = ("running", "done", "interrupted", "pending", "failed", "refused", "diverged")
SIZES = (50, 100, 200)
_CONDITION = re.compile(r"(.+?)\s*(>=|<=|=)\s*([0-9.]+)\s*(%?)")
_EVENTS_SHOWN = 200
_QUIET = ("progress",)  # kinds already shown as curves


def runs(page: Page) -> dict[str, Any]:
    """A page of runs over all places, newest first."""
    wanted = _wanted(page)
    limit = int(page.get("per")) if page.get("per") in map(str, SIZES) else SIZES[0]
    before = key_of(page.get("before"))
    chosen = page.watch.place(page.get("store"))
    counts: dict[str, int] = {}
    rows: list[tuple[Place, ListedRun]] = []
    shapes: dict[str, int] = {}

    def read(place: Place) -> None:
        if chosen is not None and place is not chosen:
            return
        found = place.page(wanted, limit + 1, before)
        rows.extend((place, row) for row in found)
        for status, count in place.counts().items():
            counts[status] = counts.get(status, 0) + count
        for shape, count in place.reader.shapes() if place.reader is not None else ():
            shapes[shape] = shapes.get(shape, 0) + count

    list(page.watch.each(read, page.problems))
    rows.sort(key=lambda row: (row[1].created_at, row[1].run), reverse=True)
    more = len(rows) > limit
    shown = rows[:limit]
    last = shown[-1][1] if shown else None
    return {
        "rows": shown,
        "mean_loss": mean_loss,
        "counts": counts,
        "total": sum(counts.values()),
        "statuses": STATUSES,
        "shapes": sorted(shapes, key=lambda shape: -shapes[shape])[:30],
        "sizes": SIZES,
        "per": limit,
        "older": page.link(before=f"{last.created_at!r}~{last.run}") if more and last is not None else None,
        "first": page.link(before=None) if before is not None else None,
        "all_here": [f"{place.number}.{row.run}" for place, row in shown],
        "busy": any(row.status == "running" for _, row in shown),
    }


def run(page: Page) -> dict[str, Any]:
    """One run: state, curves, configuration, result and events."""
    found = page.watch.run(page.request.path_params["run"], page.problems)
    if found is None:
        if page.problems:
            return {"run": None, "busy": False}
        raise missing()
    names = metric_names(found.folder)
    domains = sorted({name.split("/")[1] for name in names if name.startswith("validation/") and name.count("/") == 2})
    chosen = [Chosen(found, found.label, 0)]
    panels = [panel(page, chosen, what) for what in ("loss", "grad_norm", "lr", "tokens_per_s")]
    if domains:
        panels.insert(1, _validation(page, found, domains))
    events = raw_events(found.folder / EVENTS)
    shown = [event for event in events if event.get("kind") not in _QUIET]
    return {
        "run": found,
        "row": found.listed,
        "label": found.label,
        "panels": [one for one in panels if one],
        "content": found.content,
        "flat": flat(found.content or {}),
        "events": [(event, about(event)) for event in shown[-_EVENTS_SHOWN:][::-1]],
        "step": last_step(events),
        "ranks": len(rank_files(found.folder)),
        "folder_there": found.folder.is_dir(),
        "mean_loss": mean_loss,
        "busy": found.listed.status == "running",
    }


def mean_loss(row: ListedRun) -> float | None:
    """The mean of the validation losses of a finished run."""
    losses = [value for value in ((row.result or {}).get("loss") or {}).values() if isinstance(value, int | float)]
    return sum(losses) / len(losses) if losses else None


def about(event: Mapping[str, Any]) -> str:
    """The data of an event as one line."""
    data = event.get("data")
    pairs = data.items() if isinstance(data, dict) else ()
    return ", ".join(f"{name} {value}" for name, value in pairs)[:400]


def last_step(events: list[dict[str, Any]]) -> int | None:
    """The number of finished steps in the last event."""
    return next((event["step"] for event in reversed(events) if isinstance(event.get("step"), int)), None)


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """A document flattened to dotted field names."""
    if isinstance(content, dict) and content:
        parts = [flat(value, f"{prefix}{name}.") for name, value in content.items()]
    elif isinstance(content, list) and any(isinstance(value, dict | list) for value in content):
        parts = [flat(value, f"{prefix}{number}.") for number, value in enumerate(content)]
    else:
        return {prefix.rstrip("."): float(f"{content:.6g}") if isinstance(content, float) else content}
    return {name: value for part in parts for name, value in part.items()}


def _validation(page: Page, run: Run, domains: list[str]) -> dict[str, Any] | None:
    series = []
    for hue, domain in enumerate(domains[:16]):
        x, y = curve(run.folder, "step", f"validation/{domain}/loss")
        if len(x):
            series.append(svg.Series(domain, x, y, hue, dots=len(x) < 40))
    if not series:
        return None
    limits = svg.focused([one.y for one in series])
    loss = page.words("with_unit", what=page.words("mean_loss"), unit=page.words("nats"))
    picture = svg.lines(series, svg.Axis(page.words("x_step")), svg.Axis(loss), y_range=limits)
    return {"title": loss, "picture": picture, "legend": [(one.label, one.hue % 8, one.hue // 8 % 4) for one in series]}


def _wanted(page: Page) -> RunFilter:
    conditions = []
    for text in filter(None, (part.strip() for part in page.get("mixture").split(","))):
        match = _CONDITION.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            value = float(match[3]) / (100 if match[4] else 1)
            conditions.append((match[1], match[2], value))
        except ValueError:
            page.problems.append(page.words("bad_filter", text=text))
    status = page.get("status")
    return RunFilter(
        status=status if status in STATUSES else "",
        study=page.get("study"),
        shape=page.get("shape").replace("×", "x").replace(" ", ""),
        run="".join(c for c in page.get("run") if c in "0123456789abcdef")[:16],
        tags=tuple(page.get("tag").replace(",", " ").split())[:8],
        mixture=tuple(conditions[:8]),
    )


def key_of(text: str) -> Key | None:
    when, _, run = text.partition("~")
    try:
        value = float(when)
    except ValueError:
        return None
    return (value, run) if np.isfinite(value) and run.isalnum() else None

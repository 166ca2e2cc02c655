"""Where the time of a run went: timeline, losses by cause, restarts and faults, step times of every rank, memory."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from armillary.console import svg
from armillary.console.app import Page, missing
from armillary.console.curves import Array, Cache, raw_events, state_of
from armillary.console.pages.runs import about
from armillary.console.places import Place, Run, rank_files
from armillary.goodput import ACCOUNTS, Ledger, read_ledger
from armillary.recipe import ArmillaryError
from armillary.store import ListedRun, RunFilter

_BINS = 240
_MOST_RANKS = 64
_COLUMNS = 160
_SHOWN = 60
_LOG = 200
_TOLD = ("fault", "detected", "restart", "restored", "degraded", "straggler", "skipped", "resume", "stop")
_LEDGERS = Cache(64)


def goodput(page: Page) -> dict[str, Any]:
    """Runs with their number of ranks, newest first."""

    def read(place: Place) -> list[tuple[Place, ListedRun, int]]:
        rows = []
        for row in place.page(RunFilter(), _SHOWN, None):
            folder = place.reader.run_folder(row.run) if place.reader is not None else place.found.runs[row.run]
            rows.append((place, row, len(rank_files(folder))))
        return rows

    rows = [row for _, found in page.watch.each(read, page.problems) for row in found if row[2]]
    rows.sort(key=lambda row: (row[2], row[1].created_at), reverse=True)
    return {"rows": rows[:_SHOWN], "busy": any(row.status == "running" for _, row, _ in rows)}


def run_goodput(page: Page) -> dict[str, Any]:
    """The ledger of one run."""
    run = page.watch.run(page.request.path_params["run"], page.problems)
    if run is None:
        if page.problems:
            return {"run": None}
        raise missing()
    if not rank_files(run.folder):
        return {"run": run, "label": run.label, "ledger": None}
    try:
        ledger = _ledger(run)
    except ArmillaryError as error:
        page.problems.append(str(error))
        return {"run": run, "label": run.label, "ledger": None}
    t = page.words
    events = [event for path in rank_files(run.folder).values() for event in raw_events(path, _TOLD)]
    timed = [event for event in events if isinstance(event.get("time_s"), int | float)]
    timed.sort(key=lambda event: float(event["time_s"]))
    unit, name = _unit(ledger.elapsed_s)
    axis = svg.Axis(t("since", unit=t(f"unit_{name}")))
    heat, low, high = _heat(run, axis, unit)
    shares = {
        account: value / ledger.elapsed_s if ledger.elapsed_s else 0.0 for account, value in ledger.seconds.items()
    }
    return {
        "run": run,
        "label": run.label,
        "ledger": ledger,
        "timeline": _timeline(ledger, axis, unit),
        "shares": [
            (account, ledger.seconds[account], shares[account]) for account in ACCOUNTS if ledger.seconds[account] > 0
        ],
        "heat": heat,
        "heat_ends": (t.span(low), t.span(high)),
        "memory": _memory(run),
        "events": [(event, about(event)) for event in timed[-_LOG:][::-1]],
        "reactions": [
            t.sentence(key, median=t.span(median(values)), n=len(values), most=t.span(max(values)))
            for key, values in (("detection", ledger.detection_s), ("recovery", ledger.recovery_s))
            if values
        ],
        "busy": run.listed.status == "running",
    }


def _ledger(run: Run) -> Ledger:
    files = rank_files(run.folder)
    states = tuple((path, state_of(path)) for path in files.values())
    return _LEDGERS.get(("ledger", states), lambda: read_ledger(run.folder))


def _timeline(ledger: Ledger, axis: svg.Axis, unit: float) -> Any:
    """Mean share of each account over the ranks, in bins of the elapsed time."""
    if not ledger.elapsed_s:
        return ""
    begin = min(own[0].begin_ns for own in ledger.spans.values() if own)
    edges = np.linspace(0, ledger.elapsed_s, _BINS + 1)
    sums = {account: np.zeros(_BINS) for account in ACCOUNTS}
    for own in ledger.spans.values():
        for account in ACCOUNTS:
            spans = np.array(
                [(span.begin_ns - begin, span.end_ns - begin) for span in own if span.account == account], float
            )
            if len(spans):
                # the cumulative time of an account is piecewise linear between the ends of its spans
                ends = spans.ravel() / 1e9
                taken = np.repeat(np.concatenate([[0.0], np.cumsum(ends[1::2] - ends[::2])]), 2)[1:-1]
                sums[account] += np.diff(np.interp(edges, ends, taken))
    whole = np.maximum(sum(sums.values()), 1e-12)
    return svg.stacked(edges / unit, [(account, sums[account] / whole) for account in ACCOUNTS], axis)


def _heat(run: Run, axis: svg.Axis, unit: float) -> tuple[Any, float, float]:
    """Seconds per step of each rank over time, and the lowest and highest of them."""
    portions: dict[int, list[tuple[float, float, float]]] = {}
    for rank, path in sorted(rank_files(run.folder).items())[:_MOST_RANKS]:
        step = 0
        for event in raw_events(path, ("progress", "start", "resume", "restored")):
            now, end, took = event.get("step"), event.get("time_s"), event.get("duration_s")
            if not isinstance(now, int) or not isinstance(end, int | float):
                continue
            if event["kind"] == "progress" and now > step and isinstance(took, int | float) and took > 0:
                portions.setdefault(rank, []).append((float(end) - float(took), float(end), float(took) / (now - step)))
            step = now
    if not portions:
        return "", 0.0, 0.0
    begin = min(own[0][0] for own in portions.values())
    end = max(own[-1][1] for own in portions.values())
    edges = np.linspace(begin, end, _COLUMNS + 1)
    table = np.full((len(portions), _COLUMNS), np.nan)
    for row, own in enumerate(portions.values()):
        firsts = np.clip(np.searchsorted(edges, [one[0] for one in own], "right") - 1, 0, _COLUMNS - 1)
        lasts = np.clip(np.searchsorted(edges, [one[1] for one in own], "left") - 1, 0, _COLUMNS - 1)
        for first, last, (_, _, value) in zip(firsts, lasts, own, strict=True):
            here: Array = table[row, first : last + 1]
            np.fmax(here, value, out=here)
    finite = table[np.isfinite(table)]
    names = [f"rank {rank}" for rank in portions]
    ends = (0.0, (end - begin) / unit)
    picture = svg.heat(table, names, axis, ends, lambda value: f"{value:.3g} s")
    return picture, float(finite.min()), float(finite.max())


def _memory(run: Run) -> list[tuple[int, float]]:
    """The peak memory in GiB in the events of each rank."""
    found = []
    for rank, path in sorted(rank_files(run.folder).items())[:_MOST_RANKS]:
        values = []
        for event in raw_events(path, ("running", "progress", "end", "stop", "checkpoint", "resume", "start")):
            data = event.get("data")
            for name, value in data.items() if isinstance(data, dict) else ():
                if "memory" in name and isinstance(value, int | float):
                    values.append(value if name.endswith("gib") else value / 2**30)
        if values:
            found.append((rank, max(values)))
    return found


def _unit(seconds: float) -> tuple[float, str]:
    units = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))
    return next(((size, name) for size, name in units if seconds >= 3 * size), (1.0, "s"))

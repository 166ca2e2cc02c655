"""Predictions and outcomes: how often the intervals covered, and whether the chain of records is intact."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from scipy import stats

from armillary.console import svg
from armillary.console.app import Page
from armillary.console.pages.runs import key_of
from armillary.console.places import Check, Place
from armillary.recipe import ArmillaryError, parse_budget, read_json
from armillary.report import format as fmt
from armillary.store import Reader, RecordedPrediction

_SHOWN = 40
_INTERVAL = 0.9
_POINTS = 400
_PATIENCE = 20  # a chain is checked again after this many times the duration of the last check


def predictions(page: Page) -> dict[str, Any]:
    """Predictions, newest first, with calibration, the chain of records, and budgets."""
    before = key_of(page.get("before"))
    rows: list[tuple[Place, RecordedPrediction]] = []
    chains: list[tuple[Place, dict[str, Any]]] = []
    judged: list[tuple[str, float, bool]] = []

    def read(place: Place) -> None:
        if place.reader is None:
            return
        rows.extend((place, one) for one in place.reader.recorded_predictions(_SHOWN + 1, before))
        chains.append((place, _chain_of(page, place.reader, place.check)))
        for verdict in place.reader.verdicts():
            judged.extend(_judged(verdict))

    list(page.watch.each(read, page.problems))
    rows.sort(key=lambda row: (row[1].recorded_at, row[1].key), reverse=True)
    shown = rows[:_SHOWN]
    inside = sum(held for _, _, held in judged)
    last = shown[-1][1] if shown else None
    return {
        "rows": [(place, one, list(_lines(page, one))) for place, one in shown],
        "run_of": lambda one: one.content.get("run", one.key),
        "chains": chains,
        "judged": len(judged),
        "calibration": _calibration(page, inside, len(judged)),
        "chart": _chart(page, judged[-_POINTS:]),
        "budgets": [(place, values) for place in page.watch.places if (values := _budget(page, place)) is not None],
        "older": page.link(before=f"{last.recorded_at!r}~{last.key}") if len(rows) > _SHOWN and last else None,
        "first": page.link(before=None) if before is not None else None,
        "busy": any(state["checking"] for _, state in chains) or any(one.verdict is None for _, one in shown),
    }


def _lines(page: Page, one: RecordedPrediction) -> Iterator[dict[str, Any]]:
    """A line for each predicted quantity."""
    content, verdict = one.content, one.verdict or {}
    outcome = {row.get("domain"): row for row in verdict.get("rows", ()) if isinstance(row, dict)}
    values: dict[str, Any] = dict(content.get("domains") or {})
    if isinstance(content.get("target"), dict):
        values["target"] = content["target"]
    if "score" in content:
        name = page.words("score_of", task=content.get("examination", ""))
        values[name] = content["score"]
        outcome[name] = next(iter(outcome.values()), {})
    for name, value in values.items():
        if not isinstance(value, dict):
            continue
        found = outcome.get(name, {})
        yield {
            "name": page.words("target") if name == "target" else name,
            **{end: value.get(end) for end in ("predicted", "low", "high")},
            "measured": found.get("measured"),
            "inside": found.get("inside"),
            "diverged": verdict.get("status") == "diverged",
        }


def _judged(verdict: Mapping[str, Any]) -> Iterator[tuple[str, float, bool]]:
    """Name, position of the measurement in half widths of its interval, and whether it is inside."""
    for row in verdict.get("rows", ()):
        try:
            low, high, inside = float(row["low"]), float(row["high"]), bool(row["inside"])
            predicted = float(row["predicted"])
        except (KeyError, TypeError, ValueError):
            continue
        measured = row.get("measured")
        half = (high - predicted) if measured is None or measured >= predicted else (predicted - low)
        where = float("inf") if measured is None else (float(measured) - predicted) / (half or 1e-12)
        yield str(row.get("domain", "")), where, inside


def _calibration(page: Page, inside: int, judged: int) -> str:
    if not judged:
        return page.words("calibration_none")
    low, high = stats.binom.ppf([0.05, 0.95], judged, _INTERVAL) / judged
    values = {"inside": inside, "n": judged, "share": fmt.percent(inside / judged)}
    return page.words.sentence("calibration_lead", **values, low=fmt.percent(low), high=fmt.percent(high))


def _chart(page: Page, judged: list[tuple[str, float, bool]]) -> Any:
    """Stacked dots over the position in the interval."""
    bins: dict[float, int] = {}
    groups: dict[str, list[tuple[float, float]]] = {"inside": [], "outside": []}
    for _, where, held in sorted(judged, key=lambda one: one[1]):
        place = round(max(-3.0, min(3.0, where)) * 8) / 8
        bins[place] = bins.get(place, 0) + 1
        groups["inside" if held else "outside"].append((place, float(bins[place])))
    named = [(page.words(name), points) for name, points in groups.items()]
    return svg.stack(named, page.words("z_axis"), (-1.0, 1.0))


_LOCK = threading.Lock()


def _chain_of(page: Page, reader: Reader, check: Check) -> dict[str, Any]:
    """The state of a store's chain; a long one is checked in the background, and the page says so."""
    head = reader.head()
    with _LOCK:
        due = check.head != head and time.monotonic() - check.at > _PATIENCE * check.took
        start = due and not check.running
        if start:
            check.running = True
    if start:
        thread = threading.Thread(target=_check, args=(reader, check, head), daemon=True)
        thread.start()
        thread.join(0.1)  # a short chain is checked at once
    found = check.chain
    return {
        "n": head[0],
        "checking": check.running or (found is None and not check.error),
        "none": head[0] == 0,
        "problems": [check.error] if check.error else [] if found is None else list(found.problems),
        "clock": 0 if found is None else len(found.clock),
        "head": "" if found is None else found.head,
        "records": 0 if found is None else len(found.entries),
        "when": page.words.moment(check.at and time.time() - (time.monotonic() - check.at)),
    }


def _check(reader: Reader, check: Check, head: tuple[int, str]) -> None:
    begun = time.monotonic()
    try:
        check.chain, check.error = reader.chain(), ""
    except (ArmillaryError, OSError) as error:
        check.error = str(error)
    finally:
        check.head, check.at = head, time.monotonic()
        check.took = check.at - begun
        check.running = False


def _budget(page: Page, place: Place) -> dict[str, Any] | None:
    """Planned and spent time of a workspace, by stage; None if it has no plan."""
    if place.workspace is None:
        return None
    try:
        plan = read_json(place.workspace / "plan.json", "plan", "").get("plan", {})
        cost = read_json(place.workspace / "cost.json", "wall time", "")
        spent = {name: float(value) for name, value in cost.get("wall_s", {}).items()}
        planned = {name: float(value) for name, value in plan.get("seconds", {}).items()}
        budget, unit = parse_budget(plan["budget"]) if plan.get("budget") else (0.0, "s")
    except (ArmillaryError, OSError, TypeError, ValueError, AttributeError):
        return None
    whole = budget if unit == "s" else 0.0
    t, total = page.words, sum(spent.values())
    sentence = ""
    if whole:
        key = "budget_lead" if total <= whole else "budget_over"
        sentence = t.sentence(key, spent=t.span(total), budget=t.span(whole), left=t.span(whole - total))
    stages = [(t.name(name), planned.get(name), spent.get(name)) for name in dict.fromkeys([*spent, *planned])]
    return {"sentence": sentence, "stages": stages}

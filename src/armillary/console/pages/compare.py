"""Curves of runs over steps, tokens, FLOPs or time, raw and smoothed, and the differences of their specifications."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from armillary.console import svg
from armillary.console.app import Page
from armillary.console.curves import Array, curve, metric_names, progress, raw_events, smoothed
from armillary.console.places import Run
from armillary.plan import accelerators
from armillary.recipe import EVENTS
from armillary.report import format as fmt

MOST = 200
OVER = ("step", "tokens", "flops", "time")
WINDOWS = (1, 10, 50, 200)
SPEEDS = ("tokens_per_s", "flops_per_s", "mfu")
PLAIN = ("loss", "grad_norm", "lr", *SPEEDS)
_POINTS = 48_000  # per chart
_RAW = 8  # runs whose raw values are drawn behind the smoothed curves
_LEGEND = 30
_DIFFERENT = 24  # maximum number of configurations shown side by side


@dataclass(frozen=True)
class Chosen:
    """A run of a comparison, its label, and its colour."""

    run: Run
    label: str
    hue: int


def compare(page: Page) -> dict[str, Any]:
    """Any set of runs side by side."""
    from armillary.console.pages.runs import flat, last_step, mean_loss

    keys = list(dict.fromkeys(page.all("run")))
    found = page.watch.runs(keys[:MOST], page.problems)
    chosen = [Chosen(run, _label(run, found), hue) for hue, run in enumerate(found)]
    what = page.get("y", "loss")
    names = list(dict.fromkeys(name for one in chosen[:3] for name in metric_names(one.run.folder)))
    measured = [name for name in names if name.startswith("validation/")]
    options = [*PLAIN, *(name for name in names if name not in ("step", "tokens", *PLAIN, *measured)), *measured]
    if what not in options:
        what = "loss"
    columns = [flat(one.run.content or {}) for one in chosen[:_DIFFERENT]]
    fields = list(dict.fromkeys(name for column in columns for name in column))
    differing = [
        (name, [column.get(name, "") for column in columns])
        for name in fields
        if len({str(column.get(name, "")) for column in columns}) > 1
    ]
    return {
        "chosen": chosen,
        "left_out": max(0, len(keys) - MOST),
        "most": MOST,
        "panel": panel(page, chosen, what) if chosen else None,
        "what": what,
        "options": [(name, name_of(page, name)) for name in options],
        "over": OVER,
        "windows": WINDOWS,
        "hardware": sorted(accelerators()),
        "differing": differing[:300],
        "mean_loss": mean_loss,
        "steps": {
            one.run.key: last_step(raw_events(one.run.folder / EVENTS, ("progress", "end"))) for one in chosen[:_LEGEND]
        },
        "busy": any(one.run.listed.status == "running" for one in chosen),
    }


def name_of(page: Page, what: str) -> str:
    """The label of a quantity."""
    parts = what.split("/")
    if parts[0] == "validation" and len(parts) == 3:
        return page.words("y_bits" if parts[2] == "bits_per_byte" else "y_validation", domain=parts[1])
    return page.words(f"y_{what}") if what in PLAIN else what


def panel(page: Page, chosen: Sequence[Chosen], what: str) -> dict[str, Any] | None:
    """The chart of one quantity of all runs, with its legend; None if no run has the quantity."""
    over = page.get("x", "step")
    over = over if over in OVER else "step"
    window = int(page.get("smooth")) if page.get("smooth") in map(str, WINDOWS) else (1 if what == "lr" else 10)
    columns = max(40, min(svg.WIDTH, _POINTS // (4 * max(1, len(chosen)))))
    series: list[svg.Series] = []
    for one in chosen:
        x, y = values(page, one.run, over, what)
        if not len(x):
            continue
        smooth = window > 1 and what not in SPEEDS and not what.startswith("validation/") and len(x) > window
        if smooth and len(chosen) <= _RAW:
            series.append(svg.Series(one.label, *svg.decimate(x, y, columns), one.hue, faint=True))
        y = smoothed(y, window) if smooth else y
        few = len(x) < 40
        series.append(svg.Series(one.label, *svg.decimate(x, y, columns), one.hue, dots=few))
    if not series:
        return None
    log = page.get("log") == "1"
    plain = [one.y for one in series if not one.faint]
    limits = svg.focused(plain) if not log and what != "lr" and page.get("whole") != "1" else None
    form = fmt.short if over in ("tokens", "flops") else None
    percent = fmt.percent if what == "mfu" else None
    picture = svg.lines(
        series,
        svg.Axis(page.words(f"x_{over}"), log and over in ("tokens", "flops"), form),
        svg.Axis(name_of(page, what), log and what != "lr", percent),
        y_range=limits,
    )
    legend = [(one.label, one.hue % svg.HUES, one.hue // svg.HUES % 4) for one in series if not one.faint]
    return {"title": name_of(page, what), "picture": picture, "legend": legend[:_LEGEND] if len(chosen) > 1 else []}


def values(page: Page, run: Run, over: str, what: str) -> tuple[Array, Array]:
    """One quantity of a run over another; empty if it is unknown."""
    if what in SPEEDS:
        steps, _, seconds = progress(run.folder)
        tokens = _tokens(run, steps)
        if tokens is None or not len(steps):
            return np.array([]), np.array([])
        with np.errstate(divide="ignore", invalid="ignore"):
            y = np.diff(tokens, prepend=0.0) / seconds
        y *= _scale(page, run, what)
        valid = np.isfinite(y) & (seconds > 0)
        x = steps[valid]
        y = y[valid]
    else:
        x, y = curve(run.folder, "step", what)
    if over == "step" or not len(x):
        return x, y
    if over == "time":
        steps, clock, _ = progress(run.folder)
        if not len(steps):
            return np.array([]), np.array([])
        inside = x <= steps[-1]
        return np.interp(x[inside], np.insert(steps, 0, 0.0), np.insert(clock, 0, 0.0)), y[inside]
    tokens = _tokens(run, x)
    if tokens is None:
        return np.array([]), np.array([])
    return (tokens, y) if over == "tokens" else (tokens * _flops_per_token(run), y)


def _scale(page: Page, run: Run, what: str) -> float:
    """The factor from tokens per second to the quantity."""
    if what == "tokens_per_s":
        return 1.0
    rate = _flops_per_token(run)
    if what == "flops_per_s":
        return rate
    chosen = accelerators().get(page.get("hardware"))
    precision = "bf16" if run.spec is not None and run.spec.precision == "bf16" else "fp32"
    if chosen is None or precision not in chosen.peak:
        return float("nan")
    begun = raw_events(run.folder / EVENTS, ("start", "resume"))
    ranks = [event.get("data", {}).get("ranks", 1) for event in begun if isinstance(event.get("data"), dict)]
    count = ranks[-1] if ranks and isinstance(ranks[-1], int) and ranks[-1] > 0 else 1
    return rate / (chosen.flops(precision) * count)


def _tokens(run: Run, steps: Array) -> Array | None:
    """Tokens after these steps."""
    spec = run.spec
    if spec is None:
        return None
    if not spec.lengths:
        return steps * float(spec.batch_tokens)
    return np.array([float(spec.tokens_after(int(step))) for step in steps])


def _flops_per_token(run: Run) -> float:
    """Mean over the whole run: with several context lengths an approximation."""
    spec = run.spec
    return float("nan") if spec is None else spec.flops / spec.tokens


def _label(run: Run, others: Sequence[Run]) -> str:
    """The id, with the seed if seeds differ, and the place if there are several."""
    name = run.folder.name if run.place.reader is None else run.listed.run
    several = len({other.place.number for other in others}) > 1
    return f"{name} ({run.place.name})" if several else f"{name} {run.listed.shape}"

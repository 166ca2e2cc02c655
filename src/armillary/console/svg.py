"""Charts as inline SVG, drawn by the server: no scripts and no inline styles, which the pages' policy forbids.

Colours, dashes and fonts are classes of ``console.css``, so one picture serves light and dark screens. Every series
differs by dash or shape as well as by colour. All text is escaped here. Coordinates are pixels of a picture of
``WIDTH``; a phone scrolls it sideways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from armillary.report import format as fmt

Array = NDArray[np.float64]

WIDTH = 860
HUES = 8
_LONGEST = 40  # characters of a label


@dataclass(frozen=True)
class Series:
    """A line. ``hue`` sets colour and dash; ``faint`` lines are behind the others and not in the legend."""

    label: str
    x: Array
    y: Array
    hue: int = 0
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """The label of an axis, and the format of its ticks."""

    label: str = ""
    log: bool = False
    form: Callable[[float], str] | None = None


@dataclass(frozen=True)
class Row:
    """A line of an interval chart: ``low`` to ``high`` around ``middle``, and measured ``points`` below.

    ``marked`` rows have a shaded ground. A point with ``inside`` False is drawn as a cross.
    """

    label: str
    low: float | None = None
    high: float | None = None
    middle: float | None = None
    points: Sequence[float] = ()
    inside: bool | None = None
    marked: bool = False
    hue: int = 0


@dataclass
class _Frame:
    """The position of the axes in a chart, and the scales."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)
    log_x: bool = False
    log_y: bool = False
    parts: list[Markup] = field(default_factory=list)

    def at_x(self, value: Array | float) -> Array:
        low, high = self.x
        shown = np.log10(np.maximum(value, 1e-300)) if self.log_x else np.asarray(value, float)
        return np.asarray(self.left + (shown - low) / ((high - low) or 1.0) * self.width)

    def at_y(self, value: Array | float) -> Array:
        low, high = self.y
        shown = np.log10(np.maximum(value, 1e-300)) if self.log_y else np.asarray(value, float)
        return np.asarray(self.top + self.height - (shown - low) / ((high - low) or 1.0) * self.height)


def decimate(x: Array, y: Array, columns: int) -> tuple[Array, Array]:
    """The line reduced to ``columns`` pixel columns: the first, lowest, highest and last point of each.

    ``x`` must not fall. A line with at most four points per column stays as it is.
    """
    if len(x) <= 4 * columns:
        return x, y
    edges = np.linspace(x[0], x[-1], columns + 1)
    starts = np.unique(np.searchsorted(x, edges[:-1], side="left"))
    starts = starts[starts < len(x)]
    sizes = np.diff(np.append(starts, len(x)))
    lowest, highest = (np.repeat(of.reduceat(y, starts), sizes) for of in (np.minimum, np.maximum))
    kept = (y == lowest) | (y == highest)
    kept[starts] = kept[starts + sizes - 1] = True
    if np.count_nonzero(kept) > 8 * columns:  # long runs of one value
        kept[np.flatnonzero(kept)[1:-1]] &= (np.diff(y[kept])[1:] != 0) | (np.diff(y[kept])[:-1] != 0)
    return x[kept], y[kept]


def lines(
    series: Sequence[Series], x: Axis, y: Axis, height: int = 320, y_range: tuple[float, float] | None = None
) -> Markup:
    """Lines over a common axis, with a legend below for 2 to 24 labels."""
    shown = [one for one in series if len(one.x)]
    if not shown:
        return Markup("")
    xs = np.concatenate([one.x[[0, -1]] for one in shown])
    ys = np.concatenate([one.y[np.isfinite(one.y)] for one in shown if not one.faint] or [one.y for one in shown])
    frame = _framed(height, (float(xs.min()), float(xs.max())), y_range or _limits(ys, y.log), x, y)
    drawn = Markup("").join(_line(frame, one) for one in sorted(shown, key=lambda one: not one.faint))
    # a nested SVG clips everything outside its frame
    frame.parts.append(
        Markup('<svg x="{0}" y="{1}" width="{2}" height="{3}" viewBox="{0} {1} {2} {3}">{4}</svg>').format(
            frame.left - 4, frame.top - 4, frame.width + 8, frame.height + 8, drawn
        )
    )
    return _svg(frame, height, x, y)


def focused(values: Iterable[Array]) -> tuple[float, float] | None:
    """Limits without the steep fall of the first steps, which would flatten the rest of a loss curve."""
    tails = [value[len(value) // 20 :] for value in values if len(value)]
    tails = [value[np.isfinite(value)] for value in tails]
    every = np.concatenate(tails) if tails else np.array([])
    if len(every) == 0:
        return None
    low, high = float(every.min()), float(np.quantile(every, 0.995))
    return low - 0.05 * (high - low), high + 0.08 * (high - low) or low + 1.0


def scatter(predicted: Sequence[float], measured: Sequence[float], x: str, y: str, size: int = 250) -> Markup:
    """Predicted against measured, with the line on which both are equal."""
    pairs = [(p, m) for p, m in zip(predicted, measured, strict=False) if math.isfinite(p) and math.isfinite(m)]
    if not pairs:
        return Markup("")
    limits = _limits(np.array(pairs).ravel(), False)
    frame = _framed(size, limits, limits, Axis(x), Axis(y), width=size + 40)
    ends = np.array(limits)
    frame.parts.append(
        Markup('<line class="guide" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
            *(float(v) for v in (frame.at_x(ends)[0], frame.at_y(ends)[0], frame.at_x(ends)[1], frame.at_y(ends)[1]))
        )
    )
    frame.parts += [_dot(frame, p, m, 0) for p, m in pairs]
    return _svg(frame, size, Axis(x), Axis(y), size + 40)


def stack(groups: Sequence[tuple[str, Sequence[tuple[float, float]]]], label: str, ends: tuple[float, float]) -> Markup:
    """Stacked points over an axis of at least ``ends``, one marker shape per group; heights are counts."""
    every = np.array([point for _, points in groups for point in points], float)
    if not len(every):
        return Markup("")
    low, high = min(ends[0], float(every[:, 0].min())), max(ends[1], float(every[:, 0].max()))
    most = float(every[:, 1].max())
    height = int(min(260, 62 + 16 * most))
    frame = _Frame(20, 8, WIDTH - 40, height - 52, (low - 0.1, high + 0.1), (0.4, most + 0.5))
    _x_ticks(frame, Axis(label))
    for value in (*ends, 0.0):
        frame.parts.append(
            Markup('<line class="guide" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
                float(frame.at_x(value)), frame.top, frame.top + frame.height
            )
        )
    for hue, (name, points) in enumerate(groups):
        frame.parts += [_dot(frame, a, b, hue, name) for a, b in points]
    return _svg(frame, height, Axis(label), Axis())


def dots(groups: Sequence[tuple[str, Sequence[tuple[float, float]]]], x: Axis, y: Axis, height: int = 320) -> Markup:
    """Points in groups, one marker shape per group."""
    every = np.array([point for _, points in groups for point in points], float)
    if not len(every):
        return Markup("")
    limits = _limits(every[:, 0], x.log)
    frame = _framed(height, limits, _limits(every[:, 1], y.log), x, y, scaled=True)
    for hue, (label, points) in enumerate(groups):
        frame.parts += [_dot(frame, a, b, hue, label) for a, b in points]
    return _svg(frame, height, x, y)


def intervals(rows: Sequence[Row], label: str, form: Callable[[float], str], zero: float | None = None) -> Markup:
    """One row for each: an interval with its middle as a diamond, and measurements as dots."""
    values = [
        v
        for row in rows
        for v in (row.low, row.high, row.middle, *row.points, zero)
        if v is not None and math.isfinite(v)
    ]
    if not values:
        return Markup("")
    step, top = 34, 6
    height = int(top + step * len(rows) + 42)
    left = min(320.0, 16 + max(_width(_cut(row.label)) for row in rows))
    low, high = _limits(np.array(values), False)
    frame = _Frame(left, top, WIDTH - left - 20, step * len(rows), (low, high))
    _x_ticks(frame, Axis(label, form=form))
    if zero is not None:
        at = float(frame.at_x(zero))
        frame.parts.append(
            Markup('<line class="guide" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
                at, top, top + step * len(rows)
            )
        )
    for number, row in enumerate(rows):
        frame.parts.append(_interval(frame, row, top + step * (number + 0.5), form))
    return _svg(frame, height, Axis(label), Axis())


def bars(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], form: Callable[[float], str]) -> Markup:
    """Horizontal bars, several for each row, such as the weights of mixtures by domain."""
    if not rows:
        return Markup("")
    each, gap = 15, 12
    block = each * len(names) + gap
    left = min(300.0, 16 + max(_width(_cut(label)) for label, _ in rows))
    high = max([value for _, values in rows for value in values] + [1e-12])
    frame = _Frame(left, 4, WIDTH - left - 76, block * len(rows), (0.0, high))
    for number, (label, values) in enumerate(rows):
        top = 4 + block * number
        frame.parts.append(_text(left - 8, top + (block - gap) / 2 + 4, _cut(label), "end", "name"))
        for hue, value in enumerate(values):
            y = top + each * hue
            frame.parts.append(
                Markup('<rect class="bar s{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}"/>').format(
                    hue, left, y, max(0.5, float(frame.at_x(value)) - left), each - 3
                )
            )
            frame.parts.append(_text(float(frame.at_x(value)) + 5, y + each - 5, form(value), "start", "small"))
    return _svg(frame, int(block * len(rows) + 8), Axis(), Axis())


def stacked(edges: Array, shares: Sequence[tuple[str, Array]], x: Axis, height: int = 180) -> Markup:
    """Shares [bins] of several accounts, stacked to at most 1 in each bin between ``edges`` [bins + 1]."""
    frame = _framed(height, (float(edges[0]), float(edges[-1])), (0.0, 1.0), x, Axis(form=fmt.share))
    floor = np.zeros(len(edges) - 1)
    at = frame.at_x(edges)
    for account, values in shares:
        if not values.any():
            continue
        top = floor + values
        upper = np.column_stack([at[:-1], frame.at_y(top), at[1:], frame.at_y(top)]).reshape(-1, 2)
        lower = np.column_stack([at[:-1], frame.at_y(floor), at[1:], frame.at_y(floor)]).reshape(-1, 2)[::-1]
        frame.parts.append(
            Markup('<polygon class="a-{}" points="{}"><title>{}</title></polygon>').format(
                account, _points(np.concatenate([upper, lower])), account.replace("_", " ")
            )
        )
        floor = top
    return _svg(frame, height, x, Axis())


def heat(
    values: Array, rows: Sequence[str], x: Axis, ends: tuple[float, float], form: Callable[[float], str]
) -> Markup:
    """A map of ``values`` [rows, columns] over ``ends`` of the axis, from the 2nd to the 98th percentile."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Markup("")
    low, high = float(np.quantile(finite, 0.02)), float(np.quantile(finite, 0.98))
    each = max(6, min(22, 260 // len(rows)))
    height = each * len(rows) + 46
    left = 16 + max(_width(name) for name in rows)
    frame = _Frame(left, 4, WIDTH - left - 20, each * len(rows), ends)
    _x_ticks(frame, x)
    wide = frame.width / values.shape[1]
    shown = max(1, len(rows) // 16)
    for number, name in enumerate(rows):
        y = 4 + each * number
        if number % shown == 0:
            frame.parts.append(_text(left - 8, y + each / 2 + 4, name, "end", "small"))
        for column, value in enumerate(values[number]):
            if math.isfinite(value):
                level = min(9, max(0, int(10 * (value - low) / ((high - low) or 1.0))))
                frame.parts.append(
                    Markup(
                        '<rect class="h{}" x="{:.1f}" y="{}" width="{:.2f}" height="{}"><title>{}: {}</title></rect>'
                    ).format(level, left + column * wide, y, wide + 0.3, each - 1, name, form(float(value)))
                )
    return _svg(frame, height, x, Axis())


def strip(weights: Sequence[float]) -> Markup:
    """A mixture as one bar in a table cell."""
    parts, at = [], 0.0
    for hue, weight in enumerate(weights):
        wide = 120 * max(0.0, weight)
        parts.append(
            Markup('<rect class="bar s{}" x="{:.1f}" y="0" width="{:.1f}" height="10"/>').format(hue % HUES, at, wide)
        )
        at += wide
    return Markup('<svg class="strip" viewBox="0 0 120 10" width="120" height="10" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, 2 to ``most`` of them where possible."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    unit = 10.0 ** math.floor(math.log10(span / most))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10, 20) if span / (unit * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [(first + n) * step for n in range(int((high + 1e-9 * step) / step - first) + 1)]


def _limits(values: Array, log: bool) -> tuple[float, float]:
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not len(values):
        return 0.0, 1.0
    shown = np.log10(values) if log else values
    low, high = float(shown.min()), float(shown.max())
    margin = 0.05 * (high - low) or 0.05 * (abs(low) or 1.0)
    return low - margin, high + margin


def _framed(
    height: int,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x: Axis,
    y: Axis,
    width: int = WIDTH,
    scaled: bool = False,
) -> _Frame:
    """Axes with ticks; ``x_range`` and ``y_range`` are of the values, or of their logarithms on a ``scaled`` axis."""
    if x.log and not scaled:
        low, high = (math.log10(max(value, 1e-9)) for value in x_range)
        x_range = (low, high if high > low else low + 1)
    elif not x_range[1] > x_range[0]:
        x_range = (x_range[0] - 0.5, x_range[1] + 0.5)
    left = 68.0
    frame = _Frame(left, 12, width - left - 16, height - 58, x_range, y_range, x.log, y.log)
    for value, text in _marks(y_range, y):
        at = float(frame.at_y(value))
        frame.parts.append(
            Markup('<line class="grid" x1="{0:.1f}" x2="{1:.1f}" y1="{2:.1f}" y2="{2:.1f}"/>').format(
                left, left + frame.width, at
            )
        )
        frame.parts.append(_text(left - 8, at + 4, text, "end", "small"))
    _x_ticks(frame, x)
    return frame


def _x_ticks(frame: _Frame, x: Axis) -> None:
    for value, text in _marks(frame.x, x, 5 if frame.width < 400 else 8):
        at, bottom = float(frame.at_x(value)), frame.top + frame.height
        frame.parts.append(
            Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>').format(
                at, frame.top, bottom
            )
        )
        frame.parts.append(_text(at, bottom + 16, text, "middle", "small"))


def _marks(limits: tuple[float, float], axis: Axis, most: int = 6) -> list[tuple[float, str]]:
    """Values of the ticks, and their labels."""
    low, high = limits
    if not axis.log:
        values = ticks(low, high, most)
        step = abs(values[1] - values[0]) if len(values) > 1 else 1.0
        return [(value, axis.form(value) if axis.form else _number(value, step)) for value in values]
    powers = [(p, f) for p in range(math.floor(low), math.ceil(high) + 1) for f in (1, 2, 5)]
    inside = [f * 10.0**p for p, f in powers if low - 1e-9 <= p + math.log10(f) <= high + 1e-9]
    if len(inside) > most:
        inside = [value for value in inside if abs(math.log10(value) - round(math.log10(value))) < 1e-9] or inside[::3]
    if len(inside) < 2:  # less than a factor of 2
        inside = [10.0**value for value in ticks(low, high, 4)]
    return [(value, axis.form(value) if axis.form else fmt.short(value)) for value in inside]


def _number(value: float, step: float) -> str:
    """The label of a tick on a linear axis, with enough decimals to differ from its neighbours."""
    if abs(value) >= 1e4:
        return fmt.short(value)
    places = next((p for p in range(7) if abs(step * 10**p - round(step * 10**p)) < 1e-6), 7)
    if step < 1e-5:
        return f"{value:.1e}".replace("-", "−")
    return f"{0.0 if abs(value) < step * 1e-6 else value:.{places}f}".replace("-", "−")


def _line(frame: _Frame, one: Series) -> Markup:
    known = np.isfinite(one.y) & (np.isfinite(one.x)) & ((one.y > 0) | (not frame.log_y))
    x, y = frame.at_x(one.x[known]), frame.at_y(one.y[known])
    y = np.clip(y, -1e4, 1e4)
    kind = f"s{one.hue % HUES} d{one.hue // HUES % 4}" + (" faint" if one.faint else "")
    drawn = Markup('<polyline class="line {}" points="{}"><title>{}</title></polyline>').format(
        kind, _points(np.column_stack([x, y])), one.label
    )
    if one.dots or len(x) == 1:
        drawn += Markup("").join(
            Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(one.hue % HUES, a, b)
            for a, b in zip(x.tolist(), y.tolist(), strict=True)
        )
    return drawn


_SHAPES = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", "M-4 -4h8v8h-8z", "M0 -5l5 9h-10z", "M0 -5l5 5l-5 5l-5 -5z")
_CROSS = "M-5 -5l10 10M5 -5l-10 10"


def _dot(frame: _Frame, x: float, y: float, hue: int, label: str = "") -> Markup:
    at = (float(frame.at_x(x)), float(frame.at_y(y)))
    text = f"{label}: {x:.5g}, {y:.4f}" if label else f"{x:.4f}, {y:.4f}"
    return Markup('<path class="dot s{}" transform="translate({:.1f} {:.1f})" d="{}"><title>{}</title></path>').format(
        hue % HUES, *at, _SHAPES[hue % len(_SHAPES)], text
    )


def _interval(frame: _Frame, row: Row, y: float, form: Callable[[float], str]) -> Markup:
    parts = []
    if row.marked:
        parts.append(Markup('<rect class="ground" x="0" y="{:.1f}" width="{}" height="32"/>').format(y - 16, WIDTH))
    parts.append(_text(frame.left - 8, y + 4, _cut(row.label), "end", "name"))
    below = bool(row.points) and row.middle is not None and row.inside is None
    at = y - 6 if below else y
    if row.low is not None and row.high is not None:
        ends = [float(frame.at_x(value)) for value in (row.low, row.high)]
        text = f"{form(row.middle) if row.middle is not None else ''} ({form(row.low)}, {form(row.high)})"
        parts.append(
            Markup(
                '<line class="range s{0}" x1="{1:.1f}" x2="{2:.1f}" y1="{3:.1f}" y2="{3:.1f}"><title>{4}</title></line>'
            ).format(row.hue, *ends, at, text)
        )
    if row.middle is not None:
        parts.append(_mark(float(frame.at_x(row.middle)), at, _SHAPES[3], f"hollow s{row.hue}", form(row.middle)))
    for value in row.points:
        shape = _CROSS if row.inside is False else _SHAPES[0]
        kind = f"{'cross' if row.inside is False else 'dot'} s{1 if row.inside is False else row.hue}"
        parts.append(_mark(float(frame.at_x(value)), y + 8 if below else y, shape, kind, form(value)))
    return Markup("").join(parts)


def _mark(x: float, y: float, shape: str, kind: str, text: str) -> Markup:
    return Markup('<path class="{}" transform="translate({:.1f} {:.1f})" d="{}"><title>{}</title></path>').format(
        kind, x, y, shape, text
    )


def _points(pairs: Array) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs.tolist())


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _width(text: str) -> float:
    """The approximate width of a label in pixels."""
    return 12 * sum(1.0 if ord(c) > 0x2E7F else 0.58 for c in text)


def _svg(frame: _Frame, height: int, x: Axis, y: Axis, width: int = WIDTH) -> Markup:
    named = []
    if x.label:
        named.append(_text(frame.left + frame.width / 2, height - 6, x.label, "middle", "axis"))
    if y.label:
        named.append(
            Markup(
                '<text class="axis" transform="translate(14 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
            ).format(frame.top + frame.height / 2, y.label)
        )
    return Markup(
        '<svg class="chart" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{4}">{2}{3}</svg>'
    ).format(width, height, Markup("").join(frame.parts), Markup("").join(named), escape(y.label or x.label))

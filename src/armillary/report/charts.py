"""The charts of the report, one function each, from the parts of ``ReportData`` to inline SVG.

Series differ by shape or dash as well as by colour, so that charts are readable in grey print. Every number of a chart
is also in a table of the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from armillary.report import format as fmt
from armillary.report.canvas import (
    C1,
    C2,
    C3,
    C5,
    COLOURS,
    DASHES,
    GRID,
    INK,
    MARKERS,
    MUTED,
    PAPER,
    SMALL,
    WIDTH,
    axes,
    chart,
    figure,
    label,
    rows,
    text_width,
)
from armillary.report.text import Words
from armillary.report.view import (
    AnnealPart,
    ArmRow,
    CandidateRow,
    DifferenceRow,
    DomainFit,
    LadderPart,
    LossCurve,
    LrPart,
    MixturePart,
    PredictionRow,
    ScoreRow,
    TaughtGain,
    TeachingPart,
    compared_row,
)

ARM_COLOURS = {"found": C1, "natural": C2, "uniform": C3}
ARM_MARKERS = {"found": "o", "natural": "s", "uniform": "^"}


def _left_margin(labels: Sequence[str]) -> float:
    return 14 + max((text_width(text) for text in labels), default=0)


def _percent_axis(ax: Axes, axis: str, places: int = 0) -> None:
    ticks = getattr(ax, f"{axis}axis")
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.{places}f}%"))


def _loss_axis(ax: Axes, axis: str, ticks: int = 6, sign: bool = False) -> None:
    """Ticks of losses, with enough decimals to distinguish neighbours."""
    chosen = getattr(ax, f"{axis}axis")
    chosen.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2))
    marks = chosen.get_majorticklocs()
    step = float(marks[1] - marks[0]) if len(marks) > 1 else 0.1
    places = next((p for p in range(1, 6) if abs(step * 10**p - round(step * 10**p)) < 1e-6), 6)
    form = f"{{:{'+' if sign else ''}.{places}f}}"
    chosen.set_major_formatter(
        FuncFormatter(lambda v, _: "0" if sign and abs(v) < 1e-12 else form.format(v).replace("-", "−"))
    )


@chart
def mixtures(part: MixturePart, words: Words) -> Figure:
    """Weights of the natural, the uniform and the found mixture, side by side for each domain."""
    labels = [label(name) for name in part.domains]
    left, row = _left_margin(labels), 46
    height = row * len(labels)
    fig = figure(height + 72)
    ax = axes(fig, left, 30, WIDTH - left - 60, height)
    series: list[tuple[str, Mapping[str, float]]] = [
        ("natural", part.natural),
        ("uniform", part.uniform),
        ("found", part.found),
    ]
    for i, (name, weights) in enumerate(series):
        values = [weights.get(domain, 0.0) for domain in part.domains]
        places = [y + 0.27 * (i - 1) for y in range(len(values))]
        found = name == "found"
        # hollow, as orange and grey-blue are one grey on paper
        face = PAPER if name == "uniform" else ARM_COLOURS[name]
        ax.barh(places, values, height=0.23, facecolor=face, edgecolor=ARM_COLOURS[name], label=words.name(name))
        for y, value in zip(places, values, strict=True):
            ax.annotate(
                fmt.percent(value),
                (value, y),
                (4, 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=SMALL if found else 10,
                color=INK if found else MUTED,
                fontweight="bold" if found else "normal",
            )
    rows(ax, labels)
    _percent_axis(ax, "x")
    ax.set_xlim(left=0)
    ax.set_xlabel(words("share"))
    ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, handlelength=1.2)
    return fig


@chart
def scatter(part: MixturePart, words: Words) -> Figure:
    """Held-out predictions against measurements of the proxies, one panel for each validation domain."""
    panels: list[tuple[str, DomainFit]] = [(label(f.domain, 22), f) for f in part.fits]
    if part.target_fit is not None:
        panels.insert(0, (words("target_loss"), part.target_fit))
    columns = min(4, len(panels))
    left, gap, width, size, head = 62, 54, 152, 152, 44
    lines = -(-len(panels) // columns)
    fig = figure(lines * (size + head + 30) + 26, left + columns * width + (columns - 1) * gap + 10)
    for i, (title, fitted) in enumerate(panels):
        ax = axes(fig, left + (i % columns) * (width + gap), head + (i // columns) * (size + head + 30), width, size)
        points = [p for p in zip(fitted.predicted, fitted.measured, strict=True) if all(map(math.isfinite, p))]
        values = [v for pair in points for v in pair] or [0.0, 1.0]
        margin = 0.06 * (max(values) - min(values)) or 0.05
        ends = (min(values) - margin, max(values) + margin)
        ax.plot(ends, ends, color=MUTED, linewidth=1, dashes=(4, 3))
        colour = C2 if fitted is part.target_fit else C1
        ax.plot([p for p, _ in points], [m for _, m in points], "o", mfc="none", mec=colour, mew=1.2, ms=4.5)
        ax.set(xlim=ends, ylim=ends)
        _loss_axis(ax, "x", 3)
        _loss_axis(ax, "y", 4)
        above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
        ax.annotate(title, (0, 1), (0, 23), fontweight="bold", **above)
        ax.annotate(
            f"ρ {fmt.rank(fitted.spearman)} · {words('rmse')} {fmt.loss(fitted.rmse)}",
            (0, 1),
            (0, 9),
            fontsize=SMALL,
            color=MUTED,
            **above,
        )
        if i % columns == 0:
            ax.set_ylabel(words("measured"))
        if i + columns >= len(panels):
            ax.set_xlabel(words("predicted_heldout"))
    return fig


@chart
def candidates(candidate_rows: Sequence[CandidateRow], taken: str | None, words: Words) -> Figure:
    """The law's prediction for each candidate, against the measurements with new seeds."""
    labels = [label(words.candidate(row.name)) for row in candidate_rows]
    left, row_height = _left_margin(labels) + 8, 46
    height = row_height * len(labels)
    fig = figure(height + 44)
    ax = axes(fig, left, 4, WIDTH - left - 20, height)
    for y, row in enumerate(candidate_rows):
        colour = ARM_COLOURS.get(row.name, C1)
        ax.plot([row.low, row.high], [y - 0.16] * 2, color=colour, linewidth=1.6, solid_capstyle="butt")
        ax.plot(row.predicted, y - 0.16, "D", mfc=PAPER, mec=colour, mew=1.6, ms=7)
        ax.plot(row.measured, [y + 0.18] * len(row.measured), "o", color=colour, ms=4.5, alpha=0.7, mew=0)
        if row.measured:
            ax.plot(fmean(row.measured), y + 0.18, "o", color=colour, ms=9)
        if row.name == taken:
            ax.axhspan(y - 0.46, y + 0.46, color=GRID, alpha=0.45, linewidth=0, zorder=0)
    rows(ax, labels)
    _loss_axis(ax, "x", 8)
    ax.set_xlabel(words("with_unit", what=words("target_loss"), unit=words("nats")))
    return fig


@chart
def anneal(part: AnnealPart, words: Words) -> Figure:
    """Learning rates of the branches if given, and the target loss by length, shape and mixture of the decay."""
    shapes = sorted({row.shape for row in part.branches})
    measured = [row for row in part.branches if row.losses]
    powers = sorted({(row.power, row.own) for row in measured})
    columns = 2 if len(powers) == 1 else 1
    names = len({(row.shape, row.power) for row in measured})
    top = max(46, 14 + 17 * math.ceil(names / columns))  # below the legend
    fig = figure(top + 316)
    left, right_width = 66, WIDTH - 66 - 20
    if part.curves:
        ax = axes(fig, 66, top, 320, 270)
        # a curve that is named after a shape takes its colour and dash, so that both panels share a legend
        order = [*shapes, *(label for label in dict.fromkeys(c.label for c in part.curves) if label not in shapes)]
        for curve in part.curves:
            i = order.index(curve.label)
            ax.plot(
                curve.steps, curve.lr, color=COLOURS[i % len(COLOURS)], linestyle=DASHES[i % len(DASHES)], linewidth=1.5
            )
        ax.set(xlabel=words("step"), ylabel=words("learning_rate"), ylim=(0, None))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: fmt.count(v)))
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for i, key in enumerate(order):
            style = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
            ax.plot([], [], label=label(words.name(key), 20), **style)
        ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(-0.04, 1.0), columnspacing=1.0, handlelength=2.6)
        left, right_width = 470, WIDTH - 470 - 20
    ax = axes(fig, left, top, right_width, 270)
    for shape in shapes:
        for power in powers:
            found = sorted((r for r in measured if (r.shape, r.power, r.own) == (shape, *power)), key=lambda r: r.share)
            if not found:
                continue
            i, j = shapes.index(shape), powers.index(power)
            colour, marker = (
                COLOURS[(i + j * len(shapes)) % len(COLOURS)],
                MARKERS[(i + j * len(shapes)) % len(MARKERS)],
            )
            name = words.name(shape)
            if len(powers) > 1:
                name = words("pair", first=name, second=words.mixture(*power))
            ax.plot(
                [r.share for r in found],
                [fmean(r.losses) for r in found],
                color=colour,
                marker=marker,
                ms=7,
                linestyle=DASHES[(i + j * len(shapes)) % len(DASHES)],
                label=label(name, 44 if columns == 1 else 30),
            )
            for row in found:
                ax.plot([row.share] * len(row.losses), row.losses, marker, color=colour, ms=4, alpha=0.6, mew=0)
    best = part.branches[part.chosen]
    if best.losses:
        ax.plot(best.share, fmean(best.losses), "o", mfc="none", mec=INK, mew=1.4, ms=16)
    shares = sorted({row.share for row in part.branches})
    margin = 0.12 * (shares[-1] - shares[0]) or 0.05
    ax.set_xlim(shares[0] - margin, shares[-1] + margin)
    ax.xaxis.set_major_locator(FixedLocator(shares))
    _percent_axis(ax, "x")
    _loss_axis(ax, "y")
    ax.set(xlabel=words("decay_share"), ylabel=words("with_unit", what=words("target_loss"), unit=words("nats")))
    if measured:
        ax.legend(ncols=columns, loc="lower left", bbox_to_anchor=(-0.04, 1.0), columnspacing=1.2, handlelength=2.6)
    return fig


@chart
def rates(part: LrPart, words: Words) -> Figure:
    """Target loss over the peak rate, one panel for each tuned depth, with the law's basin and the tuned rate."""
    depths = sorted({line.depth for line in part.lines})
    columns, left, gap, head, size = min(3, len(depths)), 66, 62, 64, 236
    lines = -(-len(depths) // columns)
    width = (WIDTH - left - 20 - (columns - 1) * gap) / columns
    fig = figure(lines * (size + head) + 44)
    tokens = sorted({line.tokens for line in part.lines})
    tuned = {row.depth: row for row in part.rows if row.of == "tuned"}
    for i, depth in enumerate(depths):
        ax = axes(fig, left + (i % columns) * (width + gap), head + (i // columns) * (size + head), width, size)
        for line in (line for line in part.lines if line.depth == depth):
            j = tokens.index(line.tokens)
            colour, name = COLOURS[j % len(COLOURS)], words.n("tokens_of_run", line.tokens)
            ax.plot(line.multiples, line.losses, MARKERS[j % len(MARKERS)], color=colour, ms=6, label=name)
            ax.plot(
                *np.array(line.law).reshape(-1, 2).T, color=colour, linestyle=DASHES[j % len(DASHES)], linewidth=1.3
            )
        ax.axvline(1, color=MUTED, linewidth=1, dashes=(4, 3))
        if depth in tuned:
            ax.axvline(tuned[depth].lr / tuned[depth].rule, color=INK, linewidth=1.4)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=12))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        _loss_axis(ax, "y")
        ax.set_xlabel(words("times_rule"))
        ax.set_title(f"{words('depth')} {depth}", loc="left", fontsize=SMALL, fontweight="bold")
        if i % columns == 0:
            ax.set_ylabel(words("with_unit", what=words("target_loss"), unit=words("nats")))
        if i == 0:
            ax.legend(ncols=len(tokens), loc="lower left", bbox_to_anchor=(-0.04, 1.09), handlelength=1.4)
    return fig


@chart
def ladder(part: LadderPart, words: Words) -> Figure:
    """Target loss over compute: every run beside the law's prediction at that run's own size, and the target run."""
    return ladder_figure(part, words)


def ladder_figure(part: LadderPart, words: Words) -> Figure:
    """The picture of ``ladder``, as matplotlib draws it."""
    fig = figure(418)
    ax = axes(fig, 66, 12, WIDTH - 66 - 190, 360)
    families = sorted({p.family for p in part.points})
    depths = sorted({p.depth for p in part.points})
    for i, family in enumerate(families):
        colour = COLOURS[i % len(COLOURS)]
        own = [p for p in part.points if p.family == family]
        for p in own:
            if p.predicted is not None and p.low is not None and p.high is not None:
                ends = [p.low, p.high]
                ax.plot([p.flops] * 2, ends, color=colour, alpha=0.3, linewidth=7, solid_capstyle="butt")
                ax.plot(p.flops, p.predicted, "_", color=colour, mew=1.6, ms=13)
        for j, depth in enumerate(depths):
            rung = [p for p in own if p.depth == depth]
            face = colour if i == 0 else PAPER
            marker = MARKERS[j % len(MARKERS)]
            ax.plot([p.flops for p in rung], [p.target for p in rung], marker, mfc=face, mec=colour, mew=1.3, ms=7)
        if len(families) > 1:
            face = colour if i == 0 else PAPER
            ax.plot([], [], "o", mfc=face, mec=colour, mew=1.3, ms=7, label=label(family, 22))
    for j, depth in enumerate(depths):
        ax.plot([], [], MARKERS[j % len(MARKERS)], color=MUTED, ms=7, label=f"{words('depth')} {depth}")
    if any(p.predicted is not None for p in part.points):
        ax.plot([], [], color=COLOURS[0], alpha=0.3, linewidth=7, label=words("law_interval"))
    if (target := part.target) is not None:
        spread = [[target.predicted - target.low], [target.high - target.predicted]]
        ax.errorbar(target.flops, target.predicted, yerr=spread, fmt="none", ecolor=INK, elinewidth=1.6, capsize=5)
        legend = words("pair", first=words("target_run"), second=words("predicted"))
        ax.plot(target.flops, target.predicted, "D", mfc=PAPER, mec=INK, mew=1.6, ms=11, label=legend)
        if target.measured is not None:
            seen = words("pair", first=words("target_run"), second=words("measured"))
            ax.plot(target.flops, target.measured, "o", color=C5, ms=7, label=seen)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=12))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: fmt.power_short(v)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    _loss_axis(ax, "y", 8)
    ax.set(xlabel=words("compute"), ylabel=words("with_unit", what=words("target_loss"), unit=words("nats")))
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=2.4, labelspacing=0.7)
    return fig


@chart
def prediction(predictions: Sequence[PredictionRow], target: PredictionRow | None, words: Words) -> Figure:
    """The interval of each prediction and the measurement, as differences from the predicted loss."""
    labels = [words("target_loss") if row is target else label(row.domain) for row in predictions]
    left, height = _left_margin(labels), 32 * len(labels)
    fig = figure(height + 44)
    ax = axes(fig, left, 4, WIDTH - left - 20, height)
    ax.axvline(0, color=MUTED, linewidth=1)
    for y, row in enumerate(predictions):
        ends = [row.low - row.predicted, row.high - row.predicted]
        ax.plot(ends, [y, y], color=C1, linewidth=7, alpha=0.3, solid_capstyle="butt")
        for end in ends:
            ax.plot([end, end], [y - 0.2, y + 0.2], color=C1, linewidth=1.6)
        if row.measured is not None:
            inside = bool(row.inside)
            ax.plot(row.measured - row.predicted, y, "o" if inside else "X", color=C1 if inside else C2, ms=9)
    rows(ax, labels)
    _loss_axis(ax, "x", 8, sign=True)
    ax.set_xlabel(words("minus_predicted"))
    return fig


@chart
def gauge(row: PredictionRow) -> Figure:
    """The recorded interval of the target loss, the prediction, and the measurement."""
    fig = figure(58, 360)
    ax = axes(fig, 8, 2, 344, 32)
    ax.plot([row.low, row.high], [0, 0], color=C1, linewidth=7, alpha=0.3, solid_capstyle="butt")
    for end in (row.low, row.high):
        ax.plot([end, end], [-0.5, 0.5], color=C1, linewidth=1.6)
    ax.plot(row.predicted, 0, "D", mfc=PAPER, mec=C1, mew=1.6, ms=9)
    if row.measured is not None:
        ax.plot(row.measured, 0, "o" if row.inside else "X", color=C1 if row.inside else C2, ms=9)
    ax.margins(x=0.12)
    ax.set(ylim=(-1, 1), yticks=[])
    ax.spines["left"].set_visible(False)
    _loss_axis(ax, "x", 5)
    return fig


@chart
def arms(arm_rows: Sequence[ArmRow], differences: Sequence[DifferenceRow], words: Words) -> Figure:
    """Target loss on each mixture with its seeds, and the differences with their intervals."""
    names = [label(words.name(row.name)) for row in arm_rows]
    tested = [
        (d.arm, d.reference, d.mean, d.low, d.high)
        for d in differences
        if d.mean is not None and d.low is not None and d.high is not None
    ]
    pairs = [words("minus", arm=words.name(arm), reference=words.name(reference)) for arm, reference, *_ in tested]
    height = 40 * max(len(names), len(pairs))
    fig = figure(height + 44)
    left = _left_margin(names)
    middle = WIDTH / 2 + 10 if tested else WIDTH
    ax = axes(fig, left, 4, middle - left - 20, height)
    for y, row in enumerate(arm_rows):
        colour, marker = ARM_COLOURS.get(row.name, C1), ARM_MARKERS.get(row.name, "o")
        if row.low is not None and row.high is not None:
            ax.plot([row.low, row.high], [y, y], color=colour, linewidth=2)
        ax.plot(row.losses, [y + 0.24] * len(row.losses), marker, color=colour, ms=4.5, alpha=0.8, mew=0)
        if row.mean is not None:
            ax.plot(row.mean, y, marker, color=colour, ms=9)
    rows(ax, names)
    _loss_axis(ax, "x", 5)
    ax.set_xlabel(words("with_unit", what=words("target_loss"), unit=words("nats")))
    if tested:
        left = middle + _left_margin(pairs)
        ax = axes(fig, left, 4, WIDTH - left - 20, height)
        ax.axvline(0, color=MUTED, linewidth=1)
        for y, (arm, _, mean, low, high) in enumerate(tested):
            colour = ARM_COLOURS.get(arm, C1)
            ax.plot([low, high], [y, y], color=colour, linewidth=2)
            ax.plot(mean, y, ARM_MARKERS.get(arm, "o"), color=colour, ms=9)
        rows(ax, [label(pair) for pair in pairs])
        _loss_axis(ax, "x", 5, sign=True)
        ax.set_xlabel(words("with_unit", what=words("difference"), unit=words("nats")))
    return fig


def score_names(score_rows: Sequence[ScoreRow], words: Words) -> list[str]:
    """The label of each row: the total, the target, and the domains."""
    named = {0: words("name_total")}
    if compared_row(score_rows) is not score_rows[0]:
        named[1] = words("name_target")
    return [named.get(place, row.subset) for place, row in enumerate(score_rows)]


@chart
def scores(score_rows: Sequence[ScoreRow], words: Words) -> Figure:
    """Shares of right answers with their intervals, of the published model and of the one on the natural mixture."""
    labels = [label(name) for name in score_names(score_rows, words)]
    left, height = _left_margin(labels), 34 * len(labels)
    fig = figure(height + 70)
    ax = axes(fig, left, 28, WIDTH - left - 20, height)
    ax.axvline(0.5, color=MUTED, linewidth=1, dashes=(4, 3))
    paired = any(row.reference is not None for row in score_rows)
    for y, row in enumerate(score_rows):
        shown = [("found", row.value, row.low, row.high, -0.14 if paired else 0.0)]
        if row.reference is not None and row.reference_low is not None and row.reference_high is not None:
            shown.append(("natural", row.reference, row.reference_low, row.reference_high, 0.14))
        for arm, value, low, high, shift in shown:
            ax.plot([low, high], [y + shift] * 2, color=ARM_COLOURS[arm], linewidth=2)
            legend = words("this_model") if arm == "found" else words("name_natural_model")
            ax.plot(value, y + shift, ARM_MARKERS[arm], color=ARM_COLOURS[arm], ms=8, label=legend if y == 0 else None)
    rows(ax, labels)
    _percent_axis(ax, "x")
    ax.set_xlabel(words("scores_axis"))
    if paired:
        ax.legend(ncols=2, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, handlelength=1.2)
    return fig


@chart
def taught(part: TeachingPart, words: Words) -> Figure:
    """Shares of right answers of the base and of the model taken, with their intervals, by set of questions."""
    ends = [part.models[0], *([part.taken] if part.taken != part.models[0] else [])]
    shown = [[row for row in part.scores if row.model == model and row.subset is None] for model in ends]
    labels = [label(words.name(row.test)) for row in shown[0]]
    left, height = _left_margin(labels), 40 * len(labels)
    fig = figure(height + 70)
    ax = axes(fig, left, 28, WIDTH - left - 20, height)
    for rows_of, colour, marker, shift in zip(shown, (C2, C1), ("s", "o"), (-0.14, 0.14), strict=False):
        for y, row in enumerate(rows_of):
            ax.plot([row.low, row.high], [y + shift] * 2, color=colour, linewidth=2)
            legend = words.name(row.model) if y == 0 else None
            ax.plot(row.value, y + shift, marker, color=colour, ms=8, label=legend, clip_on=False)
    if part.gain is not None:
        ax.axvline(part.gain.chance, color=MUTED, linewidth=1, dashes=(4, 3))
    rows(ax, labels)
    ax.set_xlim(-0.015, 1.015)  # whole marks at 0 % and 100 %, which touch no label
    _percent_axis(ax, "x")
    ax.set_xlabel(words("scores_axis"))
    ax.legend(ncols=2, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, handlelength=1.2)
    return fig


@chart
def taught_gain(gain: TaughtGain, words: Words) -> Figure:
    """Held-out score by the number of questions: the parts, the recorded prediction with its interval, the outcome."""
    fig = figure(240)
    ax = axes(fig, 60, 28, WIDTH - 80, 160)
    ax.axhline(gain.chance, color=MUTED, linewidth=1, dashes=(4, 3))
    ax.plot(gain.parts, gain.scores, "s", color=C3, ms=7, label=words("on_parts"))
    if gain.predicted is not None and gain.low is not None and gain.high is not None:
        ax.plot([gain.items] * 2, [gain.low, gain.high], color=C1, linewidth=7, alpha=0.3, solid_capstyle="butt")
        ax.plot(gain.items, gain.predicted, "D", mfc=PAPER, mec=C1, mew=1.6, ms=9, label=words("predicted"))
    outside = gain.inside is False
    ax.plot(
        gain.items, gain.measured, "X" if outside else "o", color=C2 if outside else C1, ms=8, label=words("measured")
    )
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator([*gain.parts, gain.items]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: fmt.count(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(-0.05, 1.05)  # whole marks at 0 % and 100 %
    _percent_axis(ax, "y")
    ax.set(xlabel=words("questions_trained"), ylabel=words("scores_axis"))
    ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, handlelength=1.2)
    return fig


@chart
def curves(loss_curves: Sequence[LossCurve], training: Sequence[LossCurve], words: Words) -> Figure:
    """Losses of the target runs by training tokens: on held-out text, and on training batches if given."""
    fig = figure(352)
    panels = [(words("target_loss"), loss_curves)] + ([(words("training_loss"), training)] if training else [])
    width = (WIDTH - 20 - 80 * len(panels)) / len(panels)
    for n, (what, group) in enumerate(panels):
        ax = axes(fig, 70 + n * (width + 80), 36, width, 268)
        for curve in group:
            _curve(ax, curve, loss_curves, words, "o" if n == 0 else "")
        ends = [value for curve in group for value in curve.losses if math.isfinite(value)]
        if ends:  # the first losses are far higher and would flatten the rest
            low, high = min(ends), float(np.quantile(ends, 0.9)) if len(ends) > 30 else max(ends)
            ax.set_ylim(low - 0.04 * (high - low), high + 0.08 * (high - low) or None)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: fmt.short(v)))
        ax.xaxis.set_minor_locator(NullLocator())
        _loss_axis(ax, "y")
        ax.set(xlabel=words("tokens_seen"), ylabel=words("with_unit", what=what, unit=words("nats")))
        if n == 0:
            ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(-0.04, 1.0), handlelength=2.6, columnspacing=1.2)
    return fig


def _curve(ax: Axes, curve: LossCurve, all_curves: Sequence[LossCurve], words: Words, marker: str) -> None:
    """One line in the colour of its arm."""
    arms_named, labels = list(ARM_COLOURS), [other.label for other in all_curves]
    i = labels.index(curve.label) if curve.label in labels else 0
    colour = ARM_COLOURS.get(curve.label, COLOURS[i % len(COLOURS)])
    dash = DASHES[arms_named.index(curve.label) if curve.label in arms_named else i % len(DASHES)]
    name = label(words.name(curve.label), 22)
    ax.plot(curve.tokens, curve.losses, color=colour, linestyle=dash, linewidth=1.6, marker=marker, ms=5, label=name)

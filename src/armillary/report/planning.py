"""The chart of predicted against measured speed of ``armillary plan validate --chart``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from armillary.files import write_file
from armillary.recipe import UsageError

_COLOURS = ("#2f6fb3", "#c8641e", "#3f8f4f")
_BAND = 1.25


def write_speed_chart(path: Path, points: Sequence[tuple[str, float, float]]) -> None:
    """Draw points of (kind, measured, predicted) TFLOP/s on logarithmic axes, with a band of 25 %, as SVG or PNG.

    Raises:
        UsageError: another file extension, or no points.
    """
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"{path}: a chart is written as .svg or .png")
    if not points:
        raise UsageError("no row has a measured TFLOP/s to draw")
    with mpl.rc_context({"svg.hashsalt": "armillary", "font.size": 9}):
        figure = Figure(figsize=(5.2, 4.8), layout="constrained")
        axes = figure.subplots()
        ends = [0.9 * min(min(a, b) for _, a, b in points), 1.1 * max(max(a, b) for _, a, b in points)]
        axes.fill_between(ends, [e / _BAND for e in ends], [e * _BAND for e in ends], color="#000000", alpha=0.08, lw=0)
        axes.plot(ends, ends, color="#555555", lw=0.8)
        for kind, colour in zip(dict.fromkeys(kind for kind, _, _ in points), _COLOURS, strict=False):
            chosen = [(a, b) for own, a, b in points if own == kind]
            axes.plot(*zip(*chosen, strict=True), "o", ms=2.6, mew=0, alpha=0.6, color=colour, label=kind)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal",
                 xlabel="measured TFLOP/s per accelerator", ylabel="predicted, publication left out")  # fmt: skip
        axes.legend(frameon=False, loc="upper left")
        data = io.BytesIO()
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(data, format=path.suffix[1:], dpi=110, metadata=metadata)
    write_file(path, data.getvalue())

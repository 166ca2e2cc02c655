"""Charts as inline SVG with real text and the colours of the page.

Trade-offs: matplotlib draws with one bundled font, but the reader's browser shows another. So layout uses pixels and
estimated text widths instead of matplotlib's own engine; in return drawing needs no fonts, not even for Chinese.
Placeholder colours are replaced by CSS variables, so that one picture serves light and dark screens and paper. pyplot
is not used, and the bytes depend only on the data.
"""

from __future__ import annotations

import functools
import io
import re
import unicodedata
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

P = ParamSpec("P")

WIDTH = 860  # pixels; one unit of the picture is one CSS pixel at full width
FONT = 12
SMALL = 11

# Placeholder colours, by the CSS variable that stands for each in the page.
INK, MUTED, GRID, PAPER = "#010203", "#010204", "#010205", "#010206"
C1, C2, C3, C4, C5, C6 = "#010211", "#010212", "#010213", "#010214", "#010215", "#010216"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    C1: "--c1",
    C2: "--c2",
    C3: "--c3",
    C4: "--c4",
    C5: "--c5",
    C6: "--c6",
}
COLOURS = (C1, C2, C3, C4, C5, C6)
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)), (0, (3, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a domain may be called "$x$"
    "font.family": ["DejaVu Sans"],  # bundled with matplotlib; the page's own font replaces it
    "font.size": FONT,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": FONT,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "legend.labelcolor": INK,
    "figure.facecolor": "none",
    "figure.dpi": 72,
}


def chart(draw: Callable[P, Figure]) -> Callable[P, Markup]:
    """Turn a function that draws a Figure into one that returns inline SVG."""

    @functools.wraps(draw)
    def svg(*args: P.args, **kwargs: P.kwargs) -> Markup:
        # the salt makes ids unique among the charts of a page, and reproducible
        style: Any = {**_STYLE, "svg.hashsalt": draw.__name__}
        with mpl.rc_context(style), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            target = io.StringIO()
            draw(*args, **kwargs).savefig(target, format="svg", metadata={"Date": None})
        return Markup(_inline(target.getvalue()))  # matplotlib escapes all text

    return svg


def _inline(svg: str) -> str:
    """Only the ``<svg>`` element: without prolog, metadata, namespaces, style sheet, and duplicate names."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    svg = re.sub(
        r'<svg[^>]*viewBox="(\S+ \S+ (\S+) \S+)"[^>]*>',
        r'<svg viewBox="\1" style="max-width: \2px" aria-hidden="true">',
        svg,
        count=1,
    )
    svg = re.sub(
        r"(fill|stroke): (#0102[0-9a-f]{2})",
        lambda m: f"{m[1]}: var({_VARIABLES[m[2]]})" if m[2] in _VARIABLES else m[0],
        svg,
    )
    return re.sub(r">\s+<", "><", svg).strip()


def figure(height: float, width: float = WIDTH) -> Figure:
    """An empty picture of this size in pixels."""
    return Figure(figsize=(width / 72, height / 72), dpi=72)


def axes(fig: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes with their frame at these pixels, counted from the upper left corner."""
    total_w, total_h = fig.get_figwidth() * 72, fig.get_figheight() * 72
    return fig.add_axes((left / total_w, 1 - (top + height) / total_h, width / total_w, height / total_h))


def label(name: str, longest: int = 30) -> str:
    """A name on one line, cut if it is too long for a chart."""
    line = " ".join(name.split())
    if line.startswith("_"):  # matplotlib omits such names from a legend, so hide the underscore behind a joiner
        line = "\u2060" + line
    return line if len(line) <= longest else line[: longest - 1] + "…"


def text_width(text: str, size: float = FONT) -> float:
    """The estimated width of ``text`` in a browser, in pixels."""
    return size * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.58 for c in text)


def rows(ax: Axes, labels: list[str]) -> None:
    """Label the rows of a horizontal chart, the first on top, without marks or grid lines."""
    ax.set_yticks(range(len(labels)), labels, color=INK, fontsize=FONT)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(False, axis="y")

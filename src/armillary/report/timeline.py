"""The timeline of a run as one SVG file: the share of each account over time, and one row for each rank below.

Trade-off: a run has up to millions of spans, so time is divided into as many bins as the picture has pixels. A bin
shows each account's share above, and the largest account of each rank below.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from armillary.files import write_file
from armillary.goodput import ACCOUNTS, Account, Ledger
from armillary.recipe import ArmillaryError

BINS = 800
MOST_RANKS = 64

COLOURS: dict[Account, str] = {
    "productive": "#3f8f5f",
    "degraded": "#a8c686",
    "data_wait": "#d9c86a",
    "replayed": "#c0392b",
    "evaluation": "#4f79b5",
    "checkpoint": "#8064a2",
    "compile": "#7f8c8d",
    "start_up": "#95a5a6",
    "detection": "#e67e22",
    "restart": "#f2b179",
    "waiting": "#8d5524",
    "paused": "#dddddd",
    "other": "#555555",
}


def write_timeline(path: Path, ledger: Ledger) -> None:
    """Draw ``ledger`` into ``path``; an older file is replaced atomically.

    Raises:
        ArmillaryError: the file cannot be written.
    """
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "timeline", "font.size": 11}):
        target = io.BytesIO()
        _figure(ledger).savefig(target, format="svg", metadata={"Date": None})
    try:
        write_file(path, target.getvalue())
    except OSError as error:
        raise ArmillaryError(
            f"{path}: cannot be written ({error.strerror}); give a path that can be written"
        ) from error


def _figure(ledger: Ledger) -> Figure:
    ranks = sorted(ledger.spans)[:MOST_RANKS]
    shares = {rank: _shares(ledger, rank) for rank in ranks}
    unit, name = _unit(ledger.elapsed_s)
    rows = 0.16 * len(ranks) + 0.25
    fig = Figure(figsize=(11, 3.4 + rows), layout="constrained", facecolor="white")
    above, below = fig.subplots(2, 1, sharex=True, height_ratios=[2.2, rows])
    edges = np.linspace(0, ledger.elapsed_s / unit, BINS + 1)
    # While the run continues without a rank, that rank has no shares.
    present = np.array([shares[rank].sum(axis=0) > 0 for rank in ranks])
    mean = np.sum([shares[rank] for rank in ranks], axis=0) / np.maximum(1, present.sum(axis=0))
    above.stackplot(
        edges,
        np.hstack([mean, mean[:, -1:]]),
        colors=[COLOURS[account] for account in ACCOUNTS],
        step="post",
        linewidth=0,
    )
    above.set(xlim=(0, edges[-1] or 1), ylim=(0, 1), ylabel="share of the time")
    colours = mpl.colors.ListedColormap([COLOURS[account] for account in ACCOUNTS])
    below.imshow(
        np.ma.masked_array([shares[rank].argmax(axis=0) for rank in ranks], ~present),
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        vmin=0,
        vmax=len(ACCOUNTS) - 1,
        extent=(0, edges[-1] or 1, len(ranks) - 0.5, -0.5),
    )
    step = -(-len(ranks) // 16)
    below.set_yticks(range(0, len(ranks), step), [f"rank {rank}" for rank in ranks[::step]])
    below.set_xlabel(name)
    percent = {account: ledger.seconds[account] / ledger.elapsed_s if ledger.elapsed_s else 0 for account in ACCOUNTS}
    fig.legend(
        handles=[
            Patch(color=COLOURS[account], label=f"{account.replace('_', ' ')} {100 * percent[account]:.2f} %")
            for account in ACCOUNTS
            if percent[account] > 0
        ],
        loc="outside right upper",
        frameon=False,
    )
    restarts = f"{ledger.restarts} restart" + ("" if ledger.restarts == 1 else "s")
    fig.suptitle(f"goodput {100 * (ledger.goodput or 0):.2f} %, {restarts}", x=0.01, ha="left")
    return fig


def _shares(ledger: Ledger, rank: int) -> npt.NDArray[np.float64]:
    """Share of each account [accounts] in each bin [bins] of a rank's time."""
    spans = ledger.spans[rank]
    begin = min((own[0].begin_ns for own in ledger.spans.values() if own), default=0)
    width = ledger.elapsed_s * 1e9 / BINS
    shares = np.zeros((len(ACCOUNTS), BINS))
    if width == 0:
        return shares
    for row, account in enumerate(ACCOUNTS):
        chosen = [(span.begin_ns - begin, span.end_ns - begin) for span in spans if span.account == account]
        if not chosen:
            continue
        # The time of the account up to a moment is piecewise linear between the ends of its spans.
        ends = np.array(chosen, dtype=float).ravel()
        taken = np.repeat(np.concatenate([[0.0], np.cumsum(ends[1::2] - ends[::2])]), 2)[1:-1]
        shares[row] = np.diff(np.interp(np.arange(BINS + 1) * width, ends, taken)) / width
    return shares


def _unit(elapsed_s: float) -> tuple[float, str]:
    units = ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))
    return next(((unit, name) for unit, name in units if elapsed_s >= 3 * unit), (1.0, "seconds"))

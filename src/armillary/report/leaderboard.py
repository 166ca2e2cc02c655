"""Writes a leaderboard as one self-contained HTML file: tables, intervals as bars, and every pair with its p-value."""

from __future__ import annotations

import functools
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from armillary.evaluate.leaderboard import Leaderboard, Table
from armillary.files import write_file
from armillary.recipe import ArmillaryError, Language
from armillary.report import format as fmt
from armillary.report.text import Words

# Width of the interval bars in the drawing's own units.
_WIDTH = 240.0


def write_leaderboard(board: Leaderboard, path: Path, language: Language = "en") -> None:
    """Write ``board`` as self-contained HTML; an older file is replaced atomically.

    Notes of the board are in English in every language.

    Raises:
        ArmillaryError: the file cannot be written.
    """
    html = _template().render(board=board, t=Words(language), percent=fmt.share, scale=_scale, width=_WIDTH)
    try:
        write_file(path, html.encode("utf-8", errors="replace"))
    except OSError as error:
        raise ArmillaryError(
            f"{path}: the leaderboard cannot be written ({error.strerror}); give a path that can be written"
        ) from error


def _scale(table: Table, value: float) -> float:
    """The position of ``value`` in the drawing of ``table``, which spans all its intervals."""
    low = min(one.score.low for one in table.standings)
    high = max(one.score.high for one in table.standings)
    return round(4 + (value - low) / ((high - low) or 1.0) * (_WIDTH - 8), 1)


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("armillary.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("leaderboard.html.j2")

"""The verb ``post diversity``: compares the diversity of sets of questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.show.screen import out, show_json, show_table


def diversity(
    sets: Annotated[list[Path], typer.Argument(help="Files of items, such as before and after.", show_default=False)],
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with charts to this file.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the diversity of sets of items: distinct n-grams, spread, clusters, types.

    Example: armillary post diversity items.jsonl evolved/items.jsonl
    """
    from armillary.post import compare_diversity

    found = compare_diversity(sets)
    names = [str(path) for path in sets]
    if html is not None:
        from armillary.report import diversity_page

        diversity_page(html, dict(zip(names, (one.to_json() for one in found), strict=True)))
    if as_json:
        return show_json(dict(zip(names, (one.to_json() for one in found), strict=True)))
    rows: list[list[object]] = [
        ["items", *(one.items for one in found)],
        *([f"distinct {n}-grams", *(one.distinct[n] for one in found)] for n in found[0].distinct),
        ["spread", *(one.spread for one in found)],
        ["share of clusters", *(one.coverage for one in found)],
        ["effective clusters", *(one.effective for one in found)],
        *([f"kinds of {name}", *(len(one.types[name]) for one in found)] for name in found[0].types),
    ]
    show_table("diversity of the questions", ["", *names], rows)
    if html is not None:
        out.print(f"page: {escape(str(html))}", highlight=False)

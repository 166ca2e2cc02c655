"""The verb ``lineage``: from a model back to everything that made it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import out, show_json, show_table


@app.command()
def lineage(
    path: Annotated[
        Path,
        typer.Argument(help="A model, published or not, or the folder of a post-training.", show_default=False),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show everything that a model was made from: runs, files of data with their stages, base model, predictions.

    Example: armillary lineage taught/sft/model
    """
    from armillary.publish import lineage_of

    found = lineage_of(path)
    if as_json:
        return show_json(found.to_json())
    nodes = [found.node, *found.origins]
    rows = [
        [edge.node, found.names.get(edge.node), edge.how, edge.origin, found.names.get(edge.origin)]
        for node in nodes
        for edge in found.edges
        if edge.node == node
    ]
    show_table(
        f"{path}: {len(nodes) - 1} origins",
        ["node", "file", "relation", "origin", "its file"],
        [[_short(cell) if place in (0, 3) else cell for place, cell in enumerate(row)] for row in rows],
    )
    out.print("hashes are cut to 12 digits; --json has them whole", highlight=False)


def _short(node: str | None) -> str:
    kind, _, name = str(node).partition(":")
    return f"{kind}:{name[:12]}" if kind in ("data", "model", "weights") else str(node)

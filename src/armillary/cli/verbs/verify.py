"""`armillary verify`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import out, show_json
from armillary.cli.workspaces import DatabaseOption
from armillary.recipe import counted


@app.command()
def verify(
    place: Annotated[
        Path,
        typer.Argument(help="A folder of results, or a part of one; a law file, recipe or backup.", show_default=False),
    ],
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every byte of the written files and report each damaged file with the remedy; exits with 1 if any is
    damaged.

    Takes a folder of results or a part of one (store, corpus, run, checkpoint, published model), a folder of
    post-training, of one of its stages or of an examination, a law file, a recipe, or a backup of a store's database.

    Example: armillary verify demo
    """
    from armillary.path import verify as check

    found = check(place, database)
    if as_json:
        show_json({**asdict(found), "problems": [{**asdict(p), "file": str(p.file)} for p in found.problems]})
    elif found.problems:
        for p in found.problems:
            out.print(escape(f"{p.file}: {p.what}; {p.remedy}"), highlight=False)
    else:
        parts = f": {len(found.checked)} parts, all intact" if len(found.checked) > 1 else ": intact"
        out.print(f"{found.kind} {escape(str(place))}{parts}", highlight=False)
    if len(found.checked) > 1 and not as_json:
        if found.problems:
            count = f"{counted(len(found.problems), 'problem')} in {counted(len(found.checked), 'part')}"
            out.print(f"{found.kind} {escape(str(place))}: {count}", highlight=False)
        kinds = Counter(part.rpartition(" ")[0] or part for part in found.checked)
        out.print(f"checked: {', '.join(f'{count} x {kind}' if count > 1 else kind for kind, count in kinds.items())}")
    if found.problems:
        raise typer.Exit(1)

"""`armillary import`: runs of other programs as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import err, out, show_json, show_table


@app.command("import")
def import_runs(
    kind: Annotated[str, typer.Argument(help="wandb, tensorboard or csv.", show_default=False)],
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders that hold some.", show_default=False)],
    table: Annotated[Path, typer.Option("--out", "-o", help="The CSV to write.", show_default=False)],
    join: Annotated[
        Path | None,
        typer.Option(help="CSV with a column run: its other columns are added, or replace those found."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read runs of Weights & Biases, TensorBoard or CSV into a table for `fit scaling` and `compare`.

    Example: armillary import wandb wandb/ --out table.csv
    """
    from armillary.recipe import UsageError, counted
    from armillary.trackers.importing import FORMATS, make_table, read_runs, write_table

    if kind not in FORMATS:
        raise UsageError(f"'{kind}' is not one of {', '.join(FORMATS)}")
    if table.exists() and any(path.exists() and path.samefile(table) for path in [*paths, *([join] if join else [])]):
        raise UsageError(f"--out {table} is one of the files that are read; give another name")
    if kind == "csv" and any(path.is_dir() and table.resolve().is_relative_to(path.resolve()) for path in paths):
        raise UsageError(f"--out {table} lies in a folder that is read, so the next call would read it; give another")
    imported = make_table(*read_runs(kind, paths), join)
    write_table(imported, table)
    if as_json:
        return show_json(imported.to_json())
    show_table(
        "columns", ["column", "from", "role", "how"], [[o.column, o.source, o.role, o.how] for o in imported.taken]
    )
    if imported.left_out:
        show_table("left out", ["what", "name", "why"], [[one.kind, one.name, one.why] for one in imported.left_out])
    for note in imported.notes:
        err.print(f"[yellow]note[/yellow] {escape(note)}", highlight=False)
    out.print(f"{counted(len(imported.rows), 'run')} written to {escape(str(table))}", highlight=False)

"""`armillary runs`, `rates` and `store backup`: the content of a workspace's database."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import Reporter, out, show_json, show_table
from armillary.cli.workspaces import WorkspaceOptions, opened, opens_workspace, workspace
from armillary.recipe import UsageError, is_workspace
from armillary.store import Store


def rows_in_store(at: WorkspaceOptions, rows_of: str) -> list[dict[str, Any]]:
    """The result of the store's method ``rows_of``; a missing store is not created."""
    show = Reporter()
    _, place = opened(at.recipe, at.folder, show)
    if at.database is None and not is_workspace(place):
        raise UsageError(
            f"{place}: there are no results yet; `armillary run {at.recipe}` makes them, and --out names another folder"
        )
    if at.database is None and not (place / "store" / "store.sqlite").exists():
        runs = place / "store" / "runs"
        why = f" yet; `armillary run {at.recipe}` makes it"
        if any(runs.glob("*")):
            why = f", and {runs} holds runs; put a backup in its place"
        raise UsageError(f"{place / 'store' / 'store.sqlite'}: there is no database{why}, or give one with --database")
    # The store alone: a workspace would load torch, which takes longer than the list.
    store = Store(place / "store", at.database)
    rows: list[dict[str, Any]] = getattr(store, rows_of)()
    return rows


def store_verb(name: str, rows_of: str, columns: list[str], title: str, text: str) -> None:
    """A verb that prints the result of the store's method ``rows_of``."""

    @opens_workspace("recipe", "folder", "database")
    def verb(at: WorkspaceOptions, as_json: JsonOption = False) -> None:
        rows = rows_in_store(at, rows_of)
        if as_json:
            return show_json(rows)
        show_table(title, columns, [[row[column] for column in columns] for row in rows])

    app.command(name, help=text)(verb)


store_verb(
    "runs",
    "overview",
    ["run", "study", "status", "attempts", "parameters", "tokens", "examined", "error"],
    "runs",
    "List the runs of a recipe's store with their state.\n\nExample: armillary runs recipe.yaml",
)
store_verb(
    "rates",
    "rates_overview",
    [
        *("device", "workers", "layers", "d_model", "context_length", "batch_sequences", "precision", "how"),
        *("tokens_per_s", "seconds", "recorded_at"),
    ],
    "tokens per second of all workers together",
    "List how fast each machine has trained each shape; budgets in time are divided by these rates."
    "\n\nExample: armillary rates recipe.yaml",
)


store_app = typer.Typer(help="The database of a recipe's runs.", no_args_is_help=True)
app.add_typer(store_app, name="store")


@store_app.command("backup")
@opens_workspace("recipe", "folder", "database")
def store_backup(
    at: WorkspaceOptions,
    to: Annotated[Path, typer.Option("--to", help="The file to write; it must not exist yet.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Copy the database of a recipe's store into one file, complete and checked, even while it is in use.

    Example: armillary store backup recipe.yaml --to store-backup.sqlite
    """
    show = Reporter()
    _, place = opened(at.recipe, at.folder, show)
    if at.database is None and not (place / "store" / "store.sqlite").exists():
        raise UsageError(f"{place}: has no database; --out names another folder of results, --database a database")
    workspace(replace(at, folder=place), show).store().backup(to)
    if as_json:
        return show_json({"backup": str(to)})
    out.print(f"written to {escape(str(to))}; copy the folder store/runs as well for the runs' files", highlight=False)

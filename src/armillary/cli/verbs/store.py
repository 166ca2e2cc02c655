"""`armillary runs`, `rates` and `store backup`: the content of a workspace's database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import Reporter, err, out, show_json, show_table
from armillary.cli.workspaces import WorkspaceOptions, opened, opens_workspace, workspace
from armillary.recipe import Recipe, Trackers, UsageError, counted, is_workspace
from armillary.store import Store


class ListByDefault(TyperGroup):
    """Treats a first word that is not a verb, an option or no word at all as arguments of the list."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the verb ``list`` before a recipe."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def store_of(at: WorkspaceOptions) -> tuple[Recipe, Path]:
    """The recipe, and the folder of its results; a missing store is an error, and is not created."""
    show = Reporter()
    document, place = opened(at.recipe, at.folder, show)
    if at.database is None and not is_workspace(place):
        raise UsageError(f"{place}: no results yet; run `armillary run {at.recipe}`, or give their folder with --out")
    if at.database is None and not (place / "store" / "store.sqlite").exists():
        runs = place / "store" / "runs"
        why = f" yet; run `armillary run {at.recipe}`"
        if any(runs.glob("*")):
            why = f", but {runs} has runs; restore it from a backup"
        raise UsageError(f"{place / 'store' / 'store.sqlite'}: no database{why}, or give another with --database")
    return document, place


def rows_in_store(at: WorkspaceOptions, rows_of: str) -> list[dict[str, Any]]:
    """The result of the store's method ``rows_of``."""
    _, place = store_of(at)
    # The store alone: a workspace would load torch, which takes longer than the list.
    store = Store(place / "store", at.database)
    rows: list[dict[str, Any]] = getattr(store, rows_of)()
    return rows


def store_verb(rows_of: str, columns: list[str], title: str) -> Callable[..., None]:
    """A verb that prints the result of the store's method ``rows_of``."""

    @opens_workspace("recipe", "folder", "database")
    def verb(at: WorkspaceOptions, as_json: JsonOption = False) -> None:
        rows = rows_in_store(at, rows_of)
        if as_json:
            return show_json(rows)
        show_table(title, columns, [[row[column] for column in columns] for row in rows])

    return verb


runs_app = typer.Typer(
    help="List the runs of a recipe's store with their state, or export their metrics."
    "\n\nExample: armillary runs recipe.yaml",
    cls=ListByDefault,
)
app.add_typer(runs_app, name="runs")
runs_app.command(
    "list", help="List runs with their state; `list` may be left out.\n\nExample: armillary runs recipe.yaml"
)(store_verb("overview", ["run", "study", "status", "attempts", "parameters", "tokens", "examined", "error"], "runs"))
app.command(
    "rates",
    help="List how fast each machine has trained each shape; budgets in time are divided by these rates."
    "\n\nExample: armillary rates recipe.yaml",
)(
    store_verb(
        "rates_overview",
        [
            *("device", "workers", "layers", "d_model", "context_length", "batch_sequences", "precision", "how"),
            *("tokens_per_s", "seconds", "recorded_at"),
        ],
        "tokens per second, all workers together",
    )
)


@runs_app.command("export")
@opens_workspace("recipe", "folder", "database")
def runs_export(
    at: WorkspaceOptions,
    to: Annotated[str, typer.Option("--to", help="tensorboard, mlflow, wandb, trackio or csv.", show_default=False)],
    place: Annotated[
        str | None,
        typer.Option("--at", help="Folder, or MLflow's tracking URI (default: the recipe's, else in the results)."),
    ] = None,
    project: Annotated[
        str | None, typer.Option(help="Project or experiment there (default: the recipe's, else its name).")
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option(help="Only the run with this id, or the beginning of one; repeatable.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add the metrics of runs to a tracker: what it lacks of each run, so the command may be repeated.

    RECIPE may also be the folder of a single run, such as a large run's.

    Example: armillary runs export recipe.yaml --to mlflow
    """
    from armillary.trackers import chosen_destination, export_runs, run_in, runs_in

    single = run_in(at.recipe) if at.recipe.is_dir() else None
    if single is not None:
        if at.database is not None or at.folder is not None or run:
            raise UsageError(f"{at.recipe} is the folder of one run; leave out --out, --database and --run")
        chosen, document, results, name = [single], Trackers(), at.recipe, single.name
    else:
        recipe, results = store_of(at)
        chosen, document, name = runs_in(results / "store", at.database, run or []), recipe.trackers, recipe.name
    where = chosen_destination(to, document, results, name, place, project)
    show = Reporter()
    try:
        found = list(export_runs(chosen, where, lambda done, total, note: show("export", done, total, note)))
    finally:
        show.close()
    none = bool(found) and all(one.problem is not None for one in found)
    if as_json:
        show_json({"to": where.to_json(), "runs": [one.to_json() for one in found]})
        raise typer.Exit(int(none))
    for one in found:
        if one.problem is not None:
            err.print(f"[yellow]left out[/yellow] {escape(f'{one.name}: {one.problem}')}", highlight=False)
    rows, whole = sum(one.rows for one in found), sum(one.problem is None for one in found)
    there = where.place or "MLFLOW_TRACKING_URI"
    out.print(
        escape(f"{counted(whole, 'run')} in {to}, {there}, {where.project}: {counted(rows, 'step')} added"),
        highlight=False,
    )
    raise typer.Exit(int(none))


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
        raise UsageError(f"{place}: has no database; give another folder with --out, or a database with --database")
    workspace(replace(at, folder=place), show).store().backup(to)
    if as_json:
        return show_json({"backup": str(to)})
    out.print(
        f"written to {escape(str(to))}; the files of the runs are in store/runs, copy that folder too", highlight=False
    )

"""`armillary study`: one study at a time."""

from __future__ import annotations

from typing import Annotated

import typer

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import Reporter, show_json
from armillary.cli.show.studies import show_anneal, show_ladder, show_lr, show_mixture, show_power
from armillary.cli.values import positive
from armillary.cli.workspaces import WorkspaceOptions, opens_workspace, stage_verb, workspace

study_app = typer.Typer(help="Small runs to find a recipe.", no_args_is_help=True)
app.add_typer(study_app, name="study")

study_app.command(
    "mixture",
    help="Find the mixture: designed proxies, a law, confirmation runs of its best candidates, a significance test."
    "\n\nExample: armillary study mixture recipe.yaml --budget 8m",
)(stage_verb("mixture", "mixture", show_mixture))
study_app.command(
    "anneal",
    help="Find the annealing: one stable trunk, branches that decay from it. Runs the mixture study first if needed."
    "\n\nExample: armillary study anneal recipe.yaml",
)(stage_verb("anneal", "anneal", show_anneal))
study_app.command(
    "lr",
    help="Tune the peak learning rate: a grid of small runs, a law, a confirmation. Needs a section `study.lr`."
    "\n\nExample: armillary study lr recipe.yaml",
)(stage_verb("lr", "lr", show_lr))
study_app.command(
    "ladder",
    help="Train the ladder: models of growing size and tokens with the recipe found. Runs earlier studies if needed."
    "\n\nExample: armillary study ladder recipe.yaml --json",
)(stage_verb("ladder", "ladder", show_ladder))


@study_app.command("power")
@opens_workspace("recipe", "folder", "budget", "workers", "database", "on")
def power(
    at: WorkspaceOptions,
    difference: Annotated[
        float | None,
        typer.Option(
            callback=positive,
            help="A difference in nats per token: state how many seeds it needs.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """State what the mixture study can find, before it is run: noise between seeds, signal, smallest difference.

    Trains only the natural and the uniform mixture, which the study needs anyway.

    Example: armillary study power recipe.yaml --difference 0.01
    """
    show = Reporter()
    try:
        found = workspace(at, show).power(difference)
    finally:
        show.close()
    (show_json if as_json else show_power)(found)

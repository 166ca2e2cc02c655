"""`armillary study`: one study at a time."""

from __future__ import annotations

import typer

from armillary.cli.app import app
from armillary.cli.show.studies import show_anneal, show_ladder, show_lr, show_mixture
from armillary.cli.workspaces import stage_verb

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

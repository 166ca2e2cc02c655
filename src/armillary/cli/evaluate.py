"""The verbs of examinations."""

from __future__ import annotations

import typer

from armillary.cli.contest import contest
from armillary.cli.screen import app

evaluate_app = typer.Typer(help="Examine models.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")
evaluate_app.command("contest")(contest)

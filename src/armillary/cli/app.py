"""The app of all verbs, and the option that all of them share."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="Find a training recipe with small models, predict the large run, train it, and compare."
    "\n\nExample: armillary demo --offline",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

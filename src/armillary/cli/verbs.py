"""The app with all its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from armillary import __version__
from armillary.cli import laws, path
from armillary.cli.screen import app

__all__ = ["app", "laws", "path"]


def version(value: bool) -> None:
    """Print the version and end."""
    if value:
        print(f"armillary {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the verb."""

"""`armillary console`: web pages over stores and runs."""

from __future__ import annotations

from typing import Annotated

import typer

from armillary.cli.app import app
from armillary.cli.show.screen import out
from armillary.recipe import ArmillaryError, Language


@app.command("console")
def console(
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STORE|DIR]...",
            help="Workspaces, stores (folder, file or SQLAlchemy URL) and folders of runs (default: this folder).",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8321,
    host: Annotated[
        str, typer.Option(help="Address to listen on; all but loopback addresses need ARMILLARY_CONSOLE_TOKEN.")
    ] = "127.0.0.1",
    language: Annotated[Language, typer.Option(help="Language for browsers that request neither.")] = "en",
) -> None:
    """Show studies, runs, predictions, goodput, examinations and all lineage in a browser, read-only, as they change.

    Example: armillary console demo --port 8321
    """
    try:
        from armillary.console import ConsoleOptions, serve
    except ImportError as error:
        raise ArmillaryError(f"{error}; install the extra: pip install 'armillary[console]'") from error

    def say(address: str) -> None:
        out.print(address, highlight=False)

    serve(ConsoleOptions(tuple(places or ["."]), language), host, port, say)

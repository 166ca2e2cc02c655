"""The command line: one verb each; parses, calls one function of a room, prints.

Exit codes: 0 good, 1 the work failed, 2 wrong use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape

from armillary import __version__
from armillary.cli import laws, path
from armillary.cli.screen import app, err
from armillary.recipe import ArmillaryError

__all__ = ["guarded", "laws", "main", "path"]

_INTERRUPTED = 130  # how the parser of the command line ends on Ctrl-C


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


def main() -> None:
    """Entry point: errors that are a person's or the work's end in a message and an exit code, not in a traceback."""
    sys.exit(guarded(lambda: app(standalone_mode=True)))


def guarded(act: Callable[[], Any]) -> int:
    """The exit code of ``act``."""
    try:
        act()
    except ArmillaryError as error:
        err.print(f"[red]error[/red] {escape(str(error))}", highlight=False)
        return error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        said = escape(f"{where}{error.strerror or error}; what was done before is kept")
        err.print(f"[red]error[/red] {said}", highlight=False)
        return 1
    except (KeyboardInterrupt, SystemExit) as error:
        code = error.code if isinstance(error, SystemExit) else _INTERRUPTED
        if code != _INTERRUPTED:
            return code if isinstance(code, int) else 0 if code is None else 1
        err.print("stopped; give the same command to go on")
        return 1
    return 0

"""The command line: one verb each; parses, calls one function of a room, prints.

Exit codes: 0 good, 1 the work failed, 2 wrong use.
"""

from __future__ import annotations

import sys

from armillary.cli.guard import guarded

__all__ = ["guarded", "main"]


def main() -> None:
    """Entry point: what ends a verb becomes a message and an exit code, not a traceback."""
    sys.exit(guarded(_verbs))


def _verbs() -> None:
    from armillary.cli.verbs import app  # here, so that Ctrl-C is guarded while packages load

    app(standalone_mode=True)

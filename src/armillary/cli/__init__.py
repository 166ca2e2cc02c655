"""The command line. Each verb parses its options, calls one function of a room, and prints the result.

Exit codes: 0 success, 1 the work failed, 2 wrong usage.
"""

from __future__ import annotations

import sys

from armillary.cli.guard import guarded

__all__ = ["guarded", "main"]


def main() -> None:
    """Entry point: an error in a verb becomes a message and an exit code instead of a traceback."""
    sys.exit(guarded(_verbs))


def _verbs() -> None:
    from armillary.cli.verbs import app  # imported here, so that Ctrl-C is handled while packages load

    app(standalone_mode=True)

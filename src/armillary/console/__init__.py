"""Web pages over stores and run folders, read-only: studies, runs, predictions, goodput, examinations, lineage.

Imports no torch. Server-rendered HTML with charts as SVG: everything except live updates works without JavaScript, and
nothing is loaded from other hosts.
"""

from armillary.console.app import ConsoleOptions, create_app
from armillary.console.serve import serve

__all__ = ["ConsoleOptions", "create_app", "serve"]

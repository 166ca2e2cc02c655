"""`armillary verdict`."""

from __future__ import annotations

from armillary.cli.app import app
from armillary.cli.show.studies import show_verdict
from armillary.cli.workspaces import stage_verb

app.command(
    "verdict",
    help="Compare the prediction with the outcome, and record the verdict.\n\nExample: armillary verdict recipe.yaml",
)(stage_verb("verdict", "verdict", show_verdict))

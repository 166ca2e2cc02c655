"""`armillary predict`."""

from __future__ import annotations

from armillary.cli.app import app
from armillary.cli.show.studies import show_prediction
from armillary.cli.workspaces import stage_verb

app.command(
    "predict",
    help="Record a prediction of the target run before it exists. Runs the studies first if needed."
    "\n\nExample: armillary predict recipe.yaml",
)(stage_verb("predict", "prediction", show_prediction))

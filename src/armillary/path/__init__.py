"""The whole path from a recipe to a published model: every stage, skipped where its result exists."""

from armillary.path.evidence import Evidence, summary
from armillary.path.verify import Verified, verify
from armillary.path.workspace import GOALS, Goal, Workspace, demo_recipe

__all__ = ["GOALS", "Evidence", "Goal", "Verified", "Workspace", "demo_recipe", "summary", "verify"]

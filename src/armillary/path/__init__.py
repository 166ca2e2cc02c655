"""The whole path from a recipe to a published model; a stage is skipped if its result exists."""

from armillary.path.evidence import Evidence, summary
from armillary.path.verify import Verified, verify
from armillary.path.workspace import Workspace, demo_recipe

__all__ = [
    "Evidence",
    "Verified",
    "Workspace",
    "demo_recipe",
    "predicted",
    "summary",
    "taught",
    "teach",
    "verify",
]

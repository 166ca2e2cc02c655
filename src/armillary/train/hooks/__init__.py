"""Hooks that run between the steps of a run, one behaviour per file."""

from armillary.train.hooks.hook import Hook, Voted, call_hook, is_due, wishes
from armillary.train.hooks.metrics import Metrics
from armillary.train.hooks.profile import Profile
from armillary.train.hooks.save import Save
from armillary.train.hooks.stop import Stop
from armillary.train.hooks.validate import Validate

__all__ = ["Hook", "Metrics", "Profile", "Save", "Stop", "Validate", "Voted", "call_hook", "is_due", "wishes"]

"""Hubs to publish models to: one file per hub."""

from armillary.publish.hubs import gitee, huggingface, modelers, modelscope
from armillary.publish.hubs.hub import HUBS, Hub, Outgoing, PassingError, Target, attempt, differences

__all__ = [
    "HUBS",
    "Hub",
    "Outgoing",
    "PassingError",
    "Target",
    "attempt",
    "differences",
    "gitee",
    "huggingface",
    "modelers",
    "modelscope",
]

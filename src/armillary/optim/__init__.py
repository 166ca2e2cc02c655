"""Optimizers, one file each: AdamW and Muon, over whole parameters or this rank's parts of them."""

# importing the file of an optimizer registers its kind
from armillary.optim import adamw, muon
from armillary.optim.local import LocalOptimizer, build_optimizer, set_lr
from armillary.optim.registry import register

__all__ = ["LocalOptimizer", "adamw", "build_optimizer", "muon", "register", "set_lr"]

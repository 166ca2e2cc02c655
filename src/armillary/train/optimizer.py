"""The optimizers of a run, which ``armillary.optim`` has."""

from armillary.optim import LocalOptimizer, build_optimizer, set_lr

__all__ = ["LocalOptimizer", "build_optimizer", "set_lr"]

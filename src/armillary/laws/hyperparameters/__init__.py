"""Laws of learning rate and batch size."""

from armillary.laws.hyperparameters.law import HeldOutGrid, HyperparameterLaw, HyperparameterOptimum

__all__ = [
    "HeldOutGrid",
    "HyperparameterLaw",
    "HyperparameterOptimum",
]

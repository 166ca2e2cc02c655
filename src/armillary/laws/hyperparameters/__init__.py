"""Laws of learning rate and batch size."""

from armillary.laws.hyperparameters.law import HeldOutGrid, HyperparameterLaw, HyperparameterOptimum, LearningRate

__all__ = [
    "HeldOutGrid",
    "HyperparameterLaw",
    "HyperparameterOptimum",
    "LearningRate",
]

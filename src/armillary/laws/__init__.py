"""Laws from small runs to large ones, with intervals: scaling, mixtures, and the choice among few repeats.

Imports no torch; works on anybody's table of runs.
"""

from armillary.laws.design import simplex_design
from armillary.laws.estimator import ExtrapolationError, ExtrapolationWarning, Prediction
from armillary.laws.hyperparameters import HyperparameterLaw
from armillary.laws.mixture import HeldOut, MixtureLaw
from armillary.laws.optimise import Optimum, optimise_mixture
from armillary.laws.scaling import SCALING_FORMS, LeftOut, ScalingLaw
from armillary.laws.uncertainty import Choice, best_of, mean_interval, paired_difference

__all__ = [
    "SCALING_FORMS",
    "Choice",
    "ExtrapolationError",
    "ExtrapolationWarning",
    "HeldOut",
    "HyperparameterLaw",
    "LeftOut",
    "MixtureLaw",
    "Optimum",
    "Prediction",
    "ScalingLaw",
    "best_of",
    "mean_interval",
    "optimise_mixture",
    "paired_difference",
    "simplex_design",
]

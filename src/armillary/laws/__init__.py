"""Laws from small runs to large ones, with intervals: scaling, mixtures, and the choice among few runs.

Imports no torch; works on anybody's table of runs.
"""

from armillary.laws.estimator import Prediction
from armillary.laws.scaling import ChinchillaLaw, LeftOut
from armillary.laws.uncertainty import Choice, best_of, mean_interval, paired_difference

__all__ = [
    "ChinchillaLaw",
    "Choice",
    "LeftOut",
    "Prediction",
    "best_of",
    "mean_interval",
    "paired_difference",
]

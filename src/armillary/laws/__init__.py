"""Laws from small runs to large ones, with intervals: scaling, mixtures, and the choice among few repeats.

Imports no torch; works on anybody's table of runs.
"""

from armillary.laws.anneal import AnnealLaw, HeldOutCurve
from armillary.laws.compare import Comparison, Versus, compare_families
from armillary.laws.curves import Curve, read_curve, read_curves
from armillary.laws.design import into_bounds, simplex_design
from armillary.laws.estimator import (
    LAWS_VERSION,
    ExtrapolationError,
    ExtrapolationWarning,
    Prediction,
    SetAside,
    SetAsideWarning,
    rows_named,
)
from armillary.laws.examination import AtChanceError, ExaminationLaw, LeftOutRuns
from armillary.laws.gain import GainLaw
from armillary.laws.hyperparameters import HeldOutGrid, HyperparameterLaw, HyperparameterOptimum
from armillary.laws.mixture import HeldOut, MixtureLaw, rank_correlation
from armillary.laws.next_run import NextRun, next_runs
from armillary.laws.optimise import Optimum, epoch_ceilings, optimise_mixture
from armillary.laws.scaling import SCALING_FORMS, LeftOut, ScalingLaw
from armillary.laws.schedules import BestSchedule, best_schedule
from armillary.laws.table import parse_size
from armillary.laws.uncertainty import Choice, best_of, mean_interval, paired_difference

__all__ = [
    "LAWS_VERSION",
    "SCALING_FORMS",
    "AnnealLaw",
    "AtChanceError",
    "BestSchedule",
    "Choice",
    "Comparison",
    "Curve",
    "ExaminationLaw",
    "ExtrapolationError",
    "ExtrapolationWarning",
    "GainLaw",
    "HeldOut",
    "HeldOutCurve",
    "HeldOutGrid",
    "HyperparameterLaw",
    "HyperparameterOptimum",
    "LeftOut",
    "LeftOutRuns",
    "MixtureLaw",
    "NextRun",
    "Optimum",
    "Prediction",
    "ScalingLaw",
    "SetAside",
    "SetAsideWarning",
    "Versus",
    "best_of",
    "best_schedule",
    "compare_families",
    "epoch_ceilings",
    "into_bounds",
    "mean_interval",
    "next_runs",
    "optimise_mixture",
    "paired_difference",
    "parse_size",
    "rank_correlation",
    "read_curve",
    "read_curves",
    "rows_named",
    "simplex_design",
]

"""Laws from small runs to large ones, with intervals: scaling, mixtures, and the choice among few repeats.

Imports no torch; works on any table of runs.
"""

from armillary.laws.anneal import (
    AnnealLaw,
    BestSchedule,
    Curve,
    HeldOutCurve,
    best_schedule,
    read_curve,
    read_curves,
)
from armillary.laws.estimator import (
    LAWS_VERSION,
    ExtrapolationError,
    ExtrapolationWarning,
    Prediction,
    SetAside,
    SetAsideWarning,
    rows_named,
)
from armillary.laws.examination import AtChanceError, ExaminationLaw, GainLaw, LeftOutRuns
from armillary.laws.hyperparameters import HeldOutGrid, HyperparameterLaw, HyperparameterOptimum, LearningRate
from armillary.laws.mixture import (
    HeldOut,
    MixtureLaw,
    Optimum,
    epoch_ceilings,
    into_bounds,
    optimise_mixture,
    rank_correlation,
    refining_mixtures,
    simplex_design,
    weights_at_ends,
)
from armillary.laws.regret import regret_of
from armillary.laws.repeats import POWER, SeedNoise, detectable, seeds_needed
from armillary.laws.scaling import (
    SCALING_FORMS,
    Comparison,
    LeftOut,
    NextRun,
    ScalingLaw,
    Versus,
    compare_families,
    next_runs,
)
from armillary.laws.table import parse_size, read_table
from armillary.laws.uncertainty import Choice, best_of, mean_interval, paired_difference

__all__ = [
    "LAWS_VERSION",
    "POWER",
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
    "LearningRate",
    "LeftOut",
    "LeftOutRuns",
    "MixtureLaw",
    "NextRun",
    "Optimum",
    "Prediction",
    "ScalingLaw",
    "SeedNoise",
    "SetAside",
    "SetAsideWarning",
    "Versus",
    "best_of",
    "best_schedule",
    "columns",
    "compare_families",
    "decisions",
    "detectable",
    "epoch_ceilings",
    "files",
    "into_bounds",
    "mean_interval",
    "next_runs",
    "optimise_mixture",
    "paired_difference",
    "parse_size",
    "rank_correlation",
    "read_curve",
    "read_curves",
    "read_table",
    "refining_mixtures",
    "regret_of",
    "reproduce",
    "rows_named",
    "seeds_needed",
    "simplex_design",
    "table",
    "weights_at_ends",
    "workbench",
]

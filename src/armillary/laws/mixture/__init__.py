"""Mixture laws: design, forms, noise, runs to set aside, and the best mixture under limits."""

from armillary.laws.mixture.design import into_bounds, simplex_design
from armillary.laws.mixture.law import HeldOut, MixtureLaw, rank_correlation
from armillary.laws.mixture.optimise import Optimum, epoch_ceilings, optimise_mixture
from armillary.laws.mixture.phases import (
    PhaseBounds,
    PhaseLaw,
    PhaseOptimum,
    optimise_phases,
    phase_design,
    refining_points,
    split_points,
)
from armillary.laws.mixture.refine import WeightAtEnd, refining_mixtures, weights_at_ends

__all__ = [
    "HeldOut",
    "MixtureLaw",
    "Optimum",
    "PhaseBounds",
    "PhaseLaw",
    "PhaseOptimum",
    "WeightAtEnd",
    "epoch_ceilings",
    "into_bounds",
    "optimise_mixture",
    "optimise_phases",
    "phase_design",
    "rank_correlation",
    "refining_mixtures",
    "refining_points",
    "simplex_design",
    "split_points",
    "weights_at_ends",
]

"""Mixture laws: design, forms, noise, runs to set aside, and the best mixture under limits."""

from armillary.laws.mixture.design import into_bounds, simplex_design
from armillary.laws.mixture.law import HeldOut, MixtureLaw, rank_correlation
from armillary.laws.mixture.optimise import Optimum, epoch_ceilings, optimise_mixture

__all__ = [
    "HeldOut",
    "MixtureLaw",
    "Optimum",
    "epoch_ceilings",
    "into_bounds",
    "optimise_mixture",
    "rank_correlation",
    "simplex_design",
]

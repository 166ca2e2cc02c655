"""Scaling laws: forms, fit, runs to set aside, comparison of architectures, and which run to make next."""

from armillary.laws.scaling.compare import Comparison, Versus, compare_families
from armillary.laws.scaling.forms import SCALING_FORMS
from armillary.laws.scaling.law import LeftOut, ScalingLaw
from armillary.laws.scaling.next_run import NextRun, next_runs

__all__ = [
    "SCALING_FORMS",
    "Comparison",
    "LeftOut",
    "NextRun",
    "ScalingLaw",
    "Versus",
    "compare_families",
    "next_runs",
]

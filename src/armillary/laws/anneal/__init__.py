"""Annealing laws: loss curves, forms over whole learning-rate curves, and the best schedule."""

from armillary.laws.anneal.curves import Curve, read_curve, read_curves
from armillary.laws.anneal.law import AnnealLaw, HeldOutCurve
from armillary.laws.anneal.schedules import BestSchedule, best_schedule

__all__ = [
    "AnnealLaw",
    "BestSchedule",
    "Curve",
    "HeldOutCurve",
    "best_schedule",
    "read_curve",
    "read_curves",
]

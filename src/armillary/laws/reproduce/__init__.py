"""Published results carried out again from their measured data, ours beside theirs."""

from armillary.laws.reproduce.evaluation import Evaluation, Figure, Forecast

__all__ = ["Evaluation", "Figure", "Forecast"]

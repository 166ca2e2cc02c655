"""Laws of examinations: from loss to score, and the gain of fine-tuning on more data."""

from armillary.laws.examination.gain import GainLaw
from armillary.laws.examination.law import AtChanceError, ExaminationLaw, LeftOutRuns

__all__ = [
    "AtChanceError",
    "ExaminationLaw",
    "GainLaw",
    "LeftOutRuns",
]

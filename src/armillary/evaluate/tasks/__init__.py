"""Standard tasks through lm_eval over a ``Backend``: local data, lm_eval's scores, our intervals and audit."""

from armillary.evaluate.tasks.examine import Contamination, ExamOptions, Prepared, examine, prepare
from armillary.evaluate.tasks.rescore import rescore
from armillary.evaluate.tasks.session import hold_examination

__all__ = ["Contamination", "ExamOptions", "Prepared", "examine", "hold_examination", "prepare", "rescore"]

"""Standard tasks through lm_eval over a ``Backend``: local data, lm_eval's scores, our intervals and audit."""

from armillary.evaluate.tasks.audit import Disagreement, audit
from armillary.evaluate.tasks.examine import Contamination, ExamOptions, Prepared, examine, prepare
from armillary.evaluate.tasks.rescore import rescore
from armillary.evaluate.tasks.session import default_folder, hold_examination, lineage_of

__all__ = [
    "Contamination",
    "Disagreement",
    "ExamOptions",
    "Prepared",
    "audit",
    "default_folder",
    "examine",
    "hold_examination",
    "lineage_of",
    "prepare",
    "rescore",
]

"""Standard tasks of lm_eval on any ``Backend``: local data, lm_eval's scores, our intervals and audit."""

from armillary.evaluate.tasks.audit import Disagreement, audit
from armillary.evaluate.tasks.contamination import CleanScore, clean_scores, contamination_in
from armillary.evaluate.tasks.examine import Contamination, ExamOptions, Prepared, examine, prepare
from armillary.evaluate.tasks.rescore import rescore, write_rescored
from armillary.evaluate.tasks.session import default_folder, hold_examination, lineage_of
from armillary.evaluate.tasks.texts import EvaluationSet, evaluation_files, read_evaluation, read_split, split_of

__all__ = [
    "CleanScore",
    "Contamination",
    "Disagreement",
    "EvaluationSet",
    "ExamOptions",
    "Prepared",
    "audit",
    "clean_scores",
    "contamination_in",
    "default_folder",
    "evaluation_files",
    "examine",
    "hold_examination",
    "lineage_of",
    "prepare",
    "read_evaluation",
    "read_split",
    "rescore",
    "split_of",
    "write_rescored",
]

"""Examinations of a model: scores with intervals, paired comparisons, and model-written code in a sandbox."""

from armillary.evaluate.asking import Asker
from armillary.evaluate.compare import Comparison, compare
from armillary.evaluate.intervals import Interval, mean_interval
from armillary.evaluate.judge import JudgeOptions, Question, judge_pairs
from armillary.evaluate.results import (
    Examination,
    Item,
    Result,
    item_id,
    read_examination,
    write_examination,
)

__all__ = [
    "Asker",
    "Comparison",
    "Examination",
    "Interval",
    "Item",
    "JudgeOptions",
    "Question",
    "Result",
    "compare",
    "item_id",
    "judge_pairs",
    "mean_interval",
    "read_examination",
    "write_examination",
]

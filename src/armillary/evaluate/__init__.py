"""Examinations of a model: scores with intervals, paired comparisons, and model-written code in a sandbox."""

from armillary.evaluate.asking import Asker
from armillary.evaluate.compare import Comparison, compare, compare_seeds, scores_of
from armillary.evaluate.intervals import Interval, mean_interval
from armillary.evaluate.judge import JudgeOptions, Question, judge_pairs
from armillary.evaluate.power import items_needed
from armillary.evaluate.results import (
    Examination,
    Item,
    Result,
    item_id,
    read_examination,
    read_examinations,
    write_examination,
)
from armillary.evaluate.sandbox import Limits as SandboxLimits
from armillary.evaluate.sandbox import Outcome as SandboxOutcome
from armillary.evaluate.sandbox import run_checked
from armillary.evaluate.seeds import ComparisonPlan, SeedNoise, paired_over_seeds, plan_comparison

# Modules to import from directly: their names are rarely needed, or say too little without the module's name.
__all__ = [
    "Asker",
    "Comparison",
    "ComparisonPlan",
    "Examination",
    "Interval",
    "Item",
    "JudgeOptions",
    "Question",
    "Result",
    "SandboxLimits",
    "SandboxOutcome",
    "SeedNoise",
    "asking",
    "cloze",
    "compare",
    "compare_seeds",
    "contests",
    "item_id",
    "items_needed",
    "judge",
    "judge_pairs",
    "leaderboard",
    "losses",
    "mean_interval",
    "paired",
    "paired_over_seeds",
    "plan_comparison",
    "read_examination",
    "read_examinations",
    "results",
    "run_checked",
    "scores_of",
    "tasks",
    "write_examination",
]

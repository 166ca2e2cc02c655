"""Examinations of a model: scores with intervals, paired comparisons, and model-written code in a sandbox."""

from armillary.evaluate.compare import Comparison, compare
from armillary.evaluate.results import (
    Examination,
    Item,
    Result,
    item_id,
    read_examination,
    write_examination,
)

__all__ = [
    "Comparison",
    "Examination",
    "Item",
    "Result",
    "compare",
    "item_id",
    "read_examination",
    "write_examination",
]

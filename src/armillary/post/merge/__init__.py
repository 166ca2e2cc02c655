"""Merging: models that were trained from one base become one, tensor by tensor.

What it does not do: merge models of different tokenizers or shapes, permute hidden units, or stack layers.
"""

from armillary.post.merge.merge import merge, read_record
from armillary.post.merge.registry import MergeOptions, methods, read_weights
from armillary.post.merge.score import held_out_loss
from armillary.post.merge.search import LEAST_ITEMS, MERGE, Search, find_weights, search_merge

__all__ = [
    "LEAST_ITEMS",
    "MERGE",
    "MergeOptions",
    "Search",
    "find_weights",
    "held_out_loss",
    "merge",
    "methods",
    "read_record",
    "read_weights",
    "search_merge",
]

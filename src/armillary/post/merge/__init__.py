"""Merges models trained from one base into one model, tensor by tensor.

Out of scope: models with different tokenizers or shapes, permutation of hidden units, and stacking of layers.
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

"""Post-training: verified synthetic data, supervised fine-tuning, preference and merging."""

from armillary.post.decontaminate import PASSES, DecontaminateOptions, Leak, Leaks, decontaminate, find_leaks
from armillary.post.diversity import Diversity, compare_diversity
from armillary.post.items import Item, read_items, read_rows, to_line
from armillary.post.stage import DROPPED, ITEMS, RECORD, Stage, StageSpec, open_stage, read_record

__all__ = [
    "DROPPED",
    "ITEMS",
    "PASSES",
    "RECORD",
    "DecontaminateOptions",
    "Diversity",
    "Item",
    "Leak",
    "Leaks",
    "Stage",
    "StageSpec",
    "compare_diversity",
    "decontaminate",
    "find_leaks",
    "open_stage",
    "read_items",
    "read_record",
    "read_rows",
    "to_line",
]

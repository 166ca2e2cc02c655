"""Post-training: verified synthetic data, supervised fine-tuning, preference and merging."""

from armillary.post.items import Item, read_items, read_rows, to_line
from armillary.post.stage import DROPPED, ITEMS, RECORD, Stage, StageSpec, open_stage, read_record

__all__ = [
    "DROPPED",
    "ITEMS",
    "RECORD",
    "Item",
    "Stage",
    "StageSpec",
    "open_stage",
    "read_items",
    "read_record",
    "read_rows",
    "to_line",
]

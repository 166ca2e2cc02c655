"""Post-training: verified synthetic data, supervised fine-tuning, preference and merging."""

from armillary.post.decontaminate import PASSES, DecontaminateOptions, Leak, Leaks, decontaminate, find_leaks
from armillary.post.diversity import Diversity, compare_diversity
from armillary.post.evolve import EvolveOptions, evolve
from armillary.post.items import Item, read_items, read_rows, to_line
from armillary.post.reject import RejectOptions, reject
from armillary.post.sampling import PassRate, SampleOptions
from armillary.post.stage import DROPPED, ITEMS, RECORD, Keys, Stage, StageSpec, check_stage, open_stage, read_record

# Stages that load torch, or that callers use one at a time, are exported as modules.
__all__ = [
    "DROPPED",
    "ITEMS",
    "PASSES",
    "RECORD",
    "DecontaminateOptions",
    "Diversity",
    "EvolveOptions",
    "Item",
    "Keys",
    "Leak",
    "Leaks",
    "PassRate",
    "RejectOptions",
    "SampleOptions",
    "Stage",
    "StageSpec",
    "chance",
    "check_stage",
    "compare_diversity",
    "decontaminate",
    "dpo",
    "evolve",
    "examine",
    "find_leaks",
    "formats",
    "joins",
    "merge",
    "open_stage",
    "pairs",
    "plan",
    "read_items",
    "read_record",
    "read_rows",
    "records",
    "reject",
    "select",
    "sft",
    "synthesize",
    "template",
    "to_line",
    "tuning",
    "verify",
]

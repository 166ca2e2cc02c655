"""Runs of other programs as a table of sizes and losses, which ``armillary fit scaling`` and ``compare`` take.

Sources are files of Weights & Biases, event files of TensorBoard, and CSV. Nothing in them is executed: pickles are
never read.
"""

from armillary.trackers.importing.found import FORMATS, read_runs
from armillary.trackers.importing.table import Imported, make_table, write_table

__all__ = ["FORMATS", "Imported", "make_table", "read_runs", "write_table"]

"""Checkpoints of one run: all that training needs to resume, in pieces that any layout can read.

A checkpoint is a folder ``step-N``::

    rank-00000.safetensors   the pieces of weights and optimizer state that this rank is the first to hold
    metrics.parquet          the metrics so far
    checkpoint.json          format, run, step, size and SHA-256 of every file, which pieces make up each tensor, and a
                             hash of all that

The manifest is written last and the folder is written aside and then renamed, so a checkpoint is there whole or not at
all. Reading one has three outcomes. It is good; it is damaged (a torn disk, a flipped bit: ``DamagedFileError``); or
it is not for this run (a newer format, another run, a model of other sizes: ``ForeignFileError``). A damaged one is
renamed ``step-N.damaged``, never removed; nothing but a checkpoint of the run itself is ever removed, and what stands
beside under other names (``step-7.bak``) is left alone. There is no saved state of the data loader and none of a
random generator: the batches are a function of the step (contract 2), and nothing in a step is random.

A rank reads of each tensor the slices it needs, whichever rank wrote them, so a run resumes under another layout, or on
one device. Formats 1 (whole tensors of one process) and 2 (without the run) are still read; format 4 has the steps of
the run that were skipped.

Trade-off: this is not ``torch.distributed.checkpoint``. Its index is a pickle, which runs code when it is read; its
safetensors writer leaves no index at all, so that a lost file looks like a smaller tensor, and neither has checksums.
The pieces are those that DTensor names, which is what it would have written.
"""

from armillary.train.checkpoint.manifest import (
    CheckpointReader,
    Progress,
    checkpoint_steps,
    complete,
    read_manifest,
    set_aside,
    verify_checkpoint,
)
from armillary.train.checkpoint.pieces import Piece, PieceReader, Written, join_pieces, whole, write_pieces
from armillary.train.checkpoint.retention import Branches, RetentionPolicy, remove_checkpoints, thin_out
from armillary.train.checkpoint.saver import AsyncSaver, Saved, Saver, SyncSaver

__all__ = [
    "AsyncSaver",
    "Branches",
    "CheckpointReader",
    "Piece",
    "PieceReader",
    "Progress",
    "RetentionPolicy",
    "Saved",
    "Saver",
    "SyncSaver",
    "Written",
    "checkpoint_steps",
    "complete",
    "join_pieces",
    "read_manifest",
    "remove_checkpoints",
    "set_aside",
    "thin_out",
    "verify_checkpoint",
    "whole",
    "write_pieces",
]

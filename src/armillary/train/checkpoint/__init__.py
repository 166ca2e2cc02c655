"""Checkpoints of one run: everything that training needs to resume, in pieces that any layout can read.

A checkpoint is a folder ``step-N``::

    rank-00000.safetensors   this rank's pieces of weights and optimizer state; copies are divided among ranks
    metrics.parquet          the metrics so far
    checkpoint.json          format, run, step, size and SHA-256 of every file, the pieces of each tensor, and a hash of
                             all of it

A checkpoint is atomic: it is written under a temporary name, its manifest last, and then renamed. Reading one has three
outcomes. It is good; it is damaged (a torn file, a flipped bit: ``DamagedFileError``); or it is not for this run (a
newer format, another run, a model of other sizes: ``ForeignFileError``). A damaged one is renamed ``step-N.damaged``
and never removed. Only checkpoints of the run itself are ever removed; entries with other names (``step-7.bak``) are
left alone. A checkpoint holds no state of the data loader or of a random generator: the batches are a function of the
step (contract 2), and nothing in a step is random.

A rank reads only the slices of each tensor that it needs, independent of the rank that wrote them. So a run resumes
under another layout, or on one device. Formats 1 (whole tensors of one process) and 2 (without the run) are still read;
format 4 has the steps of the run that were skipped.

Trade-off: this is not ``torch.distributed.checkpoint``. Its index is a pickle, which runs code when it is read. Its
safetensors writer writes no index, so a lost file looks like a smaller tensor. Neither has checksums. The pieces are
those of DTensor, which that module would have written too.
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
from armillary.train.checkpoint.peers import Peers, PeerSaver
from armillary.train.checkpoint.pieces import Piece, PieceReader, Written, join_pieces, whole, write_pieces
from armillary.train.checkpoint.retention import Branches, RetentionPolicy, remove_checkpoints, thin_out
from armillary.train.checkpoint.saver import AsyncSaver, Saved, Saver, SyncSaver

__all__ = [
    "AsyncSaver",
    "Branches",
    "CheckpointReader",
    "PeerSaver",
    "Peers",
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

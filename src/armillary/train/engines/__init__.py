"""Engines take the steps of a run: one engine per file."""

from armillary.train.engines.engine import ADAPTER, Engine, autocast, outline, parts, peak_memory_gib, validate
from armillary.train.engines.parallel import ParallelEngine
from armillary.train.engines.single import SingleDeviceEngine, loss_sums, train_step
from armillary.train.engines.stack import Stack

__all__ = [
    "ADAPTER",
    "Engine",
    "ParallelEngine",
    "SingleDeviceEngine",
    "Stack",
    "autocast",
    "loss_sums",
    "outline",
    "parts",
    "peak_memory_gib",
    "train_step",
    "validate",
]

"""Training runs: a specification and a corpus in, a folder with weights, metrics, events and a result out."""

from armillary.train.engine import train_step, validate
from armillary.train.fleet import (
    Assignment,
    Fleet,
    Outcome,
    Stack,
    member_bytes,
    stack_capacity,
    stack_key,
    train_fleet,
)
from armillary.train.loop import (
    BusyRunError,
    DivergedError,
    InterruptedRunError,
    RunResult,
    Trunk,
    default_device,
    read_result,
    train_run,
)
from armillary.train.optimizer import LocalOptimizer, build_optimizer
from armillary.train.ranks import train_ranks

__all__ = [
    "Assignment",
    "BusyRunError",
    "DivergedError",
    "Fleet",
    "InterruptedRunError",
    "LocalOptimizer",
    "Outcome",
    "RunResult",
    "Stack",
    "Trunk",
    "build_optimizer",
    "default_device",
    "member_bytes",
    "read_result",
    "stack_capacity",
    "stack_key",
    "train_fleet",
    "train_ranks",
    "train_run",
    "train_step",
    "validate",
]

"""Training runs: a specification and a corpus in, a folder with weights, metrics, events and a result out."""

from armillary.optim import LocalOptimizer, build_optimizer
from armillary.train.answers import answer_log_probs
from armillary.train.check import check_run
from armillary.train.checkpoint import CheckpointReader, verify_checkpoint
from armillary.train.engines import ADAPTER, Stack, train_step, validate
from armillary.train.errors import BusyRunError, DivergedError, InterruptedRunError, lost_connection
from armillary.train.fleet import Assignment, Fleet, Outcome, member_bytes, stack_capacity, stack_key, train_fleet
from armillary.train.folder import load_trained, read_metrics, verify_run
from armillary.train.hooks import Hook, Profile
from armillary.train.loop import default_device, train_run
from armillary.train.ranks import train_ranks
from armillary.train.resume import Trunk
from armillary.train.start import start_from

__all__ = [
    "ADAPTER",
    "Assignment",
    "BusyRunError",
    "CheckpointReader",
    "DivergedError",
    "Fleet",
    "Hook",
    "InterruptedRunError",
    "LocalOptimizer",
    "Outcome",
    "Profile",
    "Stack",
    "Trunk",
    "answer_log_probs",
    "build_optimizer",
    "check_run",
    "default_device",
    "load_trained",
    "lost_connection",
    "member_bytes",
    "read_metrics",
    "stack_capacity",
    "stack_key",
    "start_from",
    "train_fleet",
    "train_ranks",
    "train_run",
    "train_step",
    "validate",
    "verify_checkpoint",
    "verify_run",
]

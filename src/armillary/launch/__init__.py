"""Starts training: many runs on workers (``workers``), or one run over many ranks (``ranks``)."""

from armillary.launch.ranks.large import check_corpus, launch, launched, stopping
from armillary.launch.workers.capacity import default_workers, fit_workers, worker_bytes
from armillary.launch.workers.executor import Executor, settled
from armillary.launch.workers.local import LocalExecutor
from armillary.launch.workers.messages import Failure, InterruptedStudyError, Job, Probe, Progress
from armillary.launch.workers.places import check_place, open_place, register_place
from armillary.launch.workers.pool import WorkerExecutor
from armillary.launch.workers.ranks import RankExecutor
from armillary.launch.workers.ray import RayExecutor

__all__ = [
    "Executor",
    "Failure",
    "InterruptedStudyError",
    "Job",
    "LocalExecutor",
    "Probe",
    "Progress",
    "RankExecutor",
    "RayExecutor",
    "WorkerExecutor",
    "check_corpus",
    "check_place",
    "default_workers",
    "fit_workers",
    "launch",
    "launched",
    "open_place",
    "register_place",
    "settled",
    "stopping",
    "worker_bytes",
]

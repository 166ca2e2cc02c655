"""Starts training: many runs on workers (``workers``), one run over many ranks (``ranks``), or jobs (``clusters``).

The names of workers and ranks are loaded when the first of them is used, because they need torch and jobs do not.
"""

from importlib import import_module
from typing import Any

from armillary.launch.clusters.cluster import (
    Cluster,
    ClusterKind,
    Host,
    JobFile,
    Seen,
    Task,
    UnreachableError,
    register_cluster,
)
from armillary.launch.clusters.crashes import record_crash
from armillary.launch.clusters.jobs import (
    JobState,
    Prepared,
    Submission,
    cancel,
    find_job,
    list_jobs,
    prepare,
    print_log,
    submit,
)
from armillary.launch.clusters.profiles import ClusterProfile
from armillary.launch.clusters.records import Job as SubmittedJob
from armillary.launch.clusters.records import read_jobs
from armillary.launch.ranks.forks import launched, start_fork_server

__all__ = [
    "Cluster",
    "ClusterKind",
    "ClusterProfile",
    "Executor",
    "Failure",
    "Host",
    "InterruptedStudyError",
    "Job",
    "JobFile",
    "JobState",
    "LocalExecutor",
    "Prepared",
    "Probe",
    "Progress",
    "RankExecutor",
    "RayExecutor",
    "Seen",
    "Submission",
    "SubmittedJob",
    "Task",
    "UnreachableError",
    "WorkerExecutor",
    "cancel",
    "check_corpus",
    "check_place",
    "default_workers",
    "find_job",
    "fit_workers",
    "launch",
    "launched",
    "list_jobs",
    "open_place",
    "prepare",
    "print_log",
    "read_jobs",
    "record_crash",
    "register_cluster",
    "register_place",
    "settled",
    "start_fork_server",
    "stopping",
    "submit",
    "worker_bytes",
]

_LATER = {
    "ranks.large": ("check_corpus", "launch", "stopping"),
    "workers.capacity": ("default_workers", "fit_workers", "worker_bytes"),
    "workers.executor": ("Executor", "settled"),
    "workers.local": ("LocalExecutor",),
    "workers.messages": ("Failure", "InterruptedStudyError", "Job", "Probe", "Progress"),
    "workers.places": ("check_place", "open_place", "register_place"),
    "workers.pool": ("WorkerExecutor",),
    "workers.ranks": ("RankExecutor",),
    "workers.ray": ("RayExecutor",),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'armillary.launch' has no attribute '{name}'")
    for module, names in _LATER.items():  # all at once: a place registers itself when it is loaded
        loaded = import_module(f"armillary.launch.{module}")
        globals().update({each: getattr(loaded, each) for each in names})
    return globals()[name]

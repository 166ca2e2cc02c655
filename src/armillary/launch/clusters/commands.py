"""The commands of a job: what it runs on its node or nodes, and the supervisor around it."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence

from armillary.launch.clusters.cluster import Task
from armillary.launch.clusters.profiles import ClusterProfile
from armillary.recipe import UsageError

_PORTS = 20_000, 10_000  # the first port for a rendezvous, and how many there are
_RANK_RESTARTS = 3  # of the ranks within an attempt, by torchrun


def rendezvous_port(name: str) -> int:
    """The port at which the nodes of a job meet: jobs that share a node rarely have the same one."""
    return _PORTS[0] + zlib.crc32(name.encode()) % _PORTS[1]


def check_min_nodes(min_nodes: int | None, task: Task) -> None:
    """Raise a UsageError if a profile's ``min_nodes`` is larger than the number of nodes of the job."""
    if min_nodes is not None and min_nodes > task.nodes:
        raise UsageError(f"min_nodes: {min_nodes} in the profile, and the job has {task.nodes}; lower it")


def work(task: Task, profile: ClusterProfile, min_nodes: int | None = None) -> list[str]:
    """The command that does the work of ``task`` on one node, or on each of several.

    On one node ranks are started and watched by ``armillary train``, on several by torchrun. With ``min_nodes`` the
    ranks that are left continue with fewer data replicas after a node is lost.
    """
    python = profile.python or sys.executable
    files = [str(task.file), "--out", str(task.folder)]
    if task.ranks is None:
        return [python, "-m", "armillary", "run", *files]
    if task.nodes == 1:
        return [python, "-m", "armillary", "train", *files, "--nproc", str(task.ranks)]
    nodes = str(task.nodes) if min_nodes is None else f"{min_nodes}:{task.nodes}"
    fewer = [] if min_nodes is None else ["--min-ranks", str(min_nodes * task.ranks)]
    return [
        *(python, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc-per-node", str(task.ranks)),
        *("--max-restarts", str(_RANK_RESTARTS), "--rdzv-backend", "c10d", "--rdzv-id", task.name),
        *("-m", "armillary", "train", *files, *fewer),
    ]


def supervised(kind: str, task: Task, profile: ClusterProfile, command: Sequence[str]) -> list[str]:
    """The command that supervises ``command`` as the job ``task`` on a ``kind`` of cluster."""
    python = profile.python or sys.executable
    module = "armillary.launch.clusters.supervise"
    return [python, "-m", module, kind, str(profile.max_restarts), str(task.place), "--", *command]


def member(task: Task, profile: ClusterProfile, command: Sequence[str]) -> list[str]:
    """The command that runs ``command`` as the part of one node of the job."""
    python = profile.python or sys.executable
    return [python, "-m", "armillary.launch.clusters.member", str(task.place), "--", *command]


# Restarted ranks would otherwise find the addresses of dead ones (torchrun 2.13).
TORCHRUN_VARIABLES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

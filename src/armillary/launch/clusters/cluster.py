"""The registry of clusters for ``armillary submit --on``, and the methods that each has.

A job has a unique name. A cluster finds it again by this name alone, so a submission whose record was lost in a kill
is still found.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from armillary.launch.clusters.attempts import JOBS
from armillary.launch.clusters.profiles import ClusterProfile
from armillary.recipe import ArmillaryError, UsageError, without_passwords

LOG = "log.txt"
FINAL = 3  # exit code of the supervisor of a job that has failed for good
_PATIENCE_S = 60.0
# Words of commands that lost the cluster after they had sent a request.
_LOST = re.compile(r"time(d )?[- ]?out|\bEOF\b|deadline exceeded|connection (reset|lost)|broken pipe", re.IGNORECASE)
# Set by the cluster where its name of a node differs from the host's name.
_NODE_NAMES = ("SLURMD_NODENAME", "ARMILLARY_NODE")


class UnreachableError(ArmillaryError):
    """The cluster does not answer, so the state of its jobs, or of a request, is unknown."""


@dataclass(frozen=True)
class Task:
    """The work of a job: train the large run, or run the recipe, of ``file`` into ``folder`` (both absolute).

    ``name`` is unique: lower-case letters, digits and hyphens. ``ranks`` is the number of ranks per node, None for a
    recipe.
    """

    name: str
    file: Path
    folder: Path
    nodes: int = 1
    ranks: int | None = None

    @property
    def place(self) -> Path:
        """The folder of the job's files."""
        return self.folder / JOBS / self.name


@dataclass(frozen=True)
class JobFile:
    """The file of a job under its name in the job's folder, and the command that submits it from there."""

    name: str
    text: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """A job as its cluster reports it; ``native`` is the cluster's own id, ``word`` its own word for the state."""

    state: Literal["pending", "running", "ended"]
    native: str
    word: str = ""
    nodes: tuple[str, ...] = ()
    note: str = ""


class Cluster(ABC):
    """A cluster with its profile."""

    def __init__(self, profile: Any) -> None:
        self.profile = profile

    def resolved(self) -> ClusterProfile:
        """The profile with the values that the environment would otherwise give later.

        Raises:
            UsageError: a command of the cluster is missing, or a value is wrong.
        """
        profile: ClusterProfile = self.profile
        return profile

    @abstractmethod
    def job_file(self, task: Task, excluded: Sequence[str]) -> JobFile:
        """The job file of ``task``, which leaves out the ``excluded`` nodes.

        Raises:
            UsageError: this cluster cannot run it.
        """

    @abstractmethod
    def submit(self, task: Task, job: JobFile) -> str:
        """Submit the job file, which lies in the job's folder; return the cluster's id of the job.

        Raises:
            UsageError: a command or package of the cluster is missing.
            UnreachableError: the request may have arrived.
            ArmillaryError: the cluster refused the job, or the request has not arrived.
        """

    @abstractmethod
    def seen(self, tasks: Sequence[Task]) -> dict[str, Seen]:
        """The jobs of ``tasks`` that the cluster still knows, by name.

        Raises:
            UnreachableError: it does not answer.
        """

    @abstractmethod
    def cancel(self, task: Task, seen: Seen, now: bool) -> None:
        """End the job: after a checkpoint, or at once with ``now``.

        Raises:
            ArmillaryError: the cluster refused.
        """

    def log_command(self, task: Task, follow: bool) -> list[str] | None:
        """The command that prints the job's log; None if the log is a file in the job's folder."""
        return None


def node_name() -> str:
    """The cluster's name of this node."""
    return next((os.environ[name] for name in _NODE_NAMES if os.environ.get(name)), socket.gethostname())


class Host:
    """The view of a cluster from inside a job, for the process that supervises the job."""

    def nodes(self) -> tuple[str, ...]:
        """The cluster's names of the job's nodes."""
        return (node_name(),)

    def native(self) -> str:
        """The cluster's id of the job."""
        return str(os.getpid())

    def environment(self, name: str) -> dict[str, str]:
        """Variables for the command of the job called ``name``."""
        return {}

    def excludable(self, native: str, nodes: Sequence[str]) -> tuple[str, ...]:
        """Those of ``nodes`` that the job may still use, and that ``restart`` can leave out.

        Raises:
            ArmillaryError: the cluster does not answer.
        """
        return ()

    def restart(self, place: Path, native: str, excluded: Sequence[str]) -> bool:
        """Give the job back to the cluster for a restart, without the ``excluded`` nodes.

        Returns:
            False if the cluster does not restart jobs, so that the supervisor runs the command again.

        Raises:
            ArmillaryError: the cluster refused.
        """
        return False


@dataclass(frozen=True)
class ClusterKind:
    """A kind of cluster: the type of its profiles, the function that opens it with one, and its view from inside.

    ``excludes`` is whether its job files can leave out nodes.
    """

    profile: type[ClusterProfile]
    open: Callable[[Any], Cluster]
    host: Host = field(default_factory=Host)
    excludes: bool = True


_KINDS: dict[str, ClusterKind] = {}


def register_cluster(name: str, kind: ClusterKind) -> None:
    """Register a kind of cluster under the word before the colon of ``--on``."""
    _KINDS[name] = kind


def cluster_kinds() -> list[str]:
    """The names of all kinds of clusters."""
    return sorted(_KINDS)


def find_cluster(name: str) -> ClusterKind:
    """The kind of cluster called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in _KINDS:
        raise UsageError(f"--on {name}: not a kind of cluster; give {', '.join(cluster_kinds())}, or KIND:PROFILE")
    return _KINDS[name]


def call(command: Sequence[str], *, folder: Path | None = None, given: str | None = None) -> str:
    """What a cluster's command prints on standard output.

    Raises:
        UsageError: the command is not installed.
        UnreachableError: it does not end.
        ArmillaryError: it failed, with the first lines of its message.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, input=given, capture_output=True, text=True, timeout=_PATIENCE_S, check=False,
            errors="replace", stdin=subprocess.DEVNULL if given is None else None,
        )  # fmt: skip
    except FileNotFoundError as error:
        if error.filename != command[0]:
            raise
        raise UsageError(
            f"{command[0]}: no such command; run this on a machine that has the cluster's commands, or put them on PATH"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"{command[0]} did not answer within {_PATIENCE_S:.0f} s") from error
    if done.returncode != 0:
        problem = " ".join((done.stderr or done.stdout).split())[:500] or f"exit code {done.returncode}"
        raise ArmillaryError(f"{command[0]}: {without_passwords(problem)}")
    return done.stdout


def send(command: Sequence[str], folder: Path | None = None) -> str:
    """What a command prints that submits a job.

    Raises:
        As ``call``; UnreachableError also if the request may have arrived although the command failed.
    """
    try:
        return call(command, folder=folder)
    except (UsageError, UnreachableError):
        raise
    except ArmillaryError as error:
        if _LOST.search(str(error)):
            raise UnreachableError(str(error)) from error
        raise

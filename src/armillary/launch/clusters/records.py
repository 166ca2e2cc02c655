"""The user's record of submitted jobs: a folder for each job, with sealed files.

``planned.json`` is written before the submission, with the job's unique name. ``submitted.json`` follows with the
cluster's id, or ``refused.json`` with its message. If the program is killed between the two, the job is found on the
cluster by its name, and ``submitted.json`` is written then. It is replaced when the supervisor has submitted the job
again, so that the cluster reports another id.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.launch.clusters.attempts import read_record, write_record
from armillary.launch.clusters.cluster import Cluster, Task, find_cluster
from armillary.launch.clusters.profiles import ClusterProfile, kept_profile
from armillary.recipe import ArmillaryError

PLANNED, SUBMITTED, REFUSED = "planned.json", "submitted.json", "refused.json"


@dataclass(frozen=True)
class Job:
    """A recorded job: its task, the kind of its cluster with the profile as values, and the time of its planning.

    ``native`` is the cluster's id, ``refused`` its message if it refused the job; None if neither is recorded.
    """

    task: Task
    kind: str
    profile: dict[str, Any]
    planned_s: float
    native: str | None = None
    refused: str | None = None

    def cluster(self) -> Cluster:
        """The job's cluster, as it was when the job was submitted."""
        kind = find_cluster(self.kind)
        return kind.open(kept_profile(kind.profile, self.profile))


def records_folder() -> Path:
    """The folder of this user's records."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "armillary" / "jobs"


def plan(task: Task, kind: str, profile: ClusterProfile, excluded: Sequence[str]) -> None:
    """Record a job before its submission.

    Raises:
        FileExistsError: there is a job of that name.
    """
    folder = records_folder() / task.name
    folder.mkdir(parents=True)
    write_record(
        folder, PLANNED, kind=kind, profile=profile.model_dump(mode="json"), excluded=list(excluded),
        file=str(task.file), folder=str(task.folder), nodes=task.nodes, ranks=task.ranks,
    )  # fmt: skip


def record(task: Task, name: str, **fields: Any) -> None:
    """Add the file ``name`` to the record of a job."""
    write_record(records_folder() / task.name, name, **fields)


def read_jobs() -> tuple[list[Job], dict[str, str]]:
    """All recorded jobs, newest first, and the problem of each job whose record cannot be read, by its name."""
    jobs, problems = [], {}
    for folder in sorted(records_folder().glob("*/")):
        try:
            jobs.append(read_job(folder.name))
        except FileNotFoundError:  # killed before the record was written: nothing was submitted
            continue
        except (ArmillaryError, OSError) as error:
            problems[folder.name] = str(error)
    return sorted(jobs, key=lambda job: job.planned_s, reverse=True), problems


def read_job(name: str) -> Job:
    """The recorded job called ``name``.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError, ForeignFileError: as ``read_record``.
    """
    folder = records_folder() / name
    planned, submitted, refused = (read_record(folder, file) for file in (PLANNED, SUBMITTED, REFUSED))
    if planned is None:
        raise FileNotFoundError(folder / PLANNED)
    return Job(
        Task(name, Path(planned["file"]), Path(planned["folder"]), planned["nodes"], planned["ranks"]),
        planned["kind"],
        planned["profile"],
        planned["time_s"],
        None if submitted is None else submitted["native"],
        None if refused is None else refused["why"],
    )

"""Submits, lists and cancels jobs, and prints their logs."""

from __future__ import annotations

import codecs
import contextlib
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from armillary.files import write_file
from armillary.launch.clusters.attempts import (
    CANCEL,
    END,
    attempt_numbers,
    history,
    read_attempts,
    read_record,
    write_record,
)
from armillary.launch.clusters.cluster import LOG, JobFile, Seen, Task, UnreachableError
from armillary.launch.clusters.kinds import find_cluster
from armillary.launch.clusters.profiles import load_profile
from armillary.launch.clusters.records import (
    REFUSED,
    SUBMITTED,
    Job,
    plan,
    read_job,
    read_jobs,
    record,
    records_folder,
)
from armillary.recipe import ArmillaryError, LargeRun, Recipe, UsageError, counted, exclusive
from armillary.resilience import excluded_nodes

# A killed submission may still reach the cluster; after this time a job that no cluster has is not submitted.
_ARRIVES_S = 60.0
_ACTIVE = {"submitting", "pending", "running", "stopping", "unknown"}
_LOOK_S = 0.5


@dataclass(frozen=True)
class Submission:
    """A request: the document in ``file``, its results ``folder``, where to run (``KIND`` or ``KIND:PROFILE``)."""

    document: Recipe | LargeRun
    file: Path
    folder: Path
    on: str
    nodes: int | None = None


@dataclass(frozen=True)
class Prepared:
    """A job that could be submitted: its task, the kind of cluster, profile, job file, and excluded nodes."""

    task: Task
    kind: str
    profile: Any
    job: JobFile
    excluded: tuple[str, ...]


@dataclass(frozen=True)
class JobState:
    """The state of a job: a row of ``armillary jobs``.

    ``state`` is submitting, pending, running, stopping, done, failed, cancelled, stopped, lost, refused, not submitted,
    or unknown. ``since_s`` is the time of its last change that is recorded, ``exit`` the exit code of the work.
    """

    job: str
    state: str
    on: str
    since_s: float
    nodes: str
    attempts: int
    exit: int | None
    excluded: tuple[str, ...]
    note: str
    native: str | None
    file: str
    folder: str


def prepare(wanted: Submission) -> Prepared:
    """Everything about a job but its submission; nothing is written.

    Raises:
        UsageError: no such cluster or profile, a wrong profile, or work that the cluster cannot run.
    """
    kind, _, name = wanted.on.partition(":")
    found = find_cluster(kind)
    profile = load_profile(kind, name or None, wanted.file.parent, found.profile)
    nodes, ranks = wanted.nodes or 1, None
    if isinstance(wanted.document, LargeRun):
        ranks = profile.ranks_per_node
        layout = wanted.document.layout
        if ranks is None:
            total = layout.ranks if layout is not None else nodes * (getattr(profile, "gpus_per_node", None) or 1)
            if total % nodes:
                raise UsageError(
                    f"--nodes {nodes}: the layout of {wanted.file} has {total} ranks, which this does not divide; give "
                    "another number, or ranks_per_node in the profile"
                )
            ranks = total // nodes
        wanted.document.layout_of(nodes * ranks)
    task = Task(_unique(wanted.document.name), wanted.file, wanted.folder, nodes, ranks)
    excluded = excluded_nodes(history(wanted.folder)) if found.excludes else ()
    return Prepared(task, kind, profile, found.open(profile).job_file(task, excluded), excluded)


def submit(prepared: Prepared) -> JobState:
    """Record and submit a job; an earlier job of the same results must have ended.

    Raises:
        UsageError: an earlier job still runs, or may; or a command of the cluster is missing.
        ArmillaryError: the cluster refused.
    """
    task, kind = prepared.task, find_cluster(prepared.kind)
    with exclusive(records_folder() / ".lock", "submits a job"):
        known, unreadable = read_jobs()
        for job in known:
            if job.task.folder == task.folder:
                (state,), _ = list_jobs([job])
                if state.state in _ACTIVE:
                    raise UsageError(_refusal(state))
        for name, problem in unreadable.items():
            place = replace(task, name=name).place
            if place.is_dir() and read_end(place) is None:
                raise UsageError(
                    f"job {name} of {task.folder} may still run, because its record cannot be read ({problem}); if the "
                    f"cluster no longer has it, move {records_folder() / name} away"
                )
        cluster = kind.open(kind.open(prepared.profile).resolved())
        sent = cluster.job_file(task, prepared.excluded)
        task.place.mkdir(parents=True)
        write_file(task.place / sent.name, sent.text.encode())
        plan(task, prepared.kind, cluster.profile, prepared.excluded)
        try:
            native = cluster.submit(task, sent)
        except UnreachableError as error:  # it may have arrived
            raise UnreachableError(
                f"{error}; `armillary jobs` shows in {_ARRIVES_S:.0f} s whether {prepared.kind} has job {task.name}"
            ) from error
        except ArmillaryError as error:
            record(task, REFUSED, why=str(error))
            raise
        _record_submitted(task, native)
    (state,), _ = list_jobs([read_job(task.name)])
    return state


def _record_submitted(task: Task, native: str) -> None:
    with contextlib.suppress(OSError):  # with a full disk the job is found by its name
        record(task, SUBMITTED, native=native)


def _refusal(state: JobState) -> str:
    if state.state == "unknown":
        return (
            f"job {state.job} of {state.folder} may still run, because {state.on} does not answer ({state.note}); try "
            "again when it does"
        )
    return (
        f"job {state.job} of {state.folder} is {state.state}; `armillary logs {state.job}` shows it, `armillary cancel "
        f"{state.job}` ends it"
    )


def list_jobs(jobs: Sequence[Job]) -> tuple[list[JobState], list[str]]:
    """The state of each job, and a line for each cluster that does not answer.

    The cluster's id of a job is recorded now if it was not, or has changed because the supervisor submitted the job
    again.
    """
    seen: dict[str, Seen] = {}
    silent: dict[str, str] = {}
    problems = []
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        if read_end(job.task.place) is None and job.refused is None:
            groups.setdefault((job.kind, repr(sorted(job.profile.items()))), []).append(job)
    for (kind, _), group in groups.items():
        try:
            seen |= group[0].cluster().seen([job.task for job in group])
        except ArmillaryError as error:
            problems.append(f"{kind}: {error}")
            silent |= {job.task.name: str(error) for job in group}
    states = []
    for known in jobs:
        job, name = known, known.task.name
        if name in seen and job.native != seen[name].native and job.refused is None:
            _record_submitted(job.task, seen[name].native)
            job = replace(job, native=seen[name].native)
        states.append(_state(job, seen.get(name), silent.get(name)))
    return states, problems


def read_end(place: Path) -> tuple[str, int, str] | None:
    """State, exit code and reason of a job's end, from its folder; None if there is no record, or it is damaged."""
    try:
        end = read_record(place, END)
        return None if end is None else (end["state"], end["exit"], end["why"])
    except (ArmillaryError, OSError):
        return None


def _state(job: Job, seen: Seen | None, silent: str | None) -> JobState:
    place = job.task.place
    end, attempts = read_end(place), read_attempts(place)
    cancel = (place / CANCEL).exists()
    nodes = seen.nodes if seen is not None and seen.nodes else attempts[-1].nodes if attempts else ()
    code, note, since = None, seen.note if seen is not None else "", _changed(place, job.planned_s)
    if job.refused is not None:
        state, note = "refused", job.refused
    elif end is not None:
        state, code, note = end
        note = "" if state == "done" else note
    elif silent is not None:
        state, note = "unknown", silent
    elif seen is not None and seen.state == "running":
        state = "stopping" if cancel else "running"
    elif seen is not None and seen.state == "pending":
        state = "pending"
    elif cancel:
        state = "cancelled"
    elif not place.is_dir():
        state, note = "lost", f"{place} is gone, and {job.kind} no longer has the job"
    elif attempts and attempts[-1].ending == "stopped":
        state, note = "stopped", "ended from outside; `armillary submit` with the same file resumes it"
    elif attempts or job.native is not None:
        word = f" ({seen.word})" if seen is not None and seen.word else ""
        state = "lost"
        note = note or f"ended{word} without a record: killed, or never started; see {place / LOG}"
    elif time.time() - job.planned_s < _ARRIVES_S:
        state = "submitting"
    else:
        state, note = "not submitted", "killed before the submission; `armillary submit` with the same file submits it"
    return JobState(
        job.task.name, state, job.kind, since, ",".join(nodes), len(attempts), code,
        _excluded(job), " ".join(note.split()), job.native, str(job.task.file), str(job.task.folder),
    )  # fmt: skip


def _excluded(job: Job) -> tuple[str, ...]:
    """The nodes that the next job of the same results leaves out."""
    with contextlib.suppress(UsageError):  # a kind that this version lacks
        if find_cluster(job.kind).excludes:
            return excluded_nodes(history(job.task.folder))
    return ()


def _changed(place: Path, planned_s: float) -> float:
    """The time of the last record in the folder of a job."""
    numbers = attempt_numbers(place)
    names = [END, CANCEL, *(f"attempt-{n}{end}.json" for n in numbers[-1:] for end in ("", "-end"))]
    times = [planned_s]
    for name in names:
        try:
            times.append((place / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def find_job(name: str) -> Job:
    """The job called ``name``, or the only one whose name begins so or that has this id on its cluster.

    The clusters are queried only if no record has this name or id.

    Raises:
        UsageError: there is none, or there are several.
        DamagedFileError, ForeignFileError: its record cannot be read.
    """
    jobs, unreadable = read_jobs()
    names = [job.task.name for job in jobs if name in (job.task.name, job.native)]
    names = names or [found for found in (*(job.task.name for job in jobs), *unreadable) if found.startswith(name)]
    names = names or [state.job for state in list_jobs(jobs)[0] if state.native == name]
    if len(names) == 1:
        return read_job(names[0])
    if not names:
        raise UsageError(f"{name}: no job of this name or id; `armillary jobs` lists all")
    raise UsageError(f"{name}: {counted(len(names), 'job')}: {', '.join(names)}; give one name")


def cancel(job: Job, now: bool) -> JobState:
    """End a job: after a checkpoint, or at once with ``now``.

    Raises:
        UsageError: it has already ended.
        ArmillaryError: the cluster does not answer, or refused.
    """
    (state,), problems = list_jobs([job])
    if problems:
        raise ArmillaryError(f"job {state.job} cannot be cancelled now: {problems[0]}")
    if state.state not in _ACTIVE:
        raise UsageError(f"job {state.job} has ended: {state.state}")
    cluster = job.cluster()
    seen = cluster.seen([job.task]).get(job.task.name)
    if seen is None:
        raise UsageError(f"job {state.job} is not on {job.kind} yet; try again in {_ARRIVES_S:.0f} s")
    write_record(job.task.place, CANCEL, now=now)
    cluster.cancel(job.task, seen, now)
    return list_jobs([job])[0][0]


def print_log(job: Job, follow: bool, write: Callable[[str], None]) -> None:
    """Pass the job's log to ``write``; with ``follow`` until the job has ended.

    Raises:
        UsageError: there is no log yet, or a command of the cluster is missing.
        ArmillaryError: the cluster refused, or the followed job has ended and is not done.
    """
    command = job.cluster().log_command(job.task, follow)
    if command is None:
        for text in _lines(job, follow):
            write(text)
    else:
        _print_by(command)
    if follow:
        (state,), _ = list_jobs([job])
        if state.state not in (*_ACTIVE, "done"):
            raise ArmillaryError(f"job {state.job} is {state.state}" + (f": {state.note}" if state.note else ""))


def _print_by(command: Sequence[str]) -> None:
    """Run a cluster's command that prints a log on standard output."""
    try:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
    except FileNotFoundError as error:
        raise UsageError(f"{command[0]}: no such command; put it on PATH") from error
    if code != 0:
        raise ArmillaryError(f"{command[0]} ended with exit code {code}; `armillary jobs` shows whether the job exists")


def _lines(job: Job, follow: bool) -> Iterator[str]:
    path = job.task.place / LOG
    if not follow and not path.exists():
        (state,), _ = list_jobs([job])
        raise UsageError(f"{path}: there is no log yet; job {state.job} is {state.state}. --follow waits for it")
    place, looked, active = 0, time.monotonic(), True
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a character may lie in two pieces
    while True:
        new = b""
        if path.exists():
            with open(path, "rb") as file:
                file.seek(place)
                new = file.read(1 << 20)
        if new:
            place += len(new)
            yield decoder.decode(new)
            continue
        if not follow or not active:
            yield decoder.decode(b"", final=True)
            return
        if time.monotonic() - looked > 4 * _LOOK_S or read_end(job.task.place) is not None:
            looked = time.monotonic()
            active = list_jobs([job])[0][0].state in _ACTIVE  # one more look at the file after the end
        time.sleep(_LOOK_S)


def _unique(name: str) -> str:
    """A job name that no other job has: lower-case letters, digits and hyphens, at most 40 characters."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:30].strip("-") or "job"
    return f"a-{slug}-{uuid.uuid4().hex[:8]}" if slug[0].isdigit() else f"{slug}-{uuid.uuid4().hex[:8]}"

"""Jobs on Slurm: an sbatch script, and Slurm's commands.

A job is requeued by Slurm after the loss of a node, and by its supervisor after another failure or before the time
limit. To exclude nodes that failed too often, the supervisor submits the job again under the same name.
"""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from armillary.launch.clusters.attempts import CANCEL, FIRST
from armillary.launch.clusters.cluster import (
    LOG,
    Cluster,
    ClusterKind,
    Host,
    JobFile,
    Seen,
    Task,
    UnreachableError,
    call,
    register_cluster,
    send,
)
from armillary.launch.clusters.commands import (
    TORCHRUN_VARIABLES,
    check_min_nodes,
    member,
    rendezvous_port,
    supervised,
    work,
)
from armillary.launch.clusters.profiles import ClusterProfile, Count, Line, Variable, Word
from armillary.recipe import ArmillaryError, UsageError

FILE = "job.sbatch"
# Names of variables of the submitting shell that every job gets, besides those that the profile names.
_INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
_STATES = {
    **dict.fromkeys(("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"), "pending"),
    **dict.fromkeys(("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT",
                     "RESIZING"), "running"),
}  # fmt: skip
_GONE_S = 120.0


class SlurmProfile(ClusterProfile):
    """The profile of a Slurm cluster: ``clusters/slurm.yaml``.

    Attributes:
        partition: the partition of the jobs; that of the cluster's settings if not given. ``account``, ``qos`` and
            ``constraint`` are the options of sbatch with these names.
        time: the time limit in Slurm's notation, such as ``1-12:00:00`` for a day and a half.
        gpus_per_node: accelerators of a job on each node.
        cpus_per_node: CPU cores of a job on each node.
        memory_gib: memory of a job on each node.
        exclude: nodes that no job uses.
        environment: names of variables of the submitting shell that the job gets too.
        setup: shell commands before the work, such as ``module load cuda``.
        image: a container image, which needs pyxis on the cluster.
        volumes: folders in the container (path outside: path inside).
        options: further options of sbatch, such as ``--mail-type=END``.
        min_nodes: a run on several nodes continues without a lost node, on fewer data replicas, down to this number.
    """

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    time: Word | None = None
    constraint: Word | None = None
    gpus_per_node: Count | None = None
    cpus_per_node: Count | None = None
    memory_gib: Count | None = None
    exclude: tuple[Word, ...] = ()
    environment: tuple[Variable, ...] = ()
    setup: tuple[Line, ...] = ()
    image: Word | None = None
    volumes: dict[Word, Word] = Field(default_factory=dict)
    options: tuple[Word, ...] = ()
    min_nodes: Count | None = None


class Slurm(Cluster):
    """Slurm, through sbatch, squeue and scancel on this machine."""

    profile: SlurmProfile

    def job_file(self, task: Task, excluded: Sequence[str]) -> JobFile:
        """The sbatch script of a task.

        Raises:
            UsageError: a recipe on several nodes, a wrong ``min_nodes``, or a path that Slurm cannot take.
        """
        profile, multi_node = self.profile, task.nodes > 1
        if multi_node and task.ranks is None:
            raise UsageError(
                f"--nodes {task.nodes}: a recipe runs on one node of Slurm; for more, start Ray on the nodes and give "
                "`armillary run --on ray`"
            )
        check_min_nodes(profile.min_nodes, task)
        if "\\" in str(task.place):
            raise UsageError(f"{task.place}: Slurm takes no log file whose path has a backslash; use another --out")
        elastic = multi_node and profile.min_nodes is not None and profile.min_nodes < task.nodes
        names = dict.fromkeys([*_INHERITED, "ARMILLARY_DATABASE", *profile.environment])
        options = {
            "job-name": task.name,
            "nodes": task.nodes,
            "ntasks-per-node": 1,
            "partition": profile.partition,
            "account": profile.account,
            "qos": profile.qos,
            "time": profile.time,
            "constraint": profile.constraint,
            "gpus-per-node": profile.gpus_per_node,
            "cpus-per-task": profile.cpus_per_node,
            "mem": f"{profile.memory_gib}G" if profile.memory_gib else None,
            "exclude": ",".join(sorted({*profile.exclude, *excluded})) or None,
            "signal": f"B:USR1@{profile.stop_s}",
            "open-mode": "append",
            "dependency": "singleton",
            "export": ",".join(names),
        }
        flags = ["--requeue", *(["--no-kill"] if elastic else []), *profile.options]
        command = work(task, profile, profile.min_nodes if elastic else None)
        container = []
        if profile.image is not None:
            container.append(f"--container-image={profile.image}")
        if profile.volumes:
            mounts = ",".join(f"{outside}:{inside}" for outside, inside in profile.volumes.items())
            container.append(f"--container-mounts={mounts}")
        if multi_node or container:
            srun_flags = ["--no-kill", "--kill-on-bad-exit=0"] if elastic else ["--kill-on-bad-exit=1"]
            step = ["srun", "--export=ALL", f"--nodes={task.nodes}", f"--ntasks={task.nodes}", "--ntasks-per-node=1"]
            command = [*step, *srun_flags, *container, *member(task, profile, command)]
        variables = {**(TORCHRUN_VARIABLES if multi_node else {}), **profile.variables}
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None),
            *(f"#SBATCH {flag}" for flag in flags),
            "unset SLURM_EXPORT_ENV",
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            *_setup(profile.setup, supervised("slurm", task, profile, ["sh", "-c", "exit 2"])),
            f"exec {shlex.join(supervised('slurm', task, profile, command))}",
        ]
        return JobFile(FILE, "\n".join(lines) + "\n", tuple(submission(task.place)))

    def submit(self, task: Task, job: JobFile) -> str:
        """Submit the script with sbatch; returns the id of the job."""
        return submitted(job.command, task.place)

    def seen(self, tasks: Sequence[Task]) -> dict[str, Seen]:
        """The state of each task by its name, from the jobs that squeue lists; recently ended jobs are listed too.

        Raises:
            UnreachableError: squeue failed, or its output cannot be parsed.
        """
        names = sorted({task.name for task in tasks})
        # Only these names, since the name of another job may hold the separator.
        wanted = ["--me", "--states=all", f"--name={','.join(names)}"]
        command = ["squeue", *wanted, "--noheader", "--format=%i|%j|%T|%r|%N|%D"]
        try:
            lines = call(command).splitlines()
        except UsageError:
            raise
        except ArmillaryError as error:
            raise UnreachableError(str(error)) from error
        found: dict[str, Seen] = {}
        for line in lines:
            parts = line.strip().split("|")
            if len(parts) != 6:
                raise UnreachableError(f"cannot parse this line of squeue: {line[:80]!r}")
            native, name, word, reason, nodes, _ = parts
            if name not in names:
                continue
            state = _STATES.get(word, "ended")
            note = reason if state == "pending" and reason not in ("None", "") else ""
            new = Seen(state, native, word.lower(), (nodes,) if nodes else (), note)  # type: ignore[arg-type]
            old = found.get(name)
            # A job that was submitted again has the name of the old one. A live job counts before an ended one, and a
            # running one before a pending one, which waits for the running one to end.
            if old is None or old.state == "ended" or (new.state == "running" and old.state == "pending"):
                found[name] = new
        return found

    def cancel(self, task: Task, seen: Seen, now: bool) -> None:
        """Cancel a pending job, and a running one if ``now``; otherwise it stops by itself after a checkpoint."""
        if now or seen.state == "pending":
            call(["scancel", f"--name={task.name}", "--me"])


def _setup(lines: Sequence[str], refused: Sequence[str]) -> list[str]:
    """The commands of ``setup``: the first that fails ends the job, whose supervisor ``refused`` records that.

    Commands inside a sourced file may fail, since only the result of the whole file counts.
    """
    if not lines:
        return []
    said = 'echo "error setup: $(sed -n "${LINENO}p" "$0") failed with exit code $code; see setup in the profile" >&2'
    trap = f"code=$?; if [ ${{#BASH_SOURCE[@]}} -le 1 ]; then {said}; exec {shlex.join(refused)}; fi"
    return [f"trap {shlex.quote(trap)} ERR", *lines, "trap - ERR"]


def submission(place: Path, excluded: Sequence[str] = ()) -> list[str]:
    """The command that submits the script in the folder ``place`` and excludes nodes; '%' in the path of the log is
    doubled, since sbatch expands it.
    """
    exclude_flag = [f"--exclude={','.join(excluded)}"] if excluded else []
    log = str(place / LOG).replace("%", "%%")
    return ["sbatch", "--parsable", f"--output={log}", *exclude_flag, str(place / FILE)]


def submitted(command: Sequence[str], place: Path) -> str:
    """Run the command ``submission`` and return the id of the job.

    Raises:
        UnreachableError: Slurm printed no id, or ``send`` raised it.
        ArmillaryError: Slurm refused.
    """
    output = send(command, place)
    native = output.strip().split(";")[0]
    if not native.isdecimal():
        raise UnreachableError(f"sbatch printed no job id: {output.strip()[:200]!r}; see squeue --me")
    return native


class SlurmHost(Host):
    """Slurm from inside a job."""

    def nodes(self) -> tuple[str, ...]:
        """The hosts of the job."""
        return tuple(call(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]).split())

    def native(self) -> str:
        """The id of the job."""
        return os.environ["SLURM_JOB_ID"]

    def environment(self, name: str) -> dict[str, str]:
        """Variables that put torchrun's rendezvous on the first host."""
        first = self.nodes()[0]
        return {"PET_RDZV_ENDPOINT": f"{_address(first)}:{rendezvous_port(name)}", FIRST: first}

    def excludable(self, native: str, nodes: Sequence[str]) -> tuple[str, ...]:
        """Those of ``nodes`` that the job does not exclude yet."""
        return tuple(sorted(set(nodes) - set(_excluded(native)))) if nodes else ()

    def restart(self, place: Path, native: str, excluded: Sequence[str]) -> bool:
        """Requeue the job, or submit it again without the excluded nodes.

        Slurm does not change the excluded nodes of a job that has started, so excluding nodes needs a new submission.
        It has the same name, and waits for the end of this job (``--dependency=singleton``).
        """
        if excluded:
            submitted(submission(place, sorted({*_excluded(native), *excluded})), place)
            return True
        call(["scontrol", "requeue", native])
        end = time.monotonic() + _GONE_S
        while time.monotonic() < end:
            if (place / CANCEL).exists():
                return True
            time.sleep(1)  # until Slurm ends this process
        message = f"Slurm accepted the requeue of job {native} and did not end it within {_GONE_S:.0f} s"
        print(f"{message}; it goes on in its allocation", flush=True)
        return False


def _excluded(native: str) -> list[str]:
    """The nodes that a job excludes."""
    listed = call(["scontrol", "show", "job", "--oneliner", native]).split()
    nodes = next((word.removeprefix("ExcNodeList=") for word in listed if word.startswith("ExcNodeList=")), "")
    return call(["scontrol", "show", "hostnames", nodes]).split() if nodes not in ("", "(null)") else []


def _address(node: str) -> str:
    """The address of a node: its name if that is known to this machine, else what Slurm uses."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        words = call(["scontrol", "show", "node", "--oneliner", node]).split()
        return next((word.removeprefix("NodeAddr=") for word in words if word.startswith("NodeAddr=")), node)


register_cluster("slurm", ClusterKind(SlurmProfile, Slurm, SlurmHost()))

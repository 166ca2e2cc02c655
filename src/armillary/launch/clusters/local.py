"""Jobs on this machine: a process in the background that outlives the terminal."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from armillary.launch.clusters.cluster import (
    LOG,
    Cluster,
    ClusterKind,
    JobFile,
    Seen,
    Task,
    register_cluster,
)
from armillary.launch.clusters.commands import supervised, work
from armillary.launch.clusters.profiles import ClusterProfile
from armillary.recipe import UsageError

_MODULE = b"armillary.launch.clusters.supervise"


class LocalProfile(ClusterProfile):
    """A profile of this machine: ``clusters/local.yaml``."""


class Local(Cluster):
    """This machine. A job is found by its folder in the command line of its process."""

    profile: LocalProfile

    def job_file(self, task: Task, excluded: Sequence[str]) -> JobFile:
        """A shell script."""
        if task.nodes > 1:
            raise UsageError(f"--nodes {task.nodes}: --on local is this machine alone; leave out --nodes")
        lines = [
            "#!/bin/sh",
            *(f"export {name}={shlex.quote(value)}" for name, value in self.profile.variables.items()),
            f"exec {shlex.join(supervised('local', task, self.profile, work(task, self.profile)))}",
        ]
        return JobFile("job.sh", "\n".join(lines) + "\n", ("sh", str(task.place / "job.sh")))

    def submit(self, task: Task, job: JobFile) -> str:
        """Start the script in a new session."""
        with open(task.place / LOG, "ab") as log:
            process = subprocess.Popen(
                job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return str(process.pid)

    def seen(self, tasks: Sequence[Task]) -> dict[str, Seen]:
        """The jobs whose processes live."""
        places = {os.fsencode(task.place): task.name for task in tasks}
        found = {}
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = file.read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if _MODULE in words:
                for word in words[words.index(_MODULE) :]:
                    if word in places:
                        found[places[word]] = Seen("running", file.parent.name, "running", (os.uname().nodename,))
        return found

    def cancel(self, task: Task, seen: Seen, now: bool) -> None:
        """Kill the job's session, if it is not to stop by itself."""
        if now:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(int(seen.native), signal.SIGKILL)


register_cluster("local", ClusterKind(LocalProfile, Local, excludes=False))

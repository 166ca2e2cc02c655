"""A real Slurm on this machine only: munged, slurmctld and slurmd in a temporary folder and on free ports."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PARTS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
_PATIENCE_S = 40


def missing() -> str | None:
    """Return why Slurm cannot be started on this machine, or None."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    lacking = [part for part in PARTS if shutil.which(part, path=path) is None]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install slurm-wlm munge"
    return "slurmd of another user than root cannot start jobs" if os.geteuid() != 0 else None


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, patience_s: float = _PATIENCE_S) -> None:
    """Wait until ``condition`` is true."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


class RealSlurm:
    """Slurm's daemons with ``nodes`` nodes on this machine; ``environment`` has the variables for its commands."""

    def __init__(self, folder: Path, nodes: int = 2) -> None:
        self.folder, self.nodes = folder, [f"node{n}" for n in range(nodes)]
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", *self.nodes):
            (folder / name).mkdir()
        socket_file = folder / "munge.socket"
        (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        (folder / "munge.key").chmod(0o400)
        host = socket.gethostname()
        ports = {name: _port() for name in self.nodes}
        lines = [
            "ClusterName=test",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={_port()}",
            f"AuthInfo=socket={socket_file},cred_expire=5",  # a job that is requeued waits this long
            "CredType=cred/munge",
            "SlurmUser=root",
            f"StateSaveLocation={folder / 'state'}",
            f"SlurmdSpoolDir={folder}/%n",
            f"SlurmctldPidFile={folder / 'slurmctld.pid'}",
            f"SlurmdPidFile={folder}/%n/slurmd.pid",
            f"SlurmctldLogFile={folder / 'slurmctld.log'}",
            f"SlurmdLogFile={folder}/%n.log",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "MpiDefault=none",
            "JobRequeue=1",
            "SwitchType=switch/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "SchedulerParameters=sched_interval=1,batch_sched_delay=0",
            "AccountingStorageType=accounting_storage/none",
            "JobAcctGatherType=jobacct_gather/none",
            "ReturnToService=2",
            "KillWait=30",
            "MinJobAge=10",  # a job that has ended is purged soon
            "SlurmdTimeout=10",
            "InactiveLimit=0",
            *(
                f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN"
                for name, port in ports.items()
            ),
            f"PartitionName=main Nodes={','.join(self.nodes)} Default=YES MaxTime=INFINITE State=UP",
        ]
        (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")

    def start(self) -> None:
        """Start all daemons, and wait until every node accepts jobs."""
        munged = [
            *("munged", "--foreground", "--force", f"--key-file={self.folder / 'munge.key'}", "--num-threads=2"),
            *(f"--socket={self.folder / 'munge.socket'}", f"--pid-file={self.folder / 'munged.pid'}"),
            *(f"--log-file={self.folder / 'munged.log'}", f"--seed-file={self.folder / 'munge.seed'}"),
        ]
        self._start("munged", munged)
        wait_for((self.folder / "munge.socket").exists, "munged does not start")
        self._start("slurmctld", ["slurmctld", "-D", "-i"])
        for name in self.nodes:
            self.start_node(name)
        wait_for(lambda: self.call("sinfo", "-h", "-t", "idle", "-o", "%D") == str(len(self.nodes)), self.why())

    def start_node(self, name: str) -> None:
        """Start the node's daemon in a new session."""
        self._start(name, ["slurmd", "-D", "-N", name])

    def kill_node(self, name: str) -> None:
        """Kill the node's daemon and everything that it started, as a power failure would."""
        # the processes of job steps are not descendants of the daemon
        steps = [pid for pid in _pids() if "slurmstepd: [" in _command(pid)]
        ours = [pid for pid in _pids() if f"SLURMD_NODENAME={name}\0" in _environment(pid)]
        found = [self._daemons[name].pid, *ours, *(pid for pid in steps if set(_children(pid)) & set(ours))]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def call(self, *command: str) -> str:
        """Run one of Slurm's commands and return its output."""
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **self.environment}, check=False
        )
        return done.stdout.strip()

    def why(self) -> str:
        """Return the last lines of the daemons' logs."""
        return "\n".join(f"{log}: {log.read_text()[-1500:]}" for log in self.folder.glob("*.log"))

    def stop(self) -> None:
        """Stop the jobs and all daemons."""
        self.call("scancel", "--full", "-u", "root")
        for name in reversed(self._daemons):
            daemon = self._daemons[name]
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start(self, name: str, command: list[str]) -> None:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        output = (self.folder / f"{name}.out").open("ab")
        self._daemons[name] = subprocess.Popen(
            command, env={**os.environ, **self.environment, "PATH": path}, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip


def _pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""

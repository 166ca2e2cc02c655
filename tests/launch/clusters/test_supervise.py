"""The supervisor of a job without a cluster: restarts, excluded nodes, and records on a full disk."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from real_slurm import wait_for

from armillary.launch.clusters import slurm as slurm_module
from armillary.launch.clusters import supervise as supervise_module
from armillary.launch.clusters.attempts import END, read_attempts, read_record, write_record
from armillary.launch.clusters.cluster import FINAL, Host
from armillary.launch.clusters.slurm import SlurmHost
from armillary.launch.clusters.supervise import Supervisor

FAILING = [sys.executable, "-c", "raise SystemExit(1)"]


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(supervise_module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(supervise_module, "_LOOK_S", 0.02)
    monkeypatch.setattr(supervise_module, "_LAST_S", 0.2)
    monkeypatch.setattr(supervise_module, "_ROOM_S", 2.0)


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "results" / "jobs" / "large-1"
    folder.mkdir(parents=True)
    return folder


class StandInSlurm:
    """Answers of scontrol and sbatch about a job that excludes ``before``; every call is kept."""

    def __init__(self, before):
        self.before, self.calls = before, []

    def __call__(self, command, *folder):
        self.calls.append(list(command))
        if command[:3] == ["scontrol", "show", "hostnames"]:
            return "\n".join(command[3].split(","))
        if command[:3] == ["scontrol", "show", "job"]:
            return f"JobId=17 NodeList=n1,n2 ExcNodeList={','.join(self.before) or '(null)'} Requeue=1"
        return "18\n"


@pytest.mark.parametrize(
    ("before", "submitted_without"),
    [((), "--exclude=n2"), (("n3",), "--exclude=n2,n3"), (("n2",), None)],
)
def test_a_node_that_failed_twice_without_a_record_is_excluded_at_the_next_failure(
    place, monkeypatch, before, submitted_without
):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1,n2")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    slurm = StandInSlurm(before)
    for name in ("call", "send"):
        monkeypatch.setattr(slurm_module, name, slurm)
    monkeypatch.setattr(slurm_module, "_GONE_S", 0.0)
    for number in (1, 2):  # Slurm requeued the job by itself, so neither attempt has an end
        write_record(place, f"attempt-{number}.json", nodes=["n1", "n2"], progress=[0, 0], native="17")
        write_record(place, f"attempt-{number}-began-n2.json")
        write_record(place, f"attempt-{number}-ended-n1.json", exit=1)
    Supervisor(place, 5, SlurmHost()).supervise(FAILING)
    submissions = [command for command in slurm.calls if command[0] == "sbatch"]
    requeues = [command for command in slurm.calls if command[1] == "requeue"]
    if submitted_without is None:
        assert not submissions and requeues
    else:
        assert len(submissions) == 1 and submitted_without in submissions[0] and not requeues


def test_a_requeue_that_slurm_does_not_execute_leaves_the_job_at_work(place, monkeypatch, capsys):
    slurm = StandInSlurm(())
    monkeypatch.setattr(slurm_module, "call", slurm)
    monkeypatch.setattr(slurm_module, "_GONE_S", 0.0)
    assert not SlurmHost().restart(place, "17", ())
    assert slurm.calls == [["scontrol", "requeue", "17"]]
    assert "did not end it within 0 s" in capsys.readouterr().out


def test_the_work_stops_when_its_supervisor_is_killed(place):
    """Otherwise it trains on as a job that is lost and cannot be cancelled."""
    pid = place / "pid"
    work = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    module = "armillary.launch.clusters.supervise"
    command = [sys.executable, "-m", module, "local", "0", str(place), "--", sys.executable, "-c", work]
    supervisor = subprocess.Popen(command)
    try:
        wait_for(lambda: pid.exists() and pid.read_text(), "it does not start", 60)
    finally:
        supervisor.kill()
        supervisor.wait()
    stat = Path(f"/proc/{pid.read_text()}/stat")
    wait_for(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z", "it goes on", 5)


class FullDisk:
    """Refuses records: those whose name contains one of ``names``."""

    def __init__(self, *names):
        self.names = names

    def __call__(self, place, name, **fields):
        if any(part in name for part in self.names):
            raise OSError(errno.ENOSPC, "No space left on device", str(place / name))
        write_record(place, name, **fields)


@pytest.mark.parametrize("names", [("attempt-1.json",), ("attempt-1-end",), ("attempt",)])
def test_a_full_disk_does_not_end_a_job(place, monkeypatch, capsys, names):
    monkeypatch.setattr(supervise_module, "write_record", FullDisk(*names))
    assert Supervisor(place, 2, Host()).supervise([sys.executable, "-c", ""]) == 0
    end = read_record(place, END)
    assert end["state"] == "done" and end["exit"] == 0
    assert "No space left on device" in capsys.readouterr().out


def test_the_end_of_a_job_is_recorded_as_soon_as_the_disk_has_room(place, monkeypatch):
    left = [3]

    def write(place, name, **fields):
        left[0] -= name == END
        if name == END and left[0]:
            raise OSError(errno.ENOSPC, "No space left on device", str(place / name))
        write_record(place, name, **fields)

    monkeypatch.setattr(supervise_module, "write_record", write)
    assert Supervisor(place, 2, Host()).supervise([sys.executable, "-c", ""]) == 0
    assert read_record(place, END)["state"] == "done"


def test_restarts_are_counted_on_a_full_disk_too(place, monkeypatch, tmp_path):
    monkeypatch.setattr(supervise_module, "write_record", FullDisk("json"))
    count = tmp_path / "count"
    program = f"open({str(count)!r}, 'a').write('x'); raise SystemExit(1)"
    assert Supervisor(place, 2, Host()).supervise([sys.executable, "-c", program]) == FINAL
    assert count.read_text() == "xxx"


def test_nodes_that_still_shut_down_are_not_lost(place, monkeypatch):
    """On Kubernetes the supervisor waits for the first pod alone; the others record their ends a little later."""
    monkeypatch.setattr(supervise_module, "_LAST_S", 20.0)
    monkeypatch.setenv("ARMILLARY_NODE", "n1")
    program = """
import os, subprocess, sys, time
from pathlib import Path
from armillary.launch.clusters.attempts import write_record
place = Path(sys.argv[1])
write_record(place, "attempt-1-began-n1.json")
write_record(place, "attempt-1-began-n2.json")
if os.fork() == 0:
    time.sleep(0.5)
    write_record(place, "attempt-1-ended-n2.json", exit=1)
    os._exit(0)
write_record(place, "attempt-1-ended-n1.json", exit=1)
sys.exit(1)
"""
    ended = Supervisor(place, 0, Host()).supervise([sys.executable, "-c", program, str(place)])
    assert ended == FINAL and read_record(place, "attempt-1-began-n2.json") is not None
    (attempt,) = read_attempts(place)
    assert attempt.blamed == ("n1",)  # it failed first

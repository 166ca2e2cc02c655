"""Jobs on a real Slurm with two nodes on this machine, from submission to result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from real_slurm import RealSlurm, missing, wait_for

from armillary.goodput import read_events
from armillary.launch import find_job, list_jobs

LONG_S = 240


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    cluster = RealSlurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def on_slurm(slurm, monkeypatch):
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    return slurm


def state(name):
    (found,), problems = list_jobs([find_job(name)])
    assert problems == []
    return found


def wait_state(name, *wanted):
    wait_for(lambda: state(name).state in wanted, f"{name} is never {wanted}: {state(name)}", LONG_S)
    return state(name)


def trainer(folder):
    """Return the process that trains in a folder on one node."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if (
            {"train", "run"} & set(words)
            and str(folder) in words
            and "armillary.launch.clusters.supervise" not in words
        ):
            return int(file.parent.name)
    return None


def kill_in_study(results):
    """Kill the process of a recipe once several of its runs are done."""
    wait_for(lambda: len(list(results.glob("store/runs/*/result.json"))) >= 4, "no runs", LONG_S)
    os.kill(trainer(results), signal.SIGKILL)


@pytest.mark.slow
def test_killed_restarted_and_done(on_slurm, run_file, armillary, outcome, capsys):
    """After a kill the job has the result of a run that nothing happened to, bit for bit."""
    path = run_file(steps=1500, every_steps=100)
    results = path.parent / "large"
    sent = json.loads(armillary("submit", path, "--on", "slurm", "--json").stdout)
    name = sent["job"]
    again = armillary("submit", path, "--on", "slurm", check=False)
    assert again.returncode == 2 and name in again.stderr
    log = subprocess.Popen(
        [sys.executable, "-m", "armillary", "logs", name, "--follow"], stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: any(results.glob("checkpoints/step-*")), "no checkpoint", LONG_S)
    assert state(name).state == "running"
    os.kill(trainer(results), signal.SIGKILL)
    wait_for(lambda: state(name).attempts == 2, "it is not restarted", LONG_S)
    done = wait_state(name, "done", "failed")
    assert done.state == "done" and done.exit == 0 and done.attempts == 2
    said, _ = log.communicate(timeout=30)
    assert log.returncode == 0
    for part in ("attempt 1 failed, exit code 137; node node", "attempt 2 begins on node", "done: the work"):
        assert part in said
    assert (results / "result.json").exists() and not list(path.parent.glob("pwned"))
    alone = path.parent / "undisturbed"
    armillary("train", path, "--out", alone)
    assert outcome(results) == outcome(alone)
    with capsys.disabled():
        print(f"{said}weights {outcome(results)['weights']}, undisturbed {outcome(alone)['weights']}")


@pytest.mark.slow
def test_a_recipe_is_killed_requeued_and_done(on_slurm, recipe_file, armillary, whole_study, capsys):
    results = recipe_file.parent / "tiny"
    name = json.loads(armillary("submit", recipe_file, "--on", "slurm", "--json").stdout)["job"]
    kill_in_study(results)
    done = wait_state(name, "done", "failed")
    log = (find_job(name).task.place / "log.txt").read_text()
    assert done.state == "done" and done.attempts == 2, log
    with capsys.disabled():
        print(whole_study(results), log)


@pytest.mark.slow
def test_requeued_cancelled_and_resumed(on_slurm, run_file, armillary):
    """`scontrol requeue` and the signal before the time limit cost no steps, and neither does a cancellation."""
    path = run_file(steps=900, every_steps=900)
    results = path.parent / "large"
    name = json.loads(armillary("submit", path, "--on", "slurm", "--json").stdout)["job"]
    wait_for(lambda: any(results.glob("metrics/live.parquet")), "it does not train", LONG_S)
    on_slurm.call("scancel", "--signal=USR1", "--batch", state(name).native)  # as before the time limit
    wait_for(lambda: state(name).state == "pending", "it is not requeued", LONG_S)
    (first,) = (int(folder.name.removeprefix("step-")) for folder in results.glob("checkpoints/step-*"))
    assert 0 < first < 900
    wait_for(lambda: state(name).attempts == 2, "it does not start again", LONG_S)
    wait_for(lambda: f"{first}" in (find_job(name).task.place / "log.txt").read_text(), "it does not resume", LONG_S)
    on_slurm.call("scontrol", "requeue", state(name).native)  # by an administrator
    wait_for(lambda: state(name).attempts == 3, "it does not start a third time", LONG_S)
    wait_for(lambda: state(name).state == "running", "it does not run", LONG_S)
    ended = json.loads(armillary("cancel", name, "--json").stdout)
    assert ended["state"] == "stopping"
    assert wait_state(name, "cancelled").attempts == 3
    assert armillary("cancel", name, check=False).returncode == 2
    listed = json.loads(armillary("jobs", "--json").stdout)
    assert [job["state"] for job in listed] == ["cancelled"]
    # a pending job is cancelled at once
    blocker = [
        on_slurm.call("sbatch", "--parsable", "--nodes=2", "--exclusive", "--wrap=sleep 300", "--output=/dev/null")
    ]
    wait_for(lambda: on_slurm.call("squeue", "-h", "-j", blocker[0], "-o", "%T") == "RUNNING", on_slurm.why(), LONG_S)
    waiting = json.loads(armillary("submit", path, "--on", "slurm", "--json").stdout)["job"]
    armillary("cancel", waiting)
    assert wait_state(waiting, "cancelled").attempts == 0
    on_slurm.call("scancel", *blocker)
    # the same command resumes the run; without submitted.json the job is found by its name
    last = json.loads(armillary("submit", path, "--on", "slurm", "--json").stdout)["job"]
    (Path(os.environ["XDG_STATE_HOME"]) / "armillary" / "jobs" / last / "submitted.json").unlink()
    assert wait_state(last, "done").native
    assert (results / "result.json").exists()


@pytest.mark.slow
def test_a_lost_node_leaves_the_others_at_work(on_slurm, run_file, armillary, tmp_path):
    """With min_nodes the remaining ranks continue with fewer replicas; the job is not requeued."""
    path = run_file(steps=400, every_steps=50)
    results = path.parent / "large"
    (path.parent / "clusters").mkdir()
    (path.parent / "clusters" / "slurm.yaml").write_text("min_nodes: 1\n")
    name = json.loads(armillary("submit", path, "--on", "slurm", "--nodes", 2, "--json").stdout)["job"]
    wait_for(lambda: any(results.glob("checkpoints/step-*")), "no checkpoint", LONG_S)
    assert state(name).nodes == "node[0-1]"
    on_slurm.kill_node("node1")
    try:
        done = wait_state(name, "done", "failed", "lost")
        print((find_job(name).task.place / "log.txt").read_text())
        assert done.state == "done" and done.attempts == 1
        begun = [e for e in read_events(results / "events.jsonl") if e.kind in ("start", "resume")]
        assert [event.data["ranks"] for event in begun] == [2, 1] and begun[1].step > 0
    finally:
        on_slurm.start_node("node1")


@pytest.mark.slow
def test_a_node_that_fails_twice_is_excluded(on_slurm, run_file, armillary):
    path = run_file(steps=100_000, every_steps=20)
    results = path.parent / "large"
    name = json.loads(armillary("submit", path, "--on", "slurm", "--json").stdout)["job"]
    for attempt in (1, 2):
        wait_for(lambda n=attempt: state(name).attempts == n, f"attempt {attempt} does not begin", LONG_S)
        wait_for(lambda: trainer(results) is not None, "it does not train", LONG_S)
        os.kill(trainer(results), signal.SIGKILL)
    # Slurm fills the first node first, so both failures were on it
    wait_for(lambda: state(name).attempts == 3, "it is not submitted again", LONG_S)
    assert state(name).excluded == ("node0",) and state(name).nodes == "node1"
    armillary("cancel", name)
    wait_state(name, "cancelled")
    shown = armillary("submit", path, "--on", "slurm", "--dry-run")
    assert "#SBATCH --exclude=node0" in shown.stdout

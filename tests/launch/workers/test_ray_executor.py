"""A study on a Ray cluster of several nodes that come and go: the numbers are always those of a run alone."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from armillary.goodput import read_events
from armillary.launch import Failure, Job, LocalExecutor, Probe, RayExecutor
from armillary.launch.workers.worker import device_name
from armillary.recipe import OptimizerSpec, RunResult, Schedule, UsageError, Validation
from armillary.store import Store
from armillary.study.rates import train_rates
from armillary.train import train_run

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

PATIENCE_S = 120
SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.01)


def raylet(node):
    return node.all_processes["raylet"][0].process.pid


def children(pid):
    """Processes that a raylet has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            if int(stat.read_text().rsplit(") ", 1)[1].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def kill_node(node):
    """As when the power fails: the node's own process and all that it has started, at once."""
    for pid in [raylet(node), *children(raylet(node))]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].startswith("Z")
    except FileNotFoundError:
        return True


def free(folder):
    """Whether no process trains in a run's folder."""
    with open(folder / ".lock", "w") as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without slots; nodes are added by tests. A lost node is noticed in about two seconds instead of 15."""
    before = os.environ.get("RAY_USAGE_STATS_ENABLED")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    settings = {
        "health_check_initial_delay_ms": 500,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
    }
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20, "_system_config": settings}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    if before is None:
        del os.environ["RAY_USAGE_STATS_ENABLED"]


@pytest.fixture
def add_node(cluster):
    """Add a node with one core; it is gone after the test."""
    nodes = []

    def add():
        nodes.append(cluster.add_node(**SMALL))
        return nodes[-1]

    yield add
    for node in nodes:
        with contextlib.suppress(Exception):  # the test has killed it
            cluster.remove_node(node)


@pytest.mark.slow
def test_a_node_killed_in_the_middle_costs_nothing(
    cluster, add_node, make_spec, undisturbed, outcome, tiny_corpus, tmp_path
):
    nodes = [add_node(), add_node()]
    by_id = {node.node_id: node for node in nodes}
    store = Store(tmp_path / "store")
    trunk = make_spec(steps=600, schedule=Schedule(kind="constant"), seed=80, validation=Validation(windows=4))
    branches = [
        make_spec(steps=600 + d, schedule=Schedule(decay_steps=d), seed=80, validation=Validation(windows=4))
        for d in (100, 140)
    ]
    wild = make_spec(optimizer=OptimizerSpec(lr=1e30, grad_clip=1e30))
    singles = [make_spec(seed=seed) for seed in (81, 82, 83, 84)]
    jobs = [*(Job(spec, trunk=(trunk.id, 600)) for spec in branches), Job(trunk, keep=(600,))]
    jobs += [Job(spec) for spec in (wild, *singles)]
    killed = []

    with RayExecutor(store, tiny_corpus.path, "ray", checkpoint_every_s=0.05) as executor:

        def kill():
            folder = store.run_folder(trunk.id) / "checkpoints"

            def victim():
                return next(
                    (w for w in list(executor._workers) if w.stacks and w.stacks[0][0].spec.id == trunk.id), None
                )

            wait_for(lambda: victim() and any(folder.glob("step-*")))
            killed.append(victim().node)
            kill_node(by_id[killed[0]])

        thread = threading.Thread(target=kill)
        thread.start()
        told = []
        results = executor.run("lost", jobs, lambda stage, done, total, note: told.append((done, total)))
        thread.join()
        assert executor.n_workers == 1 and {w.node for w in executor._workers} == set(by_id) - set(killed)
    assert isinstance(results[wild.id], Failure) and results[wild.id].status == "diverged"
    good = [trunk, *branches, *singles]
    assert all(isinstance(results[spec.id], RunResult) for spec in good)
    assert told[-1][0] == told[-1][1]

    alone = Store(tmp_path / "alone")
    with LocalExecutor(alone, tiny_corpus.path, 1) as executor:
        executor.run("same", jobs)
    assert all(outcome(store.run_folder(s.id)) == outcome(alone.run_folder(s.id)) for s in good)
    events = list(read_events(store.run_folder(trunk.id) / "events.jsonl"))
    assert [e.step > 0 for e in events if e.kind == "resume"] == [True]  # from a checkpoint, on another node
    assert {row["run"]: row["attempts"] for row in store.overview()}[trunk.id] == 2
    assert not list(store.folder.glob(".proof-*"))


@pytest.mark.slow
def test_what_a_node_does_not_see_is_told_before_anything_trains(
    cluster, add_node, make_spec, tiny_corpus, tmp_path, monkeypatch
):
    add_node()
    store, job = Store(tmp_path / "store"), Job(make_spec())
    with (
        RayExecutor(store, tmp_path / "elsewhere", "ray") as executor,
        pytest.raises(UsageError, match=r"node [\d.]+: .*elsewhere.*manifest.json"),
    ):
        executor.run("paths", [job])
    monkeypatch.setattr("fcntl.flock", lambda file, how: None)  # here only: as on a disk whose locks are not shared
    with (
        RayExecutor(store, tiny_corpus.path, "ray") as executor,
        pytest.raises(UsageError, match=r"node [\d.]+: .*does not see a lock held by another"),
    ):
        executor.run("locks", [job])
    assert not list(store.folder.glob("runs/*")) and not list(store.folder.glob(".proof-*"))


@pytest.mark.parametrize("on", ["", "local", "ray://", "ray://host", "ray://host:port", "http://host:1"])
def test_a_place_that_is_none_is_told_at_once(on, tiny_corpus, tmp_path):
    with pytest.raises(UsageError, match=r"--on .*give ray"):
        RayExecutor(Store(tmp_path), tiny_corpus.path, on)


@pytest.mark.parametrize(
    "given",
    [
        "postgresql+psycopg://me:s3%20cret@db/x",
        "postgresql+psycopg://me:s3+cret@db/x?application_name=a",
        "postgresql+psycopg://me@db/x?password=s3%20cret",
        "postgresql+psycopg://me@db/x?sslpassword=s3+cret",
    ],
)
def test_a_password_on_the_command_line_is_kept_from_the_cluster(given, tiny_corpus, tmp_path, monkeypatch):
    store = Store(tmp_path)
    monkeypatch.setattr(store.engine, "url", sa.make_url(given))
    monkeypatch.setattr(sys, "orig_argv", ["armillary", "run", "recipe.yaml", f"--database={given}"])
    with RayExecutor(store, tiny_corpus.path, "ray") as executor, pytest.raises(UsageError) as caught:
        executor.measure([])
    assert "ARMILLARY_DATABASE" in str(caught.value) and "cret" not in str(caught.value)


@pytest.mark.slow
def test_slots_come_and_go_with_nodes(
    cluster, add_node, make_spec, undisturbed, outcome, tiny_corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr("armillary.launch.workers.ray.device_name", lambda: "what the driver has")
    specs = [make_spec(steps=800, seed=seed, validation=Validation(windows=4)) for seed in (90, 91, 92)]
    store, nodes = Store(tmp_path / "store"), [add_node()]

    def progress(stage, done, total, note):
        if done > 0 and len(nodes) == 1 and not gone(raylet(nodes[0])):
            kill_node(nodes[0])  # the only one
        elif "waiting for a free CPU" in note and len(nodes) == 1:
            nodes.extend([add_node(), add_node()])

    with RayExecutor(store, tiny_corpus.path, "ray", checkpoint_every_s=0.05) as executor:
        (rate,) = train_rates(executor, [Probe(specs[0].model, 16, 4, "fp32")])
        assert rate > 0 and executor.n_workers == 1
        assert {(row["device"], row["workers"]) for row in store.rates_overview()} == {(device_name(), 1)}
        executor.run("change", [Job(spec) for spec in specs], progress)
        assert len(nodes) == 3 and executor.n_workers == 2
    assert all(outcome(store.run_folder(spec.id)) == undisturbed(spec) for spec in specs)


@pytest.mark.slow
def test_a_run_that_kills_every_worker_is_given_up(cluster, add_node, make_spec, tiny_corpus, tmp_path):
    add_node()
    deadly, other = make_spec(steps=2000, seed=95, validation=Validation(windows=4)), make_spec(seed=96)
    store = Store(tmp_path / "store")
    with RayExecutor(store, tiny_corpus.path, "ray") as executor:

        def kill(stage, done, total, note):
            for worker in executor._workers:
                if worker.steps.get(deadly.id, 0) > 0:
                    with contextlib.suppress(ray.exceptions.RayError):
                        ray.kill(worker.actor)
                    worker.steps[deadly.id] = 0

        results = executor.run("deadly", [Job(deadly), Job(other)], kill)
    assert "in each of 3 attempts" in results[deadly.id].error and isinstance(results[other.id], RunResult)


_PROGRAM = """
import sys
from pathlib import Path
from armillary.cli import guarded
from armillary.recipe import RunSpec
from armillary.store import Store
from armillary.launch import Job, RayExecutor

def study():
    store, corpus, *specs = map(Path, sys.argv[1:])
    jobs = [Job(RunSpec.model_validate_json(path.read_bytes())) for path in specs]
    with RayExecutor(Store(store), corpus, "ray", checkpoint_every_s=0.05) as executor:
        executor.run("study", jobs)

sys.exit(guarded(study))
"""


_ALONE = """
import os, subprocess, sys, time
from pathlib import Path

def others():
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            running = folder.joinpath("stat").read_text().rsplit(") ", 1)[1][0] != "Z"
            if running and int(folder.name) != os.getpid():
                found[int(folder.name)] = folder.joinpath("environ").read_text()
        except OSError:
            pass
    return found

program = subprocess.Popen(sys.argv[2:])
begun = {}
while program.poll() is None:
    begun.update(others())
    if sys.argv[1] == "kill" and any(Path(sys.argv[5]).glob("runs/*/checkpoints/step-*")):
        program.kill()
    time.sleep(0.1)
del begun[program.pid]
end = time.monotonic() + 180  # Ray's agents ask a dead cluster for a minute before they end
while others() and time.monotonic() < end:
    time.sleep(0.5)
closed = [all_set for all_set in begun.values() if "RAY_AUTH_MODE=token" in all_set and "RAY_AUTH_TOKEN=" in all_set]
told = sum("s3cret" in all_set for all_set in closed)
print(program.returncode, len(closed), told, len(others()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wait", "kill"])
def test_a_ray_of_our_own_lives_as_long_as_its_program(make_spec, undisturbed, outcome, tiny_corpus, tmp_path, how):
    """In a new process namespace, where no other Ray is visible and every started process can be counted."""
    alone = ["unshare", "--pid", "--kill-child", "--mount-proc"] + ["--map-root-user"] * (os.geteuid() != 0)
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no process namespaces (unshare --pid)")
    store = Store(tmp_path / "store")
    specs = [make_spec(steps=400, seed=seed, validation=Validation(windows=4)) for seed in (101, 102)]
    paths = [tmp_path / f"{spec.id}.json" for spec in specs]
    for path, spec in zip(paths, specs, strict=True):
        path.write_text(json.dumps(spec.model_dump(mode="json")))
    program = [sys.executable, "-c", _PROGRAM, str(store.folder), str(tiny_corpus.path), *map(str, paths)]
    settings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [*alone, sys.executable, "-c", _ALONE, how, *program],
        env={**settings, "ARMILLARY_DATABASE": "postgresql://me:s3cret@db/x"},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=True,
    )
    code, closed, told, left = map(int, done.stdout.split())
    assert closed > 2 and (told, left) == (0, 0), done.stderr
    if how == "kill":
        assert code == -signal.SIGKILL, done.stderr
        return
    assert code == 0, done.stderr
    assert all(outcome(store.run_folder(spec.id)) == undisturbed(spec) for spec in specs)
    assert not list(store.folder.glob(".proof-*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_leave_when_their_program_is_stopped(
    cluster, add_node, make_spec, undisturbed, outcome, tiny_corpus, tmp_path, number
):
    node = add_node()
    store = Store(tmp_path / "store")
    specs = [make_spec(steps=2000, seed=seed, validation=Validation(windows=4)) for seed in (97, 98)]
    paths = [tmp_path / f"{spec.id}.json" for spec in specs]
    for path, spec in zip(paths, specs, strict=True):
        path.write_text(json.dumps(spec.model_dump(mode="json")))
    command = [sys.executable, "-c", _PROGRAM, str(store.folder), str(tiny_corpus.path), *map(str, paths)]
    program = subprocess.Popen(
        command,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: any(store.folder.glob("runs/*/checkpoints/step-*")))
    workers = [pid for pid in children(raylet(node)) if "_Slot" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert workers
    os.killpg(program.pid, number)
    err = program.communicate(timeout=PATIENCE_S)[1]
    wait_for(lambda: all(map(gone, workers)))
    begun = next(path for path in store.folder.glob("runs/*") if any(path.glob("checkpoints/step-*")))
    if number == signal.SIGINT:
        assert program.returncode == 1 and "stopped with 2 of 2 runs to go" in err and "Traceback" not in err
        assert [event.kind for event in read_events(begun / "events.jsonl")][-2:] == ["checkpoint", "stop"]
        assert not list(store.folder.glob(".proof-*"))
    spec = store.run_spec(begun.name)
    wait_for(lambda: free(begun))  # a process's threads may outlive what it looks like from outside
    train_run(spec, tiny_corpus, begun)
    assert outcome(begun) == undisturbed(spec)
    assert [event.step > 0 for event in read_events(begun / "events.jsonl") if event.kind == "resume"] == [True]

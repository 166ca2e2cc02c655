"""A study on a Ray cluster of several nodes that come and go: the numbers are always those of a run alone."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from armillary.goodput import read_events
from armillary.recipe import OptimizerSpec, Schedule, Validation
from armillary.study import Failure, Job, LocalExecutor, RayExecutor, Store
from armillary.train import RunResult

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
        assert executor.run("again", jobs[3:]) == {run: results[run] for run in [s.id for s in (*singles,)]} | (
            {wild.id: results[wild.id]}
        )
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
    assert not list(store.folder.glob(".ray-*"))

"""Many runs on worker processes that die, diverge and are stopped."""

import os
import signal
import threading
import time

import pytest

from armillary.recipe import OptimizerSpec
from armillary.study import Failure, Job, LocalExecutor, Store


@pytest.fixture
def fleet(tiny_corpus, tmp_path):
    with LocalExecutor(Store(tmp_path / "store"), tiny_corpus.path, 2) as executor:
        yield executor


def test_runs_are_those_trained_alone_and_never_run_twice(fleet, make_spec, undisturbed, outcome):
    specs = [make_spec(seed=seed) for seed in range(4)]
    results = fleet.run("a", [Job(spec) for spec in specs])
    assert all(outcome(fleet.store.run_folder(spec.id)) == undisturbed(spec) for spec in specs)
    assert fleet.run("b", [Job(spec) for spec in specs]) == results
    assert {row["attempts"] for row in fleet.store.overview()} == {1}


def test_a_killed_worker_costs_nothing_and_a_diverging_run_only_itself(fleet, make_spec, undisturbed, outcome):
    long = make_spec(steps=400)
    wild = make_spec(optimizer=OptimizerSpec(lr=1e30, grad_clip=1e30))
    specs = [long, make_spec(seed=3)]
    folder = fleet.store.run_folder(long.id)

    def kill():
        end = time.monotonic() + 60
        while not (folder / "events.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.005)
        for worker in fleet._workers:
            if worker.job is not None and worker.job.spec.id == long.id:
                os.kill(worker.process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    results = fleet.run("a", [Job(long), Job(wild), Job(specs[1])])
    killer.join()
    failure = results[wild.id]
    assert isinstance(failure, Failure) and failure.status == "diverged" and "lower the learning rate" in failure.error
    assert all(outcome(fleet.store.run_folder(spec.id)) == undisturbed(spec) for spec in specs)
    attempts = {row["run"]: row["attempts"] for row in fleet.store.overview()}
    assert attempts[long.id] == 2

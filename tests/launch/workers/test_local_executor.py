"""Many runs on workers that die, diverge, meet and are stopped: the numbers are always those of a run alone."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from armillary.goodput import read_events
from armillary.launch import Failure, Job, LocalExecutor, Probe
from armillary.launch.workers import pool
from armillary.recipe import ArmillaryError, OptimizerSpec, RunResult, Schedule, Validation
from armillary.store import Store
from armillary.train import train_run

PATIENCE_S = 120


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def fleet(tiny_corpus, tmp_path_factory):
    """Two workers for all tests here, since starting them takes longest; every test uses different runs."""
    with LocalExecutor(Store(tmp_path_factory.mktemp("store")), tiny_corpus.path, 2) as executor:
        yield executor


@contextmanager
def killing(fleet, run, times, when=lambda: True):
    """Kill whichever worker has the run, as often as given."""
    killed = []

    def watch():
        def victims():
            return [
                worker.process.pid
                for worker in list(fleet._workers)
                if worker.stacks and worker.stacks[0][0].spec.id == run and worker.process.pid not in killed
            ]

        for _ in range(times):
            wait_for(lambda: victims() and when())
            killed.append(victims()[0])
            os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()
    assert len(killed) == times


def rows(fleet, specs):
    wanted = {spec.id for spec in specs}
    return {row["run"]: row for row in fleet.store.overview() if row["run"] in wanted}


def test_runs_are_those_trained_alone_and_never_run_twice(fleet, make_spec, undisturbed, outcome):
    specs = [make_spec(seed=seed) for seed in range(4)]
    told = []
    results = fleet.run("a", [Job(spec) for spec in specs], lambda *progress: told.append(progress))
    assert list(results) != [] and all(results[spec.id].run == spec.id for spec in specs)
    assert all(outcome(fleet.store.run_folder(spec.id)) == undisturbed(spec) for spec in specs)
    stages, done, totals, notes = zip(*told, strict=True)
    assert set(stages) == {"a"} and list(done) == sorted(done) and done[0] >= 0 and done[-1] == totals[-1]
    assert notes[-1] == "4/4 runs"
    assert fleet.run("b", [Job(spec) for spec in specs]) == results
    assert {row["attempts"] for row in rows(fleet, specs).values()} == {1}
    assert sorted(fleet.store.study_runs("b")) == sorted(spec.id for spec in specs)


def test_branches_start_at_their_trunks_checkpoints(fleet, make_spec, undisturbed, outcome):
    trunk = make_spec(steps=9, schedule=Schedule(kind="constant"), seed=20)
    early, late = (make_spec(steps=12, schedule=Schedule(decay_steps=d), seed=20) for d in (6, 3))
    orphan = make_spec(schedule=Schedule(decay_steps=5), seed=21)  # its trunk is not among the jobs
    jobs = [
        Job(early, trunk=(trunk.id, 6)),
        Job(late, trunk=(trunk.id, 9)),
        Job(orphan, trunk=("0123456789abcdef", 7)),
        Job(trunk, keep=(6, 9)),
    ]
    results = fleet.run("trunk", jobs)
    assert all(isinstance(result, RunResult) for result in results.values())
    first = {s.id: next(read_events(fleet.store.run_folder(s.id) / "events.jsonl")) for s in (early, late, orphan)}
    assert {run: event.step for run, event in first.items()} == {early.id: 6, late.id: 9, orphan.id: 0}
    assert all(outcome(fleet.store.run_folder(s.id)) == undisturbed(s) for s in (trunk, early, late, orphan))


def test_a_killed_worker_costs_nothing_and_a_diverging_run_only_itself(fleet, make_spec, undisturbed, outcome):
    long, short = make_spec(steps=150, seed=30, validation=Validation(windows=4)), make_spec(seed=31)
    wild = make_spec(optimizer=OptimizerSpec(lr=1e30, grad_clip=1e30))
    folder = fleet.store.run_folder(long.id)
    with killing(fleet, long.id, 1, when=(folder / "events.jsonl").exists):
        results = fleet.run("deaths", [Job(long), Job(wild), Job(short)])
    failure = results[wild.id]
    assert isinstance(failure, Failure) and failure.status == "diverged" and "lower the learning rate" in failure.error
    assert all(outcome(fleet.store.run_folder(spec.id)) == undisturbed(spec) for spec in (long, short))
    found = rows(fleet, [long, wild, short])
    assert {run: row["attempts"] for run, row in found.items()} == {long.id: 2, wild.id: 1, short.id: 1}
    assert (found[wild.id]["status"], found[long.id]["status"]) == ("diverged", "done")
    assert found[long.id]["error"] is None


@pytest.mark.slow
def test_a_run_that_waits_at_a_killed_worker_is_carried_out_elsewhere(
    fleet, make_spec, undisturbed, outcome, monkeypatch
):
    monkeypatch.setattr(pool, "_AHEAD_S", 1e9)  # as if every run were about to end: the next one is sent at once
    specs = [make_spec(steps=steps, seed=45, validation=Validation(windows=4)) for steps in (600, 590, 60, 50)]
    killed, trained_by = [], {}

    def kill(stage, done, total, note):
        for worker in fleet._workers:
            if worker.stacks:
                trained_by.setdefault(worker.stacks[0][0].spec.id, []).append(worker.process.pid)
            if len(worker.stacks) == 2 and not killed:
                ahead, waiting = (jobs[0].spec for jobs in worker.stacks)
                if worker.steps[ahead.id] < ahead.steps / 2:  # else it may have gone on to the next already
                    killed.extend([worker.process.pid, ahead.id, waiting.id])
                    os.kill(worker.process.pid, signal.SIGKILL)

    results = fleet.run("waiting", [Job(spec) for spec in specs], kill)
    pid, ahead, waiting = killed
    assert all(isinstance(results[spec.id], RunResult) for spec in specs)
    assert all(outcome(fleet.store.run_folder(spec.id)) == undisturbed(spec) for spec in specs)
    assert pid in trained_by[ahead] and trained_by[waiting] and pid not in trained_by[waiting]
    attempts = {row["run"]: row["attempts"] for row in rows(fleet, specs).values()}
    assert attempts == {spec.id: 2 if spec.id in (ahead, waiting) else 1 for spec in specs}
    kinds = [event.kind for event in read_events(fleet.store.run_folder(waiting) / "events.jsonl")]
    assert kinds.count("start") == 1 and "resume" not in kinds


@pytest.mark.slow
def test_a_run_that_kills_every_worker_is_given_up_and_can_be_asked_for_again(fleet, make_spec, undisturbed, outcome):
    deadly, other = make_spec(steps=500, seed=40, validation=Validation(windows=4)), make_spec(seed=41)
    with killing(fleet, deadly.id, 3):
        results = fleet.run("deadly", [Job(deadly), Job(other)])
    failure = results[deadly.id]
    assert failure.passing and f"run {deadly.id}: its worker died (signal 9) in each of 3 attempts" in failure.error
    assert outcome(fleet.store.run_folder(other.id)) == undisturbed(other)
    assert rows(fleet, [deadly])[deadly.id]["status"] == "failed"
    with killing(fleet, deadly.id, 1):  # three deaths of an earlier call do not count
        results = fleet.run("deadly", [Job(deadly), Job(other)])
    assert isinstance(results[deadly.id], RunResult)
    assert outcome(fleet.store.run_folder(deadly.id)) == undisturbed(deadly)


def test_a_run_that_another_process_trains_is_waited_for(fleet, make_spec, undisturbed, outcome):
    spec = make_spec(seed=50)
    folder = fleet.store.run_folder(spec.id)
    folder.mkdir()
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        release = threading.Timer(1.0, lambda: fcntl.flock(lock, fcntl.LOCK_UN))
        release.start()
        results = fleet.run("busy", [Job(spec)])
        release.join()
    assert isinstance(results[spec.id], RunResult) and outcome(folder) == undisturbed(spec)


def test_a_run_that_cannot_be_trained_fails_alone(fleet, make_spec):
    wrong, right = make_spec(corpus="0123456789abcdef"), make_spec(seed=60)
    results = fleet.run("wrong", [Job(wrong), Job(right)])
    assert results[wrong.id].status == "refused" and "belongs to corpus 0123456789abcdef" in results[wrong.id].error
    assert isinstance(results[right.id], RunResult)


def test_throughput_is_measured_in_every_worker(fleet, make_spec):
    spec = make_spec()
    small = Probe(spec.model, 16, 4, "fp32", seconds=0.1)
    (rate,) = fleet.measure([small])
    assert rate > 0
    with pytest.raises(ArmillaryError, match="throughput could not be measured"):
        fleet.measure([Probe(spec.model, 16, 4, "fp64", seconds=0.1)])
    (again,) = fleet.measure([small])  # the answers of the one that failed are not taken for its own
    assert again > 0


@pytest.fixture
def study(make_spec, tiny_corpus, tmp_path):
    """Start a study of three long runs in a new process group, and wait for a first checkpoint."""
    specs = [make_spec(steps=800, seed=seed, validation=Validation(windows=4)) for seed in (70, 71, 72)]
    paths = [tmp_path / f"{spec.id}.json" for spec in specs]
    for path, spec in zip(paths, specs, strict=True):
        path.write_text(json.dumps(spec.model_dump(mode="json")))
    store = Store(tmp_path / "store")
    command = [sys.executable, str(Path(__file__).with_name("fleet_script.py")), str(store.folder)]
    command += [str(tiny_corpus.path), *map(str, paths)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    wait_for(lambda: any(store.folder.glob("runs/*/checkpoints/step-*")))
    yield process, workers, store
    process.kill()
    process.communicate()


def check_goes_on(store, corpus, outcome, undisturbed):
    """Whatever has a checkpoint ends with the numbers of a run that nothing happened to."""
    begun = [folder for folder in store.folder.glob("runs/*") if any(folder.glob("checkpoints/step-*"))]
    spec = store.run_spec(begun[0].name)
    train_run(spec, corpus, begun[0])
    assert outcome(begun[0]) == undisturbed(spec)
    resumed = [event.step for event in read_events(begun[0] / "events.jsonl") if event.kind == "resume"]
    assert len(resumed) == 1 and resumed[0] > 0


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].startswith("Z")
    except FileNotFoundError:
        return True


@pytest.mark.slow
def test_ctrl_c_leaves_checkpoints_and_says_how_to_go_on(study, tiny_corpus, undisturbed, outcome):
    process, workers, store = study
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "stopped with 3 of 3 runs to go" in err and "run the same command again to resume" in err
    assert "Traceback" not in err and out == ""
    assert all(map(gone, workers))
    assert {row["status"] for row in store.overview()} == {"pending"}
    for path in store.folder.glob("runs/*/events.jsonl"):
        assert [event.kind for event in read_events(path)][-2:] == ["checkpoint", "stop"]
    check_goes_on(store, tiny_corpus, outcome, undisturbed)


@pytest.mark.slow
def test_workers_leave_in_order_when_their_parent_is_killed(study, tiny_corpus, undisturbed, outcome):
    process, workers, store = study
    process.kill()
    wait_for(lambda: all(map(gone, workers)))
    assert "Traceback" not in process.communicate()[1]
    check_goes_on(store, tiny_corpus, outcome, undisturbed)

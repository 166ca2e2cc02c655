"""Runs that a worker trains as one program: the numbers are always those of a run alone."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from armillary.goodput import read_events
from armillary.launch import Failure, InterruptedStudyError, Job, LocalExecutor
from armillary.launch.workers import pool
from armillary.recipe import ArmillaryError, OptimizerSpec, RunResult, Schedule, Validation
from armillary.store import Store
from armillary.train import stack_key

PATIENCE_S = 120


@pytest.fixture(scope="module")
def fleet(tiny_corpus, tmp_path_factory):
    """One worker for all tests here, since starting it takes longest; every test uses different runs."""
    with LocalExecutor(Store(tmp_path_factory.mktemp("store")), tiny_corpus.path, 1, 0.05) as workers:
        yield workers


@pytest.fixture
def stacks_pay(monkeypatch):
    """A machine on which every stack that is tried is found faster, however little there is to do."""
    monkeypatch.setattr(pool, "_WORTH_FLOPS", 0.0)
    monkeypatch.setattr(pool, "_BUSY_STEP_S", 1e9)
    monkeypatch.setattr(pool, "_GAIN", 0.0)
    monkeypatch.setattr(pool, "_STACK_PROBE_S", 0.01)
    monkeypatch.setattr(pool, "_STACKS", (2,))


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_study_in_stacks_is_the_study_run_by_run(fleet, stacks_pay, make_spec, undisturbed, outcome):
    """More runs than places, one of which diverges, of two shapes, with branches that wait for their trunk."""
    specs = [make_spec(seed=seed, steps=10 + seed) for seed in range(4)]
    wild = make_spec(optimizer=OptimizerSpec(lr=1e30, grad_clip=1e30))
    narrow = make_spec(context_length=8)
    trunk = make_spec(steps=9, schedule=Schedule(kind="constant"), seed=20)
    branches = [make_spec(schedule=Schedule(decay_steps=steps), seed=20) for steps in (6, 3)]
    jobs = [Job(spec) for spec in [*specs, wild, narrow]]
    jobs += [Job(trunk, keep=(6, 9))]
    jobs += [Job(spec, trunk=(trunk.id, 12 - spec.schedule.decay_steps)) for spec in branches]
    results = fleet.run("stacks", jobs)
    assert fleet._members[stack_key(specs[0])] == 2 and fleet._members[stack_key(narrow)] == 1
    assert isinstance(results[wild.id], Failure) and results[wild.id].status == "diverged"
    for spec in [*specs, narrow, trunk, *branches]:
        assert isinstance(results[spec.id], RunResult)
        assert outcome(fleet.store.run_folder(spec.id)) == undisturbed(spec)
    begun = [next(read_events(fleet.store.run_folder(spec.id) / "events.jsonl")).step for spec in branches]
    assert begun == [6, 9]
    together = [list(read_events(fleet.store.run_folder(spec.id) / "events.jsonl")) for spec in specs]
    spans = sorted((events[0].time_s, events[-1].time_s) for events in together)
    assert spans[1][0] < spans[0][1]  # at least two were in training at the same time on the only worker


@pytest.mark.slow
def test_a_killed_worker_costs_its_stack_nothing(fleet, stacks_pay, make_spec, undisturbed, outcome):
    specs = [make_spec(seed=seed, steps=120, validation=Validation(windows=4)) for seed in range(30, 33)]

    def kill_twice():
        for after in (10, 40):
            wait_for(
                lambda after=after: any(
                    int(path.name[5:]) > after
                    for spec in specs
                    for path in fleet.store.run_folder(spec.id).glob("checkpoints/step-*")
                )
            )
            os.kill(fleet._workers[0].process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_twice)
    thread.start()
    results = fleet.run("killed", [Job(spec) for spec in specs])
    thread.join()
    assert all(isinstance(results[spec.id], RunResult) for spec in specs)
    assert all(outcome(fleet.store.run_folder(spec.id)) == undisturbed(spec) for spec in specs)
    kinds = [e.kind for s in specs for e in read_events(fleet.store.run_folder(s.id) / "events.jsonl")]
    assert kinds.count("resume") >= 2  # those in training went on from their checkpoints


@pytest.mark.slow
def test_a_stack_that_is_stopped_goes_on(fleet, stacks_pay, make_spec, undisturbed, outcome):
    specs = [make_spec(seed=seed, steps=120, validation=Validation(windows=4)) for seed in range(40, 43)]

    def stop():
        wait_for(lambda: any(any(fleet.store.run_folder(s.id).glob("checkpoints/step-*")) for s in specs))
        fleet._stop.value = 1  # what Ctrl-C does

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(InterruptedStudyError, match="stopped with 3 of 3 runs to go"):
        fleet.run("stopped", [Job(spec) for spec in specs])
    thread.join()
    begun = [s for s in specs if (fleet.store.run_folder(s.id) / "events.jsonl").exists()]
    assert len(begun) == 2  # those that had not begun are left as they were
    for spec in begun:
        kinds = [event.kind for event in read_events(fleet.store.run_folder(spec.id) / "events.jsonl")]
        assert kinds[-2:] == ["checkpoint", "stop"]
    results = fleet.run("stopped", [Job(spec) for spec in specs])
    assert all(outcome(fleet.store.run_folder(run)) == undisturbed(fleet.store.run_spec(run)) for run in results)


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({1: 5e4, 4: 5.4e4}, 1),  # within the margin
        ({1: 5e4, 4: 9e4, 16: 9.5e4}, 4),
        ({1: 5e4, 4: 9e4, 16: 2e5, 64: ArmillaryError("no memory")}, 16),
        ({1: 1e3}, 1),  # a step of one model keeps the device busy
    ],
)
def test_a_stack_is_chosen_where_it_gains_more_than_noise(rates, chosen, fleet, make_spec, monkeypatch):
    taken = []

    def measure(probes):
        for probe in probes:
            if isinstance(rates[probe.members], Exception):
                raise rates[probe.members]
        taken.append(probes)
        values = [rates[probe.members] for probe in probes]
        if len(taken) == 2:  # a moment in which the machine is busy
            values[0] /= 3
        return values

    monkeypatch.setattr(fleet, "measure", measure)
    assert fleet._best_members(make_spec(), 200) == chosen


@pytest.mark.parametrize(
    ("jobs", "ready", "given"),
    [
        (10, 2, [(5, 5), (5, 5)]),  # one stack could hold them all, and the other worker would wait
        (1, 2, [(1, 1)]),
        (41, 2, [(21, 16), (20, 16)]),  # more than fit at once
        (10, 1, [(5, 5)]),  # the other worker is about to start
    ],
)
def test_workers_share_what_one_stack_could_hold(jobs, ready, given, tmp_path, make_spec):
    class Given(pool.Worker):
        def send(self, message):
            taken.append((len(message.jobs), message.members))

    class Two(pool.WorkerExecutor):
        n_workers, device = 2, "none"
        _start_workers = _await_workers = _receive = _close = None

    taken = []
    specs = [make_spec(seed=seed) for seed in range(jobs)]
    store = Store(tmp_path / "store")
    store.add("shared", specs)
    executor = Two(store, tmp_path, 30.0, SimpleNamespace(value=0))
    executor._workers = [Given() for _ in range(ready)]
    executor._members[stack_key(specs[0])] = 16
    executor._hand_out(pool._Queue([Job(spec) for spec in specs]))
    assert taken == given


def test_nothing_is_measured_where_little_is_to_be_done(fleet, make_spec, monkeypatch):
    monkeypatch.setattr(fleet, "measure", lambda probes: pytest.fail("measured"))
    few = [make_spec(seed=seed, context_length=12) for seed in range(50, 55)]
    fleet.run("little", [Job(spec) for spec in few])
    monkeypatch.setattr(pool, "_WORTH_FLOPS", 0.0)
    fleet.run("few", [Job(make_spec(seed=60 + seed, context_length=12)) for seed in range(3)])

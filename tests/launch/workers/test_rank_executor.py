"""Runs of a study over many ranks are recorded in the store as runs of workers are."""

import errno
import os
import signal

import pytest

from armillary.goodput import read_events
from armillary.launch import Failure, InterruptedStudyError, Job, LocalExecutor, RankExecutor, RayExecutor
from armillary.launch.workers import ranks
from armillary.recipe import Layout, OptimizerSpec, UsageError, Validation
from armillary.store import Store
from armillary.train import BusyRunError, train_run


@pytest.fixture
def workers(tiny_corpus, tmp_path):
    with LocalExecutor(Store(tmp_path / "store"), tiny_corpus.path, 1) as executor:
        yield executor


@pytest.mark.slow
def test_runs_end_as_on_one_device_and_one_that_diverges_ends_alone(workers, tiny_corpus, make_spec, tmp_path):
    good, wild = make_spec(seed=3), make_spec(optimizer=OptimizerSpec(lr=1e30, grad_clip=1e30))
    over, told = RankExecutor(workers, Layout(dp_shard=2)), []
    jobs = [Job(wild), Job(good)]
    results = over.run("target", jobs, lambda *progress: told.append(progress))
    alone = train_run(good, tiny_corpus, tmp_path / "alone")
    assert results[good.id].loss == pytest.approx(alone.loss, abs=1e-5)
    failure = results[wild.id]
    assert isinstance(failure, Failure) and failure.status == "diverged" and "lower the learning rate" in failure.error
    status = {row["run"]: (row["status"], row["attempts"]) for row in workers.store.overview()}
    assert status == {good.id: ("done", 1), wild.id: ("diverged", 1)}
    stages, done, totals, notes = zip(*told, strict=True)
    assert set(stages) == {"target"} and list(done) == sorted(done) and done[-1] == totals[-1]
    assert notes[-1] == "2/2 runs"
    events = list(read_events(workers.store.run_folder(good.id) / "events.jsonl"))
    assert over.run("again", [Job(good)], lambda *progress: None) == {good.id: results[good.id]}
    assert list(read_events(workers.store.run_folder(good.id) / "events.jsonl")) == events


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_the_same_call_goes_on(workers, tiny_corpus, make_spec, tmp_path):
    spec = make_spec(steps=600, seed=4, validation=Validation(windows=4))
    over, asked = RankExecutor(workers, Layout(dp_shard=2)), []

    def interrupt(stage, done, total, note):
        if 0 < done < total and not asked:
            asked.append(done)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedStudyError, match="run the same command"):
        over.run("target", [Job(spec)], interrupt)
    assert asked and workers.store.overview()[0]["status"] == "pending"
    results = over.run("target", [Job(spec)], interrupt)
    alone = train_run(spec, tiny_corpus, tmp_path / "alone")
    assert results[spec.id].loss == pytest.approx(alone.loss, abs=1e-4)
    events = list(read_events(workers.store.run_folder(spec.id) / "events.jsonl"))
    resumed = [event.step for event in events if event.kind == "resume"]
    assert len(resumed) == 1 and 0 < resumed[0] < spec.steps


def test_ranks_are_not_started_for_workers_elsewhere(tiny_corpus, make_spec, tmp_path):
    elsewhere = RayExecutor(Store(tmp_path / "store"), tiny_corpus.path, "ray://127.0.0.1:1", 1)
    with pytest.raises(UsageError, match=r"target\.yaml"):
        RankExecutor(elsewhere, Layout(dp_shard=2)).run("target", [Job(make_spec())], lambda *progress: None)


@pytest.mark.parametrize("ends", [True, False], ids=["which ends it", "which leaves it"])
def test_a_run_that_another_process_trains_is_waited_for(ends, tiny_corpus, make_spec, tmp_path, monkeypatch):
    spec, store = make_spec(), Store(tmp_path / "store")
    over = RankExecutor(LocalExecutor(store, tiny_corpus.path, 1), Layout(dp_shard=2))
    folder, begun = store.run_folder(spec.id), []

    def fake(large, place, reporter):
        begun.append(place)
        if len(begun) == 1:  # it was faster
            if ends:
                train_run(spec, tiny_corpus, folder)
            raise BusyRunError(f"{place}: another process is training this run")
        return train_run(spec, tiny_corpus, folder)

    monkeypatch.setattr(ranks, "launch", fake)
    monkeypatch.setattr(ranks, "_LOOK_S", 0.01)
    outcomes = over.run("target", [Job(spec)], lambda *progress: None)
    assert outcomes[spec.id] == store.result(spec.id) is not None and len(begun) == (1 if ends else 2)


def test_a_full_disk_is_a_passing_failure(tiny_corpus, make_spec, tmp_path, monkeypatch):
    spec, store = make_spec(), Store(tmp_path / "store")
    over = RankExecutor(LocalExecutor(store, tiny_corpus.path, 1), Layout(dp_shard=2))

    def fail(large, place, reporter):
        raise OSError(errno.ENOSPC, "No space left on device", str(place))

    monkeypatch.setattr(ranks, "launch", fail)
    failure = over.run("target", [Job(spec)], lambda *progress: None)[spec.id]
    assert failure.passing and "free space" in failure.error and store.overview()[0]["status"] == "failed"

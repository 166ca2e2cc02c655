"""Runs of a study over many ranks: the store hears of them what it would hear from workers."""

import os
import signal

import pytest

from armillary.goodput import read_events
from armillary.recipe import Layout, OptimizerSpec, UsageError, Validation
from armillary.study import Failure, InterruptedStudyError, Job, LocalExecutor, OverRanks, RayExecutor, Store
from armillary.train import train_run


@pytest.fixture
def workers(tiny_corpus, tmp_path):
    with LocalExecutor(Store(tmp_path / "store"), tiny_corpus.path, 1) as executor:
        yield executor


def test_runs_end_as_on_one_device_and_one_that_diverges_ends_alone(workers, tiny_corpus, make_spec, tmp_path):
    good, wild = make_spec(seed=3), make_spec(optimizer=OptimizerSpec(lr=1e30, grad_clip=1e30))
    over, told = OverRanks(workers, Layout(dp_shard=2)), []
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
    over, asked = OverRanks(workers, Layout(dp_shard=2)), []

    def interrupt(stage, done, total, note):
        if 0 < done < total and not asked:
            asked.append(done)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedStudyError, match="give the same command"):
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
        OverRanks(elsewhere, Layout(dp_shard=2)).run("target", [Job(make_spec())], lambda *progress: None)

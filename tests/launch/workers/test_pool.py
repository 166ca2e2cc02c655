"""An executor with workers that answer from a script: what failed is told apart by whether its cause can pass."""

import errno
from types import SimpleNamespace

import pytest

from armillary.launch import Failure, Job
from armillary.launch.workers.messages import Answer, Train
from armillary.launch.workers.pool import Worker, WorkerExecutor
from armillary.launch.workers.worker import WorkerOptions, work
from armillary.recipe import ArmillaryError, RunResult, UsageError
from armillary.store import Store
from armillary.train import BusyRunError, DivergedError


def result_of(spec, loss=3.0):
    return RunResult(
        run=spec.id,
        loss={"sky": loss},
        bits_per_byte={"sky": 1.0},
        train_loss=loss,
        tokens=spec.tokens,
        flops=spec.flops,
        epochs={"sky": 1.0},
        wall_s=1.0,
    )


class Scripted(Worker):
    """Answers each run at once with what ``act(spec)`` returns or raises."""

    def __init__(self, act):
        super().__init__()
        self.act, self.said, self.trained = act, [], []

    def send(self, message):
        for job in message.jobs:
            self.trained.append(job.spec.id)
            try:
                self.said.append(Answer("done", self.act(job.spec), job.spec.id))
            except Exception as error:
                failure = Failure.of(job.spec.id, error)
                self.said.append(Answer(failure.status, failure.error, job.spec.id))


class ScriptedExecutor(WorkerExecutor):
    """One scripted worker in this process."""

    n_workers, device = 1, "script"

    def __init__(self, store, act):
        super().__init__(store, store.folder, 30.0, SimpleNamespace(value=0))
        self.worker = Scripted(act)

    @property
    def trained(self):
        return self.worker.trained

    def _start_workers(self):
        self._workers = [self.worker]

    def _await_workers(self):
        self._start_workers()

    def _receive(self):
        said, self.worker.said = self.worker.said, []
        return [(self.worker, answer) for answer in said]

    def _close(self):
        self.worker.stacks.clear()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def raising(error):
    def act(spec):
        raise error

    return act


PASSING = [
    OSError(errno.ENOSPC, "No space left on device", "/runs/x/model.safetensors"),
    OSError("a disk that says nothing"),
    BusyRunError("another process is training this run"),
    ArmillaryError("metrics.parquet: damaged"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ValueError("anything"),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_what_failed_for_a_passing_cause_is_trained_again_by_the_next_call(error, store, make_spec):
    spec = make_spec()
    failure = ScriptedExecutor(store, raising(error)).run("a", [Job(spec)])[spec.id]
    assert failure.passing and failure.status == "failed" and spec.id in failure.error
    (row,) = store.overview()
    assert (row["status"], row["error"]) == ("failed", failure.error)
    again = ScriptedExecutor(Store(store.folder), result_of)
    assert again.run("a", [Job(spec)]) == {spec.id: result_of(spec)} and again.trained == [spec.id]


def test_messages_name_cause_and_remedy(make_spec):
    full, silent, memory = (Failure.of("0123", PASSING[number]).error for number in (0, 1, 4))
    assert full == (
        "run 0123: /runs/x/model.safetensors: No space left on device; free space and run the same command again"
    )
    assert silent == "run 0123: a disk that says nothing; remove the cause and run the same command again"
    assert "not enough memory" in memory and "fewer --workers" in memory


def test_a_diverged_run_is_not_trained_again_unless_reopened(store, make_spec):
    spec = make_spec()
    error = DivergedError(f"run {spec.id} diverged: at step 3 the loss is nan; lower the learning rate (1)")
    first = ScriptedExecutor(store, raising(error)).run("a", [Job(spec)])
    assert first == {spec.id: Failure(spec.id, "diverged", str(error))} and not first[spec.id].passing
    again = ScriptedExecutor(Store(store.folder), result_of)
    assert again.run("b", [Job(spec)]) == first and again.trained == []
    store.reopen(spec.id, "another version of torch")
    assert again.run("b", [Job(spec)]) == {spec.id: result_of(spec)} and again.trained == [spec.id]


def test_a_run_that_is_refused_is_lasting_and_asked_about_again(store, make_spec):
    """Refusing costs no training, and the corpus or the version may be another one by then."""
    spec = make_spec()
    failure = ScriptedExecutor(store, raising(UsageError("domain 'sky' is too short"))).run("a", [Job(spec)])[spec.id]
    assert (failure.status, failure.passing) == ("refused", False)
    assert ScriptedExecutor(store, result_of).run("a", [Job(spec)]) == {spec.id: result_of(spec)}


def test_a_run_that_has_a_result_is_not_trained_by_a_failing_one_beside_it(store, make_spec):
    good, bad = make_spec(seed=1), make_spec(seed=2)

    def act(spec):
        if spec == bad:
            raise OSError(errno.ENOSPC, "No space left on device")
        return result_of(spec)

    outcomes = ScriptedExecutor(store, act).run("a", [Job(bad), Job(good)])
    assert outcomes[good.id] == result_of(good) and outcomes[bad.id].passing
    again = ScriptedExecutor(store, result_of)
    again.run("a", [Job(bad), Job(good)])
    assert again.trained == [bad.id]


def test_a_corpus_that_cannot_be_opened_is_said_of_every_run(make_spec, tmp_path):
    """By a worker that stays alive: three dead workers for each run would say nothing of the cause."""
    jobs = (Job(make_spec(seed=1)), Job(make_spec(seed=2)))
    inbox, said = [Train(jobs)], []

    def receive():
        if not inbox:
            raise EOFError
        return inbox.pop(0)

    work(receive, said.append, lambda: False, WorkerOptions(tmp_path / "missing", tmp_path, 30.0))
    assert [answer.run for answer in said] == [job.spec.id for job in jobs]
    assert {answer.kind for answer in said} <= {"failed", "refused"}
    assert all("missing" in answer.value and answer.run in answer.value for answer in said)


def test_a_run_that_another_process_ends_meanwhile_is_not_trained_again(store, make_spec):
    first, second, wild = (make_spec(seed=seed) for seed in (1, 2, 3))

    def act(spec):
        other = Store(store.folder)  # as the other process does, which has the same runs in another order
        other.mark_running(second.id)
        other.mark_done(result_of(second, 2.5))
        other.mark_failed(wild.id, "diverged", "the loss is nan")
        return result_of(spec)

    mine = ScriptedExecutor(store, act)
    outcomes = mine.run("a", [Job(first), Job(second), Job(wild)])
    assert mine.trained == [first.id]
    assert outcomes[second.id] == result_of(second, 2.5) and outcomes[wild.id].status == "diverged"


def test_a_call_that_fails_leaves_nothing_to_the_next(store, make_spec, monkeypatch):
    """What its workers had at hand is trained again or taken from its folder."""
    specs = [make_spec(seed=seed) for seed in (1, 2)]
    mine = ScriptedExecutor(store, result_of)

    def fail(*told):
        raise ArmillaryError("store.sqlite: the disk is full")

    with monkeypatch.context() as patch, pytest.raises(ArmillaryError, match="the disk is full"):
        patch.setattr(mine, "_receive", lambda: [])  # the worker is still training
        mine.run("a", [Job(spec) for spec in specs], fail)
    assert mine._workers == [] and mine.worker.stacks == []
    mine.worker.said.clear()
    assert mine.run("b", [Job(specs[1])]) == {specs[1].id: result_of(specs[1])}


def test_other_numbers_of_a_run_trained_again_are_not_what_the_call_returns(store, make_spec):
    spec = make_spec()
    mine = ScriptedExecutor(store, result_of)
    mine.run("a", [Job(spec)])
    store.reopen(spec.id)
    other = ScriptedExecutor(store, lambda spec: result_of(spec, 2.0))
    assert other.run("a", [Job(spec)]) == {spec.id: result_of(spec)} and other.trained == [spec.id]
    assert "loss is" in store.overview()[0]["error"] and store.overview()[0]["status"] == "done"

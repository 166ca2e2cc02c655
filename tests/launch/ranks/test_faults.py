"""A run that is broken on purpose ends with the weights of the run that was not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from armillary.goodput import event_files, read_events, read_ledger
from armillary.launch import launch
from armillary.recipe import ArmillaryError, Checkpoints, LargeRun, Layout
from armillary.resilience import Fault, Faults
from armillary.resilience.inject import KINDS
from armillary.resilience.snapshots import _is_owned


class Said:
    """A reporter that keeps what it is told."""

    lines: list[str] = []  # noqa: RUF012 (shared on purpose: every reporter adds its line here)

    def __call__(self, stage, done, total, note):
        """Nothing."""

    def say(self, text):
        """Keep a line."""
        Said.lines.append(text)

    def close(self):
        """Nothing."""


@pytest.fixture
def large(make_spec, tiny_corpus):
    """A run of 40 steps over two copies of the model, with a snapshot after every second."""
    Said.lines.clear()
    return LargeRun(
        name="large",
        corpus=str(tiny_corpus.path),
        run=make_spec(batch_sequences=8, steps=40),
        layout=Layout(dp_replicate=2),
        checkpoints=Checkpoints(every_steps=10, snapshot_every_steps=2),
    )


def events(folder):
    """The events of all ranks by time."""
    return sorted((e for f in event_files(folder).values() for e in read_events(f)), key=lambda e: e.time_s)


def test_killed_not_finite_and_flipped_it_ends_with_the_same_weights(large, tmp_path, undisturbed, outcome):
    before = set(Path("/dev/shm").glob("armillary-*"))
    plan = [("nan", 1, 8), ("flip", 1, 16), ("kill", 0, 25)]
    faults = Faults(faults=tuple(Fault(kind=kind, rank=rank, step=step) for kind, rank, step in plan))
    launch(large, tmp_path / "run", faults=faults, reporter=Said)
    losses = [[row["loss"] for row in of["metrics"]] for of in (outcome(tmp_path / "run"), undisturbed(large.run))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    happened = [e for e in events(tmp_path / "run") if e.data.get("found") != "not repeatable"]
    assert [e.data["problem"] for e in happened if e.kind == "fault"] == ["nan", "flip", "kill"]
    assert [e.data["found"] for e in happened if e.kind == "detected"] == ["not finite", "lost step", "dead"]
    # a copy is compared before it is kept: the run goes back by the steps since the last snapshot alone
    (restored,) = {e.step for e in happened if e.kind == "restored"}
    (resumed,) = {e.step for e in happened if e.kind == "resume"}
    assert restored == 16 and resumed in (22, 24)
    ledger = read_ledger(tmp_path / "run")
    assert ledger.restarts == 1 and ledger.ranks == 2
    assert sum(ledger.seconds.values()) == pytest.approx(ledger.elapsed_s)
    assert any("rank 0 died (signal 9)" in line for line in Said.lines)
    assert not (tmp_path / "run" / "snapshots").exists()  # a finished run leaves nothing in the machine's memory
    # other runs of this machine may have snapshots, and live
    left = set(Path("/dev/shm").glob("armillary-*")) - before
    assert [place for place in left if not _is_owned(place)] == []


@pytest.mark.slow
def test_every_kind_of_fault_leaves_the_weights_as_they_are(large, tmp_path, outcome):
    launch(large, tmp_path / "whole", reporter=Said)
    faults = Faults(
        faults=tuple(
            Fault(kind=kind, rank=n % 2, step=3 + 3 * n, steps=6 if kind in ("slow", "disk") else None)
            for n, kind in enumerate(KINDS[:-1])
        ),
        nodes=2,
    )
    launch(large, tmp_path / "run", faults=faults, reporter=Said)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert {e.data["problem"] for e in events(tmp_path / "run") if e.data.get("injected")} == set(KINDS[:-1])


@pytest.mark.slow
def test_a_fault_that_comes_back_at_the_same_step_ends_the_run_with_its_cause(large, tmp_path):
    kills = tuple(Fault(kind="kill", rank=1, step=5) for _ in range(6))
    large = large.model_copy(update={"checkpoints": Checkpoints(every_steps=50)})
    with pytest.raises(ArmillaryError, match=r"rank 1 died \(signal 9\), and again after 2 restarts"):
        launch(large, tmp_path / "run", faults=Faults(faults=kills), max_restarts=2, min_ranks=2, reporter=Said)
    shutil.rmtree(tmp_path / "run")


def lose_machines(large, folder, nodes, ranks):
    """Where a run that loses the machine of each of ``ranks``, ten steps apart, resumes: the steps and sources."""
    plan = tuple(Fault(kind="node", rank=rank, step=15 + 10 * n) for n, rank in enumerate(ranks))
    launch(large, folder, faults=Faults(faults=plan, nodes=nodes), reporter=Said)
    assert not (folder / "snapshots").exists()
    return [(e.step, e.data["source"]) for e in events(folder) if e.kind == "resume" and e.rank == 0]


def test_a_machine_that_is_lost_with_its_memory_costs_no_more_steps_than_a_process(
    large, tmp_path, undisturbed, outcome
):
    """Each rank has half of the weights: those of the lost machine are in the memory of the other."""
    before = set(Path("/dev/shm").glob("armillary-*-node-*"))
    large = large.model_copy(update={"layout": Layout(dp_shard=2)})
    resumed = lose_machines(large, tmp_path / "run", 2, [1, 0])
    assert [source for _, source in resumed] == ["memory", "memory"]
    assert all(lost - step <= 3 for (step, _), lost in zip(resumed, (15, 25), strict=True))
    losses = [[row["loss"] for row in of["metrics"]] for of in (outcome(tmp_path / "run"), undisturbed(large.run))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert set(Path("/dev/shm").glob("armillary-*-node-*")) <= before  # a finished run leaves none


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [Layout(dp_replicate=2, tp=2), Layout(dp_shard=4), Layout(dp_replicate=4), Layout(pp=2, dp_shard=2)],
    ids=["dp2 tp2", "fsdp4", "dp4", "pp2 fsdp2"],
)
def test_a_machine_of_two_ranks_is_lost(layout, large, tmp_path, outcome):
    shape = large.run.model.model_copy(update={"n_layers": 2, "n_kv_heads": large.run.model.n_heads})
    large = large.model_copy(update={"layout": layout, "run": large.run.model_copy(update={"model": shape})})
    launch(large, tmp_path / "whole", reporter=Said)
    resumed = lose_machines(large, tmp_path / "run", 2, [3, 0])
    assert [source for _, source in resumed] == ["memory", "memory"]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_two_neighbours_lost_at_once_need_the_disk(large, tmp_path, outcome):
    """Of four machines, the second keeps the files of the first: without both, the checkpoint of step 10 is used."""
    large = large.model_copy(update={"layout": Layout(dp_shard=4)})
    launch(large, tmp_path / "whole", reporter=Said)
    plan = (Fault(kind="node", rank=0, step=17), Fault(kind="node", rank=1, step=17))
    launch(large, tmp_path / "run", faults=Faults(faults=plan, nodes=4), reporter=Said)
    (resumed,) = (e for e in events(tmp_path / "run") if e.kind == "resume" and e.rank == 0)
    assert (resumed.step, resumed.data["source"]) == (10, "disk")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_without_a_rank_that_cannot_be_restarted_the_run_continues_with_fewer(large, tmp_path, undisturbed, outcome):
    """Contracts 1 and 2: the same batches in the same order, so the same losses up to the order of sums."""
    large = large.model_copy(update={"run": large.run.model_copy(update={"steps": 20})})
    faults = Faults(faults=(Fault(kind="gone", rank=1, step=7),))
    launch(large, tmp_path / "run", faults=faults, max_restarts=1, reporter=Said)
    found, whole = outcome(tmp_path / "run"), undisturbed(large.run)
    assert [row["loss"] for row in found["metrics"]] == pytest.approx([r["loss"] for r in whole["metrics"]], rel=1e-4)
    happened = events(tmp_path / "run")
    assert [e.data["ranks"] for e in happened if e.kind in ("start", "resume") and e.rank == 0] == [2, 1]
    (degraded,) = (e for e in happened if e.kind == "degraded")
    assert degraded.data == {"culprit": 1, "ranks": 1, "before": 2}
    assert any("the run continues with 1 ranks instead of 2" in line for line in Said.lines)
    ledger = read_ledger(tmp_path / "run")
    assert sum(ledger.seconds.values()) == pytest.approx(ledger.elapsed_s)
    end = max(span.end_ns for span in ledger.spans[0])
    assert max(span.end_ns for span in ledger.spans[1]) < end  # it has no part in what came after


@pytest.mark.slow
def test_fewer_ranks_than_allowed_end_the_run(large, tmp_path):
    faults = Faults(faults=(Fault(kind="gone", rank=1, step=7),))
    with pytest.raises(ArmillaryError, match=r"rank 1 died \(signal 9\), and again after 2 restarts"):
        launch(large, tmp_path / "run", faults=faults, max_restarts=2, min_ranks=2, reporter=Said)
    launch(large, tmp_path / "run", reporter=Said)  # the place was repaired
    begun = [e for e in events(tmp_path / "run") if e.kind in ("start", "resume") and e.rank == 0]
    assert [e.data["ranks"] for e in begun] == [2, 2]

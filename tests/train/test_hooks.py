"""Hooks: metrics that are written while a run trains, and behaviours that are passed in from outside."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ranks import train

from armillary.recipe import ArmillaryError, Checkpoints, Layout, UsageError, Validation
from armillary.train import (
    Assignment,
    InterruptedRunError,
    Profile,
    read_metrics,
    train_fleet,
    train_ranks,
    train_run,
)
from armillary.train.hooks import Metrics, metrics
from armillary.train.rows import Rows, write_metrics


@pytest.fixture
def few(monkeypatch):
    """Parts of four rows, so that short runs write many."""
    monkeypatch.setattr(metrics, "ROWS", 4)


def parts(folder):
    return sorted(path.name for path in (folder / "metrics").glob("*"))


def test_rows_are_written_while_the_run_trains(few, make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    spec, seen = make_spec(steps=22), {}
    train_run(spec, tiny_corpus, tmp_path, progress=lambda step: seen.update({step: parts(tmp_path)}))
    assert seen[4] == [] and seen[5] == ["rows-1.parquet"]
    assert seen[22] == [f"rows-{first}.parquet" for first in (1, 12, 16, 4, 8)]
    assert not (tmp_path / "metrics").exists()
    assert pq.ParquetFile(tmp_path / "metrics.parquet").num_row_groups == 6
    assert outcome(tmp_path) == undisturbed(spec)


@pytest.mark.parametrize("after", [1, 4, 5, 8, 10, 11])
def test_a_stopped_run_continues_its_rows(after, few, make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    spec, steps = make_spec(), []
    with pytest.raises(InterruptedRunError):
        train_run(spec, tiny_corpus, tmp_path, progress=steps.append, stop=lambda: len(steps) == after)
    train_run(spec, tiny_corpus, tmp_path)
    assert outcome(tmp_path) == undisturbed(spec)


def test_rows_after_the_checkpoint_are_neither_doubled_nor_missing(
    few, make_spec, tiny_corpus, tmp_path, undisturbed, outcome
):
    """As after a kill: parts lie there of steps that the resumed run takes again, also torn ones."""
    spec, steps = make_spec(), []
    with pytest.raises(InterruptedRunError):
        train_run(spec, tiny_corpus, tmp_path, progress=steps.append, stop=lambda: len(steps) == 6)
    (tmp_path / "metrics" / "rows-4.parquet").write_bytes(b"PAR1 torn")
    (tmp_path / "metrics" / ".rows-8.parquet.host.1").write_bytes(b"PAR1")
    (tmp_path / "metrics" / "notes.txt").write_text("mine")
    train_run(spec, tiny_corpus, tmp_path)
    assert outcome(tmp_path) == undisturbed(spec)
    assert parts(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("lost", ["moved", "torn"])
def test_a_part_that_is_lost_while_the_run_trains_costs_only_time(
    lost, few, make_spec, tiny_corpus, tmp_path, undisturbed, outcome
):
    spec = make_spec()

    def lose(step):
        part = tmp_path / "metrics" / "rows-4.parquet"
        if step == 11 and lost == "moved":
            part.unlink()
        elif step == 11:
            part.write_bytes(b"PAR1")

    with pytest.raises(ArmillaryError, match=r"metrics\.parquet: could not be written"):
        train_run(spec, tiny_corpus, tmp_path, keep=(7,), progress=lose)
    train_run(spec, tiny_corpus, tmp_path, keep=(7,))
    assert outcome(tmp_path) == undisturbed(spec)


def test_a_part_without_room_is_written_with_the_next(
    few, make_spec, tiny_corpus, tmp_path, undisturbed, outcome, monkeypatch
):
    rename, spec = Path.rename, make_spec()

    def full(path, target):
        if Path(target).name == "rows-1.parquet" and not (tmp_path / "room").exists():
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    seen = {}

    def room(step):
        seen[step] = parts(tmp_path)
        if step == 8:
            (tmp_path / "room").touch()

    train_run(spec, tiny_corpus, tmp_path, progress=room)
    assert (seen[8], seen[12]) == ([], ["rows-1.parquet"])
    (tmp_path / "room").unlink()
    assert outcome(tmp_path) == undisturbed(spec)


def filled(folder, steps):
    """The metrics of a run of that many steps, with a validation every 100."""
    hook = Metrics(folder)
    for step in range(1, steps + 1):
        hook.append({"step": step, "tokens": 64 * step, "lr": 1e-3, "loss": 1 / step, "grad_norm": 1.0})
        if step % 100 == 0:
            hook.annotate({"validation/a/loss": 2 / step})
        if hook.due(step):
            hook.act(None)
    return hook


def test_rows_in_memory_do_not_grow_with_the_steps(tmp_path):
    hook = filled(tmp_path / "metrics", 20_000)
    rows = hook.rows()
    assert len(rows.rest) <= metrics.ROWS and len(rows.parts) == 4
    write_metrics(rows, tmp_path / "metrics.parquet")
    table = pq.read_table(tmp_path / "metrics.parquet")
    assert table["step"].to_pylist() == list(range(1, 20_001))
    assert table.filter(table["validation/a/loss"].is_valid())["step"].to_pylist() == list(range(100, 20_001, 100))


@pytest.mark.slow
def test_memory_stays_flat_over_500_000_steps(tmp_path):
    tracemalloc.start()
    try:
        hook = filled(tmp_path / "metrics", 10_000)
        tracemalloc.reset_peak()
        short = tracemalloc.get_traced_memory()[1]
        hook = filled(tmp_path / "long", 500_000)
        write_metrics(hook.rows(), tmp_path / "metrics.parquet")
        assert tracemalloc.get_traced_memory()[1] < short + 8_000_000
    finally:
        tracemalloc.stop()
    assert pq.ParquetFile(tmp_path / "metrics.parquet").metadata.num_rows == 500_000


def test_a_run_without_rows_is_a_table_without_rows(tmp_path):
    Rows(("step", "loss"), (), ()).write(tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").schema.names == ["step", "loss"]


class Every:
    """Notes the steps at which it acts, and fails at one of them."""

    def __init__(self, steps, fails=None, error=None):
        self.steps, self.fails, self.error, self.acted = steps, fails, error, []

    def due(self, step):
        return step % self.steps == 0

    def act(self, run):
        self.acted.append((run.step, run.metrics.last["step"], "validation/sky/loss" in run.metrics.last))
        if run.step == self.fails:
            raise self.error


class Wishes(Every):
    """Also due after a step that it wished after."""

    def __init__(self, after):
        super().__init__(1000)
        self.after, self.asked = after, 0

    def wish(self):
        self.asked += 1
        return self.asked == self.after


def test_a_hook_acts_at_its_steps_and_changes_no_number(make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    hook, wished = Every(5), Wishes(3)
    train_run(make_spec(), tiny_corpus, tmp_path, hooks=(hook, wished))
    assert hook.acted == [(5, 5, True), (10, 10, True)]
    assert wished.acted == [(3, 3, False)] and wished.asked == 12
    assert outcome(tmp_path) == undisturbed(make_spec())


def test_a_hook_that_is_due_where_a_run_stops_acts_in_the_next_start(make_spec, tiny_corpus, tmp_path):
    steps, hook = [], Every(5)
    with pytest.raises(InterruptedRunError):
        train_run(
            make_spec(), tiny_corpus, tmp_path, progress=steps.append, stop=lambda: len(steps) == 5, hooks=(hook,)
        )
    assert hook.acted == []
    train_run(make_spec(), tiny_corpus, tmp_path, hooks=(hook,))
    assert [step for step, *_ in hook.acted] == [5, 10]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("no such table"), ArmillaryError),
        (OSError(28, "No space"), ArmillaryError),
        (UsageError("x"), UsageError),
    ],
)
def test_an_error_in_a_hook_names_it_and_costs_no_checkpoint(
    error, kind, make_spec, tiny_corpus, tmp_path, undisturbed, outcome
):
    hook = Every(4, 8, error)
    with pytest.raises(kind, match=r"^hook Every after step 8: ") as caught:
        train_run(make_spec(), tiny_corpus, tmp_path, keep=(8,), hooks=(hook,))
    assert str(error) in str(caught.value) and type(caught.value) is kind
    steps = []
    train_run(make_spec(), tiny_corpus, tmp_path, progress=steps.append)
    assert steps[0] == 9
    assert outcome(tmp_path) == undisturbed(make_spec())


def test_an_error_in_a_hook_of_a_stack_ends_its_member_alone(make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    one, two = make_spec(seed=1), make_spec(seed=2)
    runs = [
        Assignment(one, tmp_path / "one", hooks=(Every(4, 4, ValueError("broken")),)),
        Assignment(two, tmp_path / "two", hooks=(Every(4),)),
    ]
    outcomes = dict(train_fleet(runs, tiny_corpus, 2))
    assert "hook Every after step 4: ValueError: broken" in str(outcomes[one.id])
    assert outcome(tmp_path / "two") == undisturbed(two)


class Asked(Every):
    """Fails when it is asked whether it is due, or whether it wishes to act, after step 4."""

    def __init__(self, question):
        super().__init__(1000)
        self.question, self.step = question, 0

    def fail(self, question, step):
        if (question, step) == (self.question, 4):
            raise ZeroDivisionError("modulo by zero")
        return False

    def due(self, step):
        return self.fail("due", step)

    def wish(self):
        self.step += 1
        return self.fail("wish", self.step)


@pytest.mark.parametrize("question", ["due", "wish"])
def test_an_error_in_a_hook_that_is_asked_names_it_and_ends_only_its_run(
    question, make_spec, tiny_corpus, tmp_path, undisturbed, outcome
):
    named = "hook Asked after step 4: ZeroDivisionError: modulo by zero"
    with pytest.raises(ArmillaryError, match=f"^{named}$"):
        train_run(make_spec(), tiny_corpus, tmp_path / "alone", hooks=(Asked(question),))
    one, two = make_spec(seed=1), make_spec(seed=2)
    runs = [Assignment(one, tmp_path / "one", hooks=(Asked(question),)), Assignment(two, tmp_path / "two")]
    outcomes = dict(train_fleet(runs, tiny_corpus, 2))
    assert str(outcomes[one.id]) == named
    assert outcome(tmp_path / "two") == undisturbed(two)


def with_hooks(spec, corpus, folder, layout, failing):
    """As a rank: train with hooks, of which rank 1's fails or wishes; what they did."""
    import torch
    import torch.distributed as dist

    from armillary.corpus import Corpus

    first = dist.get_rank() == 0
    hook = Every(4, None if first or not failing else 4, ValueError("broken"))
    wished = Wishes(99 if first else 3)
    try:
        train_ranks(
            spec, Corpus.open(corpus), folder, layout, checkpoints=Checkpoints(), device=torch.device("cpu"),
            hooks=(hook, wished),
        )  # fmt: skip
    except ArmillaryError as error:
        return str(error)
    return hook.acted, wished.acted


def test_ranks_act_together_and_fail_together(make_spec, tiny_corpus, tmp_path, on_ranks):
    spec = make_spec(validation=Validation(windows=2))
    found = on_ranks(2, with_hooks, spec, tiny_corpus.path, tmp_path / "a", Layout(dp_shard=2), False)
    assert found[0] == found[1]
    every, wished = found[0]
    assert [step for step, *_ in every] == [4, 8, 12] and [step for step, *_ in wished] == [4]
    found = on_ranks(2, with_hooks, spec, tiny_corpus.path, tmp_path / "b", Layout(dp_shard=2), True)
    assert found == ["hook Every after step 4: ValueError: broken"] * 2
    on_ranks(2, train, spec, tiny_corpus.path, tmp_path / "b", Layout(dp_shard=2))
    assert read_metrics(tmp_path / "a").equals(read_metrics(tmp_path / "b"))


def test_a_profile_is_a_trace_and_changes_no_number(make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    train_run(make_spec(), tiny_corpus, tmp_path, hooks=(Profile(first=2, steps=2),))
    trace = json.loads((tmp_path / "profile-rank-0.json").read_text())
    assert any("fused_adamw" in event.get("name", "") for event in trace["traceEvents"])
    assert outcome(tmp_path) == undisturbed(make_spec())
    with pytest.raises(UsageError, match="must be at least 1"):
        Profile(first=0)


def test_the_last_rows_can_be_watched_before_they_are_in_a_part(tiny_corpus, make_spec, monkeypatch, tmp_path):
    """The live file holds them, is never read back, and is gone when the run is done."""
    monkeypatch.setattr(metrics, "LIVE_S", 0.0)
    live, seen = tmp_path / "metrics" / "live.parquet", {}

    def look(step):
        seen[step] = pq.read_table(live)["step"].to_pylist() if live.exists() else []

    spec = make_spec()
    train_run(spec, tiny_corpus, tmp_path, progress=look)
    assert seen[spec.steps][-1] >= 5 and seen[spec.steps] == list(range(1, seen[spec.steps][-1] + 1))
    assert not live.exists() and not live.parent.exists()

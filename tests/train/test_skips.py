"""A batch that spoils its step is skipped; specification and record together give the run again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from armillary.corpus import Corpus
from armillary.goodput import read_events, read_ledger
from armillary.recipe import (
    ArmillaryError,
    Checkpoints,
    DamagedFileError,
    ForeignFileError,
    Layout,
    Skipping,
    read_result,
)
from armillary.train import DivergedError, read_metrics, train_fleet, train_ranks, train_run, verify_run
from armillary.train.checkpoint import CheckpointReader, checkpoint_steps
from armillary.train.engines import ParallelEngine
from armillary.train.fleet import Assignment
from armillary.train.skips import SKIPPED, read_skips, write_skips


def train_spoiled(spec, corpus, folder, bad, skipping=Skipping(), layout=Layout(dp_replicate=2)):
    """As a rank: train with gradients of the steps ``bad`` (from 1) that are not finite, or losses that are ten more.

    The batch is at fault: whenever the step is computed, it is spoiled.
    """
    gradients, step = ParallelEngine._gradients, ParallelEngine.step
    seen = []

    def counted(self, number, batch):
        self.number = number + 1
        seen.append(number + 1)
        return step(self, number, batch)

    def spoiled(self, batch):
        loss, norm = gradients(self, batch)
        what = bad.get(self.number, 0.0)
        return (loss + what, norm) if what == 10.0 else (loss, norm + what)

    ParallelEngine.step, ParallelEngine._gradients = counted, spoiled
    try:
        train_ranks(
            spec, Corpus.open(corpus), folder, layout, checkpoints=Checkpoints(every_steps=4), skipping=skipping,
            device=torch.device("cpu"),
        )  # fmt: skip
    except ArmillaryError as error:
        return error
    finally:
        ParallelEngine.step, ParallelEngine._gradients = step, gradients
    return seen


NAN = float("nan")


@pytest.fixture(scope="module")
def spoiled(make_spec, tiny_corpus, tmp_path_factory, on_ranks):
    """A run of 24 steps whose sixth and twentieth batches give gradients that are not finite, and a loss spike."""
    folder = tmp_path_factory.mktemp("spoiled") / "run"
    spec = make_spec(batch_sequences=8, steps=24)
    seen = on_ranks(2, train_spoiled, spec, tiny_corpus.path, folder, {6: NAN, 20: 10.0}, Skipping(loss_deviations=8))
    return folder, spec, seen


def test_only_the_batches_at_fault_are_skipped_and_recorded(spoiled):
    folder, spec, seen = spoiled
    assert seen[0] == seen[1]
    # computed, computed again from the checkpoint before, then skipped
    assert seen[0] == [*range(1, 7), 5, 6, 5, *range(7, 21), 17, 18, 19, 20, 17, 18, 19, *range(21, 25)]
    assert {step: why[:11] for step, why in read_skips(folder, spec.id).items()} == {
        6: "the loss is",
        20: "the loss is",
    }
    assert read_result(folder).skipped == (6, 20) and verify_run(folder) == []
    table = read_metrics(folder)
    assert [row["step"] for row in table.to_pylist() if row["loss"] is None] == [6, 20]
    assert [row["lr"] for row in table.to_pylist()] == [spec.lr(step) for step in range(24)]
    events = list(read_events(folder / "events.jsonl"))
    assert [(e.step, e.data["batches"]) for e in events if e.kind == "skipped"] == [(6, 1), (20, 1)]
    assert [e.data["found"] for e in events if e.kind == "detected"] == ["not finite"] * 2 + ["spike"] * 2
    assert [e.step for e in events if e.kind == "restored"] == [4, 4, 16, 16]
    assert read_ledger(folder).skipped_batches == 2


def test_specification_and_record_give_the_same_weights(spoiled, tiny_corpus, tmp_path, on_ranks, outcome):
    """Contract 2: with the record the batches are known before the first step, wherever the run is interrupted."""
    folder, spec, _ = spoiled
    (tmp_path / "again").mkdir()
    shutil.copy(folder / SKIPPED, tmp_path / "again")
    first, _ = on_ranks(2, train_spoiled, spec, tiny_corpus.path, tmp_path / "again", {})
    assert first == [step for step in range(1, 25) if step not in (6, 20)]
    assert outcome(tmp_path / "again")["weights"] == outcome(folder)["weights"]
    assert read_metrics(tmp_path / "again").equals(read_metrics(folder))
    # one device continues with what ranks began, and a fleet reads the record too
    (tmp_path / "single").mkdir()
    shutil.copy(folder / SKIPPED, tmp_path / "single")
    single = train_run(spec, tiny_corpus, tmp_path / "single")
    assert single.skipped == (6, 20)
    assert single.train_loss == pytest.approx(read_result(folder).train_loss, rel=1e-4)
    (tmp_path / "fleet").mkdir()
    shutil.copy(folder / SKIPPED, tmp_path / "fleet")
    (done,) = train_fleet([Assignment(spec, tmp_path / "fleet")], tiny_corpus, 2)
    assert outcome(tmp_path / "fleet") == outcome(tmp_path / "single") and done[1].skipped == (6, 20)


def test_a_checkpoint_of_another_record_is_not_used(spoiled, make_spec, tiny_corpus, tmp_path):
    """A checkpoint knows what was skipped: a lost record is written again, and one that came later makes it useless."""
    spec, folder = make_spec(steps=8), tmp_path / "run"
    asked = iter(range(100))
    folder.mkdir()
    write_skips(folder, spec.id, {3: "by hand"})
    with pytest.raises(ArmillaryError, match="start it again to resume"):
        train_run(spec, tiny_corpus, folder, stop=lambda: next(asked) == 4)
    (step,) = checkpoint_steps(folder / "checkpoints")
    reader = CheckpointReader(folder / "checkpoints" / f"step-{step}")
    assert reader.skipped == {3: "by hand"} and reader.manifest["format"] == 4
    (folder / SKIPPED).unlink()
    shutil.copytree(folder, tmp_path / "later")
    assert train_run(spec, tiny_corpus, folder).skipped == (3,)
    assert read_skips(folder, spec.id) == {3: "by hand"}
    write_skips(tmp_path / "later", spec.id, {2: "by hand", 3: "by hand"})
    with pytest.raises(DamagedFileError, match="was trained on the batch of step 2, which is now skipped"):
        train_run(spec, tiny_corpus, tmp_path / "later")


@pytest.mark.parametrize(
    ("bad", "skipping", "said"),
    [
        ({5: NAN}, Skipping(most=0), "at step 5 the loss is"),
        # the weights are at fault
        pytest.param(dict.fromkeys(range(5, 25), NAN), Skipping(), "at step 8 the loss is", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_skipping_does_not_help_has_diverged(
    bad, skipping, said, make_spec, tiny_corpus, tmp_path, on_ranks
):
    spec = make_spec(batch_sequences=8, steps=12)
    found = on_ranks(2, train_spoiled, spec, tiny_corpus.path, tmp_path / "run", bad, skipping)
    assert all(isinstance(error, DivergedError) and said in str(error) for error in found)


@pytest.mark.slow
def test_spikes_that_do_not_end_are_taken(make_spec, tiny_corpus, tmp_path, on_ranks):
    spec = make_spec(batch_sequences=8, steps=22)
    bad, skipping = dict.fromkeys(range(18, 23), 10.0), Skipping(loss_deviations=8, most=2)
    seen, _ = on_ranks(2, train_spoiled, spec, tiny_corpus.path, tmp_path / "run", bad, skipping)
    assert read_result(tmp_path / "run").skipped == (18, 19) and seen[-1] == 22


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (b"", DamagedFileError, "cannot be read"),
        (b"{}", DamagedFileError, "no format number"),
        (b'{"format": 1, "run": "a", "skipped": []}', DamagedFileError, "does not match its checksum"),
        (b'{"format": 2, "run": "a", "skipped": []}', ForeignFileError, "format 2"),
    ],
)
def test_a_record_that_is_not_one_is_named(text, error, said, make_spec, tiny_corpus, tmp_path):
    (tmp_path / SKIPPED).write_bytes(text)
    with pytest.raises(error, match=said) as caught:
        train_run(make_spec(), tiny_corpus, tmp_path)
    assert str(tmp_path / SKIPPED) in str(caught.value)


@pytest.mark.parametrize(
    "skipped", [[{"step": 0, "why": "x"}], [{"why": "x"}], [3], None, [{"step": True, "why": "x"}]]
)
def test_a_sealed_record_of_other_content_is_named(skipped, tmp_path):
    from armillary.recipe import write_sealed

    write_sealed(tmp_path / SKIPPED, {"format": 1, "run": "a", "skipped": skipped})
    with pytest.raises(DamagedFileError, match="is not a record of skipped batches"):
        read_skips(tmp_path, "a")
    with pytest.raises(ForeignFileError, match="is the record of run a, not of b"):
        read_skips(tmp_path, "b")
    assert read_skips(Path(tmp_path / "none"), "a") == {}

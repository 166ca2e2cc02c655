"""A run of many ranks equals the run of one process, also after a change of layout and with a damaged checkpoint."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ranks import POINTS, live, train, train_on_a_full_disk, train_until, train_until_a_rank_stays_away
from safetensors.torch import load_file
from victim import process

from armillary.corpus import Example, write_examples
from armillary.goodput import read_events
from armillary.recipe import (
    Checkpoints,
    DamagedFileError,
    ForeignFileError,
    Layout,
    ModelShape,
    RunSpec,
    Schedule,
    Validation,
    read_result,
)
from armillary.train import train_run
from armillary.train.checkpoint import CheckpointReader, checkpoint_steps, verify_checkpoint

# What sums in another order come to in these runs, in nats and in the size of a weight.
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def spec(make_spec, tiny_corpus):
    """A shape that every dimension can divide."""
    shape = ModelShape(
        n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32, vocab_size=tiny_corpus.vocab_size
    )
    return make_spec(model=shape, batch_sequences=8, schedule=Schedule(warmup_steps=2))


def losses(outcome):
    return [row["loss"] for row in outcome["metrics"]]


def check_same(folder, spec, undisturbed, outcome):
    """The numbers of the run that one process trains, up to rounding."""
    found, expected = outcome(folder), undisturbed(spec)
    assert losses(found) == pytest.approx(losses(expected), abs=TOLERANCE)
    assert found["result"]["loss"] == pytest.approx(expected["result"]["loss"], abs=TOLERANCE)
    assert found["columns"] == expected["columns"]


WAYS = {
    "dp4, tp2, 1": (Layout(dp_shard=4), Layout(tp=2), Layout()),
    "hsdp2x2, pp2, 1": (Layout(dp_replicate=2, dp_shard=2), Layout(pp=2), Layout()),
    "pp2 dp2, cp2, 1": (Layout(pp=2, dp_shard=2), Layout(cp=2), Layout()),
    "tp2 dp2, dp2, 1": (Layout(tp=2, dp_shard=2), Layout(dp_shard=2), Layout()),
}


@pytest.mark.parametrize(
    "way", [way if way == "dp4, tp2, 1" else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)
def test_stopped_and_gone_on_with_under_other_layouts(
    way,
    spec,
    tiny_corpus,
    tmp_path,
    on_ranks,
    undisturbed,
    outcome,
):
    """Contract 2: the same batches in the same order, and the loss curve of a run that was never stopped."""
    seen = []
    for layout, stop_after in zip(WAYS[way], (3, 3, None), strict=True):
        ranks = on_ranks(layout.ranks, train, spec, tiny_corpus.path, tmp_path / "run", layout, stop_after)
        assert all(rank["seen"] == ranks[0]["seen"] for rank in ranks)
        seen += ranks[0]["seen"]
    (whole,) = on_ranks(1, train, spec, tiny_corpus.path, tmp_path / "whole", Layout())
    assert seen == whole["seen"] and len(seen) == spec.steps
    check_same(tmp_path / "run", spec, undisturbed, outcome)
    starts = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e.kind in ("start", "resume")]
    assert [e.data["ranks"] for e in starts] == [4, 2, 1]
    # a vote is looked at one step later
    assert [e.step for e in starts] == [0, 4, 8]


def test_the_final_weights_are_the_file_of_a_single_run(spec, tiny_corpus, tmp_path, on_ranks):
    on_ranks(2, train, spec, tiny_corpus.path, tmp_path / "run", Layout(tp=2))
    train_run(spec, tiny_corpus, tmp_path / "single")
    ours, theirs = (tmp_path / name / "model.safetensors" for name in ("run", "single"))
    head = [path.read_bytes()[: 8 + int.from_bytes(path.read_bytes()[:8], "little")] for path in (ours, theirs)]
    assert head[0] == head[1]
    expected = load_file(theirs)
    for name, tensor in load_file(ours).items():
        assert tensor.sub(expected[name]).abs().max() < 20 * TOLERANCE, name
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "events-00001.jsonl",
        *(path.name for path in (tmp_path / "single").iterdir()),
    }


SAVED = ("checkpoint_begin", "checkpoint", "checkpoint_durable")


def test_ranks_with_the_same_weights_divide_the_writing(spec, tiny_corpus, tmp_path, on_ranks):
    layout = Layout(dp_replicate=2, tp=2)
    on_ranks(4, train, spec, tiny_corpus.path, tmp_path, layout, 4, Checkpoints(every_steps=2))
    newest = tmp_path / "checkpoints" / f"step-{checkpoint_steps(tmp_path / 'checkpoints')[-1]}"
    sizes = [path.stat().st_size for path in sorted(newest.glob("rank-*.safetensors"))]
    assert len(sizes) == 4 and max(sizes) < 2 * min(sizes)
    events = list(read_events(tmp_path / "events.jsonl"))
    steps = {kind: [e.step for e in events if e.kind == kind] for kind in SAVED}
    assert steps["checkpoint_begin"] == steps["checkpoint"] == steps["checkpoint_durable"] != []
    for step in steps["checkpoint"]:  # the files are written while training continues
        times = [next(e.time_s for e in events if (e.kind, e.step) == (kind, step)) for kind in SAVED]
        assert times == sorted(times)


def test_one_device_goes_on_with_what_many_ranks_began(
    spec,
    tiny_corpus,
    tmp_path,
    on_ranks,
    undisturbed,
    outcome,
):
    on_ranks(4, train, spec, tiny_corpus.path, tmp_path, Layout(dp_shard=2, tp=2), 4)
    train_run(spec, tiny_corpus, tmp_path)
    check_same(tmp_path, spec, undisturbed, outcome)


def test_which_checkpoints_stay(spec, tiny_corpus, tmp_path, on_ranks):
    rule = Checkpoints(every_steps=2, keep_last=2, keep_every_steps=3)
    on_ranks(2, train, spec, tiny_corpus.path, tmp_path, Layout(dp_shard=2), 10, rule)
    assert checkpoint_steps(tmp_path / "checkpoints") == [3, 6, 9, 10, 11]
    on_ranks(2, train, spec, tiny_corpus.path, tmp_path, Layout(dp_shard=2), None, rule)
    assert checkpoint_steps(tmp_path / "checkpoints") == [3, 6, 9, 12]


@pytest.fixture(scope="module")
def stopped(spec, tiny_corpus, tmp_path_factory, on_ranks):
    """A run by two ranks that was stopped after step 7, with checkpoints of steps 6 and 7."""
    folder = tmp_path_factory.mktemp("stopped")
    on_ranks(2, train, spec, tiny_corpus.path, folder, Layout(dp_shard=2), 6, Checkpoints(every_steps=2))
    assert checkpoint_steps(folder / "checkpoints") == [6, 7]
    return folder


def flip(path: Path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)


def another_step(newest: Path) -> None:
    shutil.copy(newest.with_name("step-6") / "checkpoint.json", newest)


FILES = ("rank-00000.safetensors", "rank-00001.safetensors", "metrics.parquet", "checkpoint.json")
DAMAGES = {
    **{f"a flipped bit in {f}": (lambda p, f=f: flip(p / f, 0.5), f"{f}|damaged") for f in FILES},
    "a flipped bit in a header": (lambda p: flip(p / FILES[1], 0.001), "rank-00001.safetensors: does not match"),
    "a truncated file": (lambda p: (p / FILES[1]).write_bytes((p / FILES[1]).read_bytes()[:-9]), "bytes instead of"),
    "a missing file": (lambda p: (p / FILES[1]).unlink(), "rank-00001.safetensors: is missing"),
    "a missing manifest": (lambda p: (p / "checkpoint.json").unlink(), "checkpoint.json: is missing"),
    "the manifest of another step": (another_step, "belongs to step 6"),
    "an empty folder": (lambda p: [f.unlink() for f in p.iterdir()], "checkpoint.json: is missing"),
}


# one of each way to find it: by its content, by its size, by its absence, by its number
FEW = (
    "a flipped bit in rank-00001.safetensors",
    "a truncated file",
    "a missing manifest",
    "the manifest of another step",
)


@pytest.mark.parametrize("damage", [d if d in FEW else pytest.param(d, marks=pytest.mark.slow) for d in DAMAGES])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    damage,
    spec,
    tiny_corpus,
    tmp_path,
    stopped,
    on_ranks,
    undisturbed,
    outcome,
):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    act, said = DAMAGES[damage]
    act(folder / "checkpoints" / "step-7")
    first, second = on_ranks(2, train, spec, tiny_corpus.path, folder, Layout(tp=2))
    assert len(first["told"]) == 1 and not second["told"]
    fault = next(e for e in read_events(folder / "events.jsonl") if e.kind == "fault")
    assert fault.step == 7 and any(text in fault.data["problem"] for text in said.split("|"))
    assert "using the previous one" in first["told"][0] and fault.data["problem"] in first["told"][0]
    assert [e.step for e in read_events(folder / "events.jsonl") if e.kind == "resume"] == [6]
    check_same(folder, spec, undisturbed, outcome)


def test_every_bit_of_a_manifest_counts(stopped, tmp_path):
    path = tmp_path / "step-7"
    shutil.copytree(stopped / "checkpoints" / "step-7", path)
    manifest = path / "checkpoint.json"
    good = manifest.read_bytes()
    verify_checkpoint(path)
    for at in range(0, len(good), 29):
        data = bytearray(good)
        data[at] ^= 4
        manifest.write_bytes(data)
        try:
            same = json.loads(data) == json.loads(good)  # white space
        except ValueError:
            same = False
        if not same:
            with pytest.raises((DamagedFileError, ForeignFileError)):
                verify_checkpoint(path)


def test_pieces_make_up_each_tensor_once(stopped):
    """What two ranks wrote has as many numbers as the tensors, and no slice of it is missing."""
    path = stopped / "checkpoints" / "step-7"
    manifest = json.loads((path / "checkpoint.json").read_text())
    reader = CheckpointReader(path)
    sizes = {name: tensor["size"] for name, tensor in manifest["tensors"].items()}
    written = sum(t.numel() for file in FILES[:2] for t in load_file(path / file).values())
    assert written == sum(reader.whole(name).numel() for name in sizes)
    name = next(name for name, tensor in manifest["tensors"].items() if len(tensor["pieces"]) == 2)
    whole = reader.whole(name)
    rows = len(whole) // 2 + 1
    assert reader.read(name, (rows, *whole.shape[1:]), (1, *(0,) * (whole.ndim - 1))).equal(whole[1 : rows + 1])


def test_a_full_disk_costs_one_checkpoint_and_is_told(
    spec,
    tiny_corpus,
    tmp_path,
    on_ranks,
    undisturbed,
    outcome,
):
    first, _ = on_ranks(2, train_on_a_full_disk, spec, tiny_corpus.path, tmp_path, Layout(dp_shard=2))
    events = list(read_events(tmp_path / "events.jsonl"))
    assert [e.step for e in events if e.kind == "fault"] == [4]
    assert [e.step for e in events if e.kind == "checkpoint_durable"] == [2, 6, 8, 10, 12]
    assert len(first["told"]) == 1 and "rank 1 could not write its part" in first["told"][0]
    check_same(tmp_path, spec, undisturbed, outcome)


def test_a_rank_that_enters_no_collective_ends_the_others_without_anything_that_watches(spec, tiny_corpus, tmp_path):
    arguments = (train_until_a_rank_stays_away, spec, tiny_corpus.path, tmp_path / "run", Layout(dp_shard=2))
    ranks = [process(live, rank, 2, str(tmp_path / "store"), *arguments) for rank in range(2)]
    ranks[0].join(60)
    ranks[1].kill()
    outcome = json.loads((tmp_path / "rank-0.json").read_text())
    assert outcome["lost"] and outcome["seconds"] < 40, outcome
    assert checkpoint_steps(tmp_path / "run/checkpoints") == [3, 6]


def kill_a_rank(point: str, spec: RunSpec, corpus: Path, folder: Path) -> None:
    """Train with a checkpoint every 2 steps over two ranks until one of them is killed, then kill the other."""
    arguments = (train_until, point, spec, corpus, folder, Layout(dp_shard=2))
    victims = [process(live, rank, 2, str(folder.with_name("store")), *arguments) for rank in range(2)]
    victims[POINTS[point][0]].join(120)
    # rank 1 may be steps ahead of what rank 0 has committed
    committed = time.monotonic() + 20
    while not checkpoint_steps(folder / "checkpoints") and time.monotonic() < committed:
        time.sleep(0.05)
    for victim in victims:
        victim.kill()
        victim.join()
    assert victims[POINTS[point][0]].exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    "point", [p if p.startswith("before the") else pytest.param(p, marks=pytest.mark.slow) for p in POINTS]
)
def test_a_rank_is_killed_while_a_checkpoint_is_written(point, spec, tiny_corpus, tmp_path, undisturbed, outcome):
    folder = tmp_path / "run"
    kill_a_rank(point, spec, tiny_corpus.path, folder)
    steps = checkpoint_steps(folder / "checkpoints")
    assert steps == ([2, 4] if point == "before older ones are removed" else [2])
    train_run(spec, tiny_corpus, folder)
    assert [e.kind for e in read_events(folder / "events.jsonl") if e.kind == "fault"] == []
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]
    check_same(folder, spec, undisturbed, outcome)
    assert pq.read_table(folder / "metrics.parquet").num_rows == spec.steps


def test_a_supervised_run_over_ranks_is_that_of_one_process(
    spec, make_spec, tiny_corpus, tmp_path, on_ranks, undisturbed, outcome
):
    """A rank is killed under one layout, the run is stopped under another, and resumed under a third."""
    answers = [
        Example([20 + n % 6, 30 + n % 4, *range(100, 103 + n % 5)], [0, 0] + [1] * (3 + n % 5)) for n in range(60)
    ]
    written = write_examples(tiny_corpus, "answers over ranks", answers)
    fields = make_spec(model=spec.model, steps=8, validation=Validation(windows=4)).model_dump(mode="json")
    changes = {"mixture": [], "objective": {"kind": "supervised", "examples": written.hash}, "context_length": 32}
    spec, folder = RunSpec.model_validate(fields | changes), tmp_path / "run"
    kill_a_rank("before the manifest", spec, tiny_corpus.path, folder)
    assert checkpoint_steps(folder / "checkpoints") == [2]
    on_ranks(2, train, spec, tiny_corpus.path, folder, Layout(tp=2), 2)
    assert read_result(folder) is None
    on_ranks(2, train, spec, tiny_corpus.path, folder, Layout(pp=2))
    events = list(read_events(folder / "events.jsonl"))
    first, _ = (event for event in events if event.kind == "resume")
    assert first.step == 2
    check_same(folder, spec, undisturbed, outcome)

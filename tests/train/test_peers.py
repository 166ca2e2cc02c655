"""Which files of a checkpoint a rank reads, which machine keeps which, and what happens when some are lost."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from armillary.corpus import Corpus
from armillary.goodput import read_events
from armillary.recipe import ArmillaryError, Checkpoints, Layout
from armillary.resilience import forget
from armillary.train import train_ranks
from armillary.train.checkpoint import Peers, PieceReader, peers


@given(
    cuts=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3),
    data=st.data(),
)
def test_the_files_of_a_slice_are_those_whose_pieces_overlap_it(cuts, data, tmp_path_factory):
    """``cuts`` are the sizes of the pieces along each dimension."""
    size = [sum(sizes) for sizes in cuts]
    grid = [((), ())]
    for sizes in cuts:
        starts = [sum(sizes[:n]) for n in range(len(sizes))]
        grid = [((*o, s), (*n, w)) for o, n in grid for s, w in zip(starts, sizes, strict=True)]
    pieces = {f"rank-{n}": list(offset) for n, (offset, _) in enumerate(grid)}
    reader = PieceReader(tmp_path_factory.getbasetemp(), {"w": {"size": size, "pieces": pieces}})
    begin = [data.draw(st.integers(0, n - 1)) for n in size]
    length = [data.draw(st.integers(1, n - b)) for n, b in zip(size, begin, strict=True)]
    expected = {
        f"rank-{n}"
        for n, (offset, width) in enumerate(grid)
        if all(max(b, o) < min(b + k, o + w) for b, k, o, w in zip(begin, length, offset, width, strict=True))
    }
    assert reader.files("w", tuple(length), tuple(begin)) == expected


def test_a_number_is_in_one_file_and_a_missing_tensor_in_none(tmp_path):
    reader = PieceReader(tmp_path, {"w/step": {"size": [], "pieces": {"rank-3": []}}})
    assert reader.files("w/step", (), ()) == {"rank-3"} and reader.files("v", (2,), (0,)) == set()


@given(names=st.lists(st.sampled_from("abcd"), min_size=2, max_size=12).filter(lambda names: len(set(names)) > 1))
def test_the_copy_of_a_file_is_never_on_its_own_machine(names, tmp_path_factory):
    for rank in range(len(names)):
        peers = Peers(SimpleNamespace(rank=rank), tmp_path_factory.getbasetemp(), names)
        assert names[peers.keeper(rank)] != names[rank]
        assert sorted(one for ranks in peers.machines for one in ranks) == list(range(len(names)))
        assert peers.first == (names.index(names[rank]) == rank)


class FailAt:
    """A hook that fails after a step, so that the snapshots stay."""

    def __init__(self, step):
        self.step = step

    def due(self, step):
        """After its step."""
        return step == self.step

    def act(self, run):
        """Fail."""
        raise ArmillaryError("on purpose")


def train_on_machines(spec, corpus, folder, fail_at=None, full_at=None):
    """As a rank that is a machine of its own; on that of rank 1 the copy of snapshot ``full_at`` finds no room."""
    receive = peers.receive_file

    def watched(path, *more):
        problem = receive(path, *more)
        return OSError(28, "No space left on device") if f"step-{full_at}." in path.parent.name else problem

    if dist.get_rank() == 1:
        peers.receive_file = watched
    try:
        train_ranks(
            spec, Corpus.open(corpus), folder, Layout(dp_shard=2), device=torch.device("cpu"),
            checkpoints=Checkpoints(every_steps=3, snapshot_every_steps=2), hooks=[FailAt(fail_at)] if fail_at else [],
            machine=f"m{dist.get_rank()}",
        )  # fmt: skip
    except ArmillaryError as error:
        return str(error)
    finally:
        peers.receive_file = receive
    return None


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


LOSSES = {
    "nothing": (lambda m: None, 8, "memory"),
    "the memory of a machine": (lambda m: shutil.rmtree(m[1]), 8, "memory"),
    "the newest snapshot of a machine": (lambda m: shutil.rmtree(m[0] / "step-8"), 8, "memory"),
    "the manifest on a machine": (lambda m: (m[1] / "step-8" / "checkpoint.json").write_text("{}"), 8, "memory"),
    "a bit that is read": (lambda m: flip(m[1] / "step-8" / "rank-00001.safetensors"), 6, "memory"),
    "both copies of a file": (lambda m: [flip(one / "step-8" / "rank-00001.safetensors") for one in m], 6, "memory"),
    "all memory": (lambda m: [shutil.rmtree(one) for one in m], 6, "disk"),
}


@pytest.mark.parametrize("lost", LOSSES)
def test_a_run_resumes_from_what_its_machines_still_hold(lost, make_spec, tiny_corpus, tmp_path, on_ranks):
    spec, folder = make_spec(batch_sequences=8, steps=12), tmp_path / "run"
    said = on_ranks(2, train_on_machines, spec, tiny_corpus.path, folder, 8)
    assert all("on purpose" in one for one in said)
    token = (folder / "snapshots").read_text()
    machines = [next(Path("/dev/shm").glob(f"armillary-*-{token}-m{n}")) for n in range(2)]
    try:
        lose, step, source = LOSSES[lost]
        lose(machines)
        assert on_ranks(2, train_on_machines, spec, tiny_corpus.path, folder) == [None, None]
        events = list(read_events(folder / "events.jsonl"))
        assert [(e.step, e.data["source"]) for e in events if e.kind == "resume"] == [(step, source)]
        assert not any(machine.exists() for machine in machines)
    finally:
        forget(folder)


def test_a_machine_without_room_for_a_copy_costs_one_snapshot(make_spec, tiny_corpus, tmp_path, on_ranks):
    spec, folder = make_spec(batch_sequences=8, steps=12), tmp_path / "run"
    assert on_ranks(2, train_on_machines, spec, tiny_corpus.path, folder, None, 4) == [None, None]
    events = list(read_events(folder / "events.jsonl"))
    (fault,) = (e.data for e in events if e.kind == "fault")
    assert "rank 1 could not keep a copy (No space left on device)" in fault["problem"]
    assert fault["remedy"] == "the snapshot before it is kept"
    durable = [e.step for e in events if e.kind == "checkpoint_durable" and e.data["of"] == "snapshot"]
    assert 4 not in durable and 6 in durable

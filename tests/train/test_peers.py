"""Which files of a checkpoint a rank reads, and which machine keeps which."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from armillary.train.checkpoint import Peers, PieceReader


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

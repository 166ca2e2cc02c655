"""The walk back over the edges of a lineage."""

from armillary.recipe import Edge, walk_back


def test_everything_that_a_node_comes_from_is_found_once_and_nearest_first():
    edges = [
        Edge("file:a", "written by", "run:1"),
        Edge("run:1", "starts from", "run:2"),
        Edge("run:1", "trained on", "corpus:x"),
        Edge("run:2", "trained on", "corpus:x"),
        Edge("run:2", "starts from", "weights:w"),
        Edge("run:3", "trained on", "corpus:other"),
    ]
    assert walk_back(edges, "file:a") == ["run:1", "run:2", "corpus:x", "weights:w"]
    assert walk_back(edges, "corpus:x") == []


def test_a_cycle_ends_the_walk():
    assert walk_back([Edge("a", "", "b"), Edge("b", "", "a")], "a") == ["b"]

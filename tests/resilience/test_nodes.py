"""Which nodes are left out, and when a job is no longer restarted."""

from armillary.resilience import Attempt, excluded_nodes, may_restart


def test_a_node_that_failed_twice_is_excluded():
    once = Attempt(("a", "b"), (0, 0), "failed", ("b",))
    assert excluded_nodes([once, Attempt(("a",), (0, 0), "failed", ("a",))]) == ()
    assert excluded_nodes([once, Attempt(("a", "b"), (0, 5), None, ("b", "a"))]) == ("b",)


def test_the_same_crash_on_two_nodes_is_one_of_the_program():
    def crashed(node, crash="signal 11"):
        return Attempt((node,), (0, 0), "failed", (node,), crash)

    assert excluded_nodes([crashed("a"), crashed("a")]) == ("a",)
    assert excluded_nodes([crashed("a"), crashed("a"), crashed("b"), crashed("b")]) == ()
    assert excluded_nodes([crashed("a"), crashed("a"), crashed("b", "signal 6")]) == ("a",)
    killed = [crashed(node, "") for node in "aabb"]
    assert excluded_nodes(killed) == ("a", "b")  # a kill is none


def test_restarts_without_progress_are_limited_and_others_are_not():
    def failed(steps):
        return Attempt(("a",), (0, steps), "failed", ("a",))

    assert may_restart([failed(0)], (0, 0), 1) and not may_restart([failed(0), failed(0)], (0, 0), 1)
    assert may_restart([failed(step) for step in range(50)], (0, 60), 0)  # each got further
    assert may_restart([failed(0), failed(0), failed(0)], (0, 1), 0)
    assert may_restart([failed(5), failed(5), Attempt(("a",), (0, 5), "stopped"), failed(5)], (0, 5), 1)
    assert not may_restart([failed(0), Attempt(("a",), (0, 9), "refused")], (0, 9), 3)
    assert may_restart([Attempt(("a",), (1, 0), None)], (1, 0), 1)

"""Faults are planned as their file says, and a file that is wrong is named."""

import multiprocessing

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from armillary.recipe import UsageError
from armillary.resilience import Fault, FaultClock, FaultRate, Faults, load_faults
from armillary.resilience.inject import KINDS, FaultState, RandomFaults


@given(count=st.integers(1, 60), steps=st.integers(2, 1000), ranks=st.integers(1, 9), seed=st.integers(0, 9))
def test_drawn_faults_are_those_of_the_seed_and_of_all_kinds(count, steps, ranks, seed):
    faults = Faults(draw=RandomFaults(count=count, seed=seed))
    plan = faults.plan(steps, ranks)
    assert plan == faults.plan(steps, ranks)
    assert len(plan) == count and {fault.kind for fault in plan} == set(KINDS[:-2][:count])
    assert all(1 <= fault.step < steps and 0 <= fault.rank < ranks for fault in plan)
    assert [fault.step for fault in plan] == sorted(fault.step for fault in plan)


def test_faults_by_hand_come_in_the_order_of_their_steps():
    later, sooner = Fault(kind="kill", rank=1, step=9), Fault(kind="nan", rank=0, step=3)
    assert Faults(faults=(later, sooner)).plan(10, 2) == (sooner, later)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "no fault is named"),
        ({"faults": [{"kind": "kil", "rank": 0, "step": 3}]}, "kind"),
        ({"faults": [{"kind": "kill", "rank": -1, "step": 3}]}, "rank"),
        ({"faults": [{"kind": "kill", "step": 3}]}, "rank"),
        ({"draw": {"count": 0}}, "count"),
        ({"faults": [{"kind": "kill", "rank": 0, "step": 3, "steps": 4}]}, "steps"),
        ({"faults": [{"kind": "disk", "rank": 0, "step": 3, "seconds": 4}]}, "seconds"),
        ({"rate": {"mtbf_s": 0}}, "mtbf_s"),
        ({"rate": {"mtbf_s": 5, "kinds": ["gone"]}}, "'gone' has no rate"),
        ({"rate": {"mtbf_s": 5, "kinds": []}}, "kinds"),
        ({"faults": [{"kind": "node", "rank": 0, "step": 3}]}, "nodes is missing"),
        ({"draw": {"count": 1, "kinds": ["node"]}}, "nodes is missing"),
        ({"nodes": 1, "draw": {"count": 1}}, "nodes"),
        ({"format": 2, "draw": {"count": 1}}, "format"),
        ([], "list"),
    ],
)
def test_a_wrong_file_is_told_with_the_place(document, said, tmp_path):
    file = tmp_path / "faults.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(UsageError) as caught:
        load_faults(file)
    assert str(file) in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (Faults(faults=(Fault(kind="kill", rank=4, step=3),)), "rank is 4, but the highest in this run is 3"),
        (Faults(faults=(Fault(kind="kill", rank=0, step=10),)), "step is 10, but the highest in this run is 9"),
        (Faults(nodes=3, draw=RandomFaults(count=1)), "nodes is 3: it must divide the 4 ranks"),
        (Faults(draw=RandomFaults(count=1, first_step=10)), "first_step is 10, but this run has 10 steps"),
    ],
)
def test_a_fault_that_cannot_happen_is_refused(faults, said):
    with pytest.raises(UsageError, match=said):
        faults.plan(10, 4)


def test_a_place_is_gone_from_the_moment_it_broke():
    faults = (Fault(kind="kill", rank=0, step=3), Fault(kind="gone", rank=1, step=4))
    injection = FaultState.of(multiprocessing.get_context("spawn"), faults, 2)
    injection.happened[0] = 1
    assert not injection.is_gone(0) and not injection.is_gone(1)
    injection.happened[1] = 1
    assert injection.is_gone(1) and not injection.is_gone(0)


def test_faults_at_a_rate_come_as_often_as_it_says():
    clock, again = FaultClock(FaultRate(mtbf_s=5.0, seed=3)), FaultClock(FaultRate(mtbf_s=5.0, seed=3))
    assert clock.due(100.0, 4) == []
    found = [fault for second in range(101, 10_101) for fault in clock.due(float(second), 4)]
    assert len(found) == pytest.approx(2000, abs=4 * 2000**0.5)
    assert {rank for rank, _ in found} == {0, 1, 2, 3} and {kind for _, kind in found} == set(KINDS) - {
        "disk",
        "node",
        "gone",
    }
    assert [*again.due(100.0, 4), *again.due(10_100.0, 4)] == found  # however often it is asked

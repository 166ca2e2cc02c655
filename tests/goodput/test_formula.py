"""The closed forms against numerical optima, published figures, and the simulated job."""

import math
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.goodput import (
    Reliability,
    best_goodput,
    best_interval,
    daly_interval,
    goodput,
    largest_block,
    largest_recovery,
    ledger,
    needed_mtbf,
    one_tier,
    simulate,
    young_interval,
)
from armillary.recipe import UsageError

JOBS = st.builds(Reliability, mtbf_s=st.floats(60, 1e7), block_s=st.floats(0.01, 600), recovery_s=st.floats(0, 3600))


@given(JOBS, st.floats(0.2, 5))
def test_no_other_interval_is_better(job, factor):
    best = best_interval(job)
    assert goodput(job, best) == pytest.approx(best_goodput(job), rel=1e-6)
    assert goodput(job, factor * best) <= best_goodput(job) * (1 + 1e-9)


@given(st.floats(600, 1e7), st.floats(0.5, 0.999), st.floats(0.01, 0.99))
def test_the_frontier_reaches_the_goal_and_no_more(mtbf_s, goal, share):
    recovery_s = share * largest_recovery(mtbf_s, goal)
    block_s = largest_block(mtbf_s, recovery_s, goal)
    assert best_goodput(Reliability(mtbf_s, block_s, recovery_s)) == pytest.approx(goal, abs=1e-6)
    assert largest_block(mtbf_s, 1.001 * largest_recovery(mtbf_s, goal), goal) == 0
    if block_s > 0:
        assert needed_mtbf(block_s, recovery_s, goal) == pytest.approx(mtbf_s, rel=1e-4)


def test_estimates_of_the_interval_are_near_where_checkpoints_are_cheap():
    job = Reliability(10_000, 10, 100)
    assert daly_interval(job) == pytest.approx(best_interval(job), rel=1e-4)
    assert young_interval(job) == pytest.approx(best_interval(job), rel=0.02)
    assert daly_interval(Reliability(10, 25, 1)) == 10


@pytest.mark.parametrize(
    ("accelerators", "hours", "block_s", "recovery_s"), [(10240, 50_677, 10, 300), (16384, 20_000, 30, 900)]
)
def test_the_simulated_job_has_the_goodput_of_the_formula(accelerators, hours, block_s, recovery_s):
    job = Reliability.of_cluster(accelerators, hours, block_s, recovery_s)
    cluster = one_tier(accelerators, hours, block_s, best_interval(job), recovery_s)
    found = [ledger({0: list(simulate(cluster, 20, seed))}).goodput for seed in range(5)]
    expected = goodput(job, best_interval(job))
    assert abs(fmean(found) - expected) < 3 * stdev(found) / math.sqrt(len(found)) + 1e-3


def test_wrong_values_are_named():
    for wrong in ((0, 1, 1), (1, -1, 1), (1, 1, math.inf), (math.nan, 1, 1)):
        with pytest.raises(UsageError, match=r"mtbf_s|block_s|recovery_s"):
            Reliability(*wrong)
    with pytest.raises(UsageError, match="between 0 and 1"):
        largest_recovery(100, 98)
    with pytest.raises(UsageError, match="must be 1 to 100,000,000"):
        Reliability.of_cluster(0, 1, 1, 1)
    assert goodput(Reliability(1, 0, 1e6), 1) == 0

"""The closed forms against numerical optima, published figures, and the simulated job."""

import csv
import math
import os
from pathlib import Path
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
    with pytest.raises(UsageError, match="at least one"):
        Reliability.of_cluster(0, 1, 1, 1)
    assert goodput(Reliability(1, 0, 1e6), 1) == 0


def test_published_figures():
    """98 % on 10,000 accelerators takes parts that fail 22 times as rarely as those of Llama 3."""
    folder = os.environ.get("ARMILLARY_PUBLISHED")
    if not folder or not (path := Path(folder) / "plan" / "goodput.csv").exists():
        pytest.skip("set ARMILLARY_PUBLISHED to the folder of published measurements")
    with open(path, encoding="utf-8") as file:
        rows = {row["source"].split(" (")[0]: row for row in csv.DictReader(file)}
    llama, news = rows["Llama 3"], rows["TeleAI news 2024-09"]
    assert float(news["mttf_per_accel_h"]) / float(llama["mttf_per_accel_h"]) == pytest.approx(22, abs=0.2)
    for name, goal in (("Llama 3", 0.90), ("ByteRobust", 0.97), ("TeleAI news 2024-09", 0.98)):
        mtbf_s = 3600 * float(rows[name]["mttf_job_h"])
        # what was published must be possible: a recovery that fits within the goal
        assert largest_block(mtbf_s, 0.5 * largest_recovery(mtbf_s, goal), goal) > 0
    # ByteRobust: checkpoints that block for 0.04 s, recoveries of 10 to 109 s, at every step
    job = Reliability(3600 * float(rows["ByteRobust"]["mttf_job_h"]), 0.04, 109)
    assert best_goodput(job) > 0.97

"""The search: what it finds is valid, fits, and is the best of what it compared; stages are balanced exactly."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_jobs import make_job, make_shape

from armillary.plan.balance import Stages, balance
from armillary.plan.constants import constants
from armillary.plan.search import search
from armillary.plan.step_time import step_time
from armillary.recipe import UsageError


def test_layouts_are_valid_fit_and_are_in_order():
    job = make_job(family="armillary", dp=256, sequences=512)
    found = search(job, constants())
    assert len(found.others) == 10
    times = [one.step.total for one in (found.best, *found.others)]
    assert times == sorted(times)
    for one in (found.best, *found.others):
        one.job.check()
        assert one.job.parallelism.ranks == 256 and one.job.tokens == 512 * 8192
        assert one.memory_high <= job.accelerator.memory_gb
    assert all(found.reason(one) for one in found.others)


def test_kinds_of_memory_sum_to_the_total():
    for sequences in (256, 512):  # with one micro-batch a step, gradients are not there when activations peak
        best = search(make_job(family="armillary", dp=256, sequences=sequences), constants()).best
        found = best.to_json(constants())["memory_gb"]
        kinds = [value for name, value in found.items() if name not in ("total", "upper_end")]
        assert sum(kinds) == pytest.approx(found["total"]) and min(kinds) >= 0


@settings(deadline=None, max_examples=4)
@given(st.sampled_from(["a100-40gb", "h100", "mi300x", "ascend-910b"]), st.sampled_from([64, 128, 256]))
def test_more_memory_never_makes_the_best_layout_slower(name, ranks):
    job = make_job(accelerator=name, family="armillary", dp=ranks, sequences=512)
    larger = job.accelerator.model_copy(update={"memory_gb": 1.3 * job.accelerator.memory_gb})
    more = search(replace(job, accelerator=larger), constants()).best
    assert more.step.total <= search(job, constants()).best.step.total * (1 + 1e-9)


def test_layouts_estimated_with_kept_times_equal_those_without():
    best = search(make_job(family="armillary", dp=16, sequences=32), constants()).best
    factor = constants().factor("accelerator.h100", "generation.hopper", "software.armillary")
    assert best.step == step_time(best.job, constants(), factor)


def test_cost_takes_no_more_accelerators_than_pay_off():
    job = make_job(family="armillary", dp=32, sequences=64)
    time, cost = (search(job, constants(), objective).best for objective in ("time", "cost"))
    assert time.job.parallelism.ranks == 32
    assert cost.cost <= time.cost and cost.job.parallelism.ranks <= 32


def test_a_model_that_fits_nowhere_names_the_nearest_layout():
    with pytest.raises(
        UsageError, match=r"nothing fits into 85\.5 GB on 2 accelerators; the nearest layout is .*, which may need"
    ):
        search(make_job(make_shape(n_layers=320), dp=2), constants())


def test_a_batch_that_cannot_be_divided_names_one_that_can():
    job = make_job(family="armillary", dp=4096, sequences=10)
    with pytest.raises(UsageError, match=r"a batch of (\d+) sequences") as caught:
        search(job, constants())
    near = int(str(caught.value).split("; a batch of ")[1].split()[0])
    assert search(replace(job, sequences=near), constants()).best.job.sequences == near


@pytest.mark.parametrize(
    ("changes", "ranks", "node", "sequences"),
    [
        ({"n_heads": 25, "n_kv_heads": 25, "head_dim": 64, "d_model": 1600, "d_ff": 6400, "n_layers": 48}, 40, 8, 80),
        ({"n_layers": 31}, 16, 8, 32),
        ({"n_layers": 28, "n_heads": 28, "n_kv_heads": 4, "d_model": 3584, "d_ff": 18944}, 21, 7, 63),
        ({"d_ff": 8192, "n_layers": 12, "experts": {"count": 4, "active": 2, "d_ff": 2048}}, 32, 8, 64),
        ({"d_ff": 8192, "n_layers": 8, "experts": {"count": 60, "active": 4, "d_ff": 1408}}, 8, 8, 16),
        ({"n_layers": 2, "d_model": 512, "n_heads": 8, "n_kv_heads": 1, "head_dim": 64, "d_ff": 1376}, 1, 8, 3),
        ({"n_layers": 1, "d_model": 256, "n_heads": 3, "n_kv_heads": 3, "head_dim": 64, "d_ff": 1000}, 3, 8, 9),
    ],
)
def test_awkward_shapes_and_clusters_have_a_layout(changes, ranks, node, sequences):
    job = make_job(make_shape(**changes), family="armillary", dp=ranks, sequences=sequences, length=2048)
    job = replace(job, accelerator=job.accelerator.model_copy(update={"node": node}))
    found = search(job, constants())
    for one in (found.best, *found.others):
        one.job.check()
        assert one.job.parallelism.ranks == ranks and one.job.tokens == sequences * 2048
        assert one.job.parallelism.tp <= node


def test_a_cluster_that_divides_nothing_names_a_batch_and_fewer_accelerators():
    job = make_job(make_shape(n_layers=4), family="armillary", dp=21, sequences=64)
    with pytest.raises(UsageError, match=r"a batch of \d+ sequences .*; 16 of the accelerators divide this batch"):
        search(job, constants())


def test_experts_are_spread_over_data_ranks():
    shape = make_shape(d_ff=8192, experts={"count": 64, "active": 4, "d_ff": 2048})
    best = search(make_job(shape, family="armillary", dp=16, sequences=32), constants()).best.job
    assert best.parallelism.dp % best.parallelism.ep == 0 and best.parallelism.ep > 1


@settings(deadline=None, max_examples=30)
@given(
    st.integers(2, 4).flatmap(
        lambda n: st.tuples(
            st.integers(n, 12),
            st.lists(st.floats(0, 3), min_size=n, max_size=n),
            st.lists(st.floats(0.5, 3), min_size=n, max_size=n),
            st.floats(4, 30),
        )
    )
)
def test_balanced_stages_are_the_best_by_brute_force(case):
    layers, ends, sizes, limit = case
    count = len(ends)
    found = balance(layers, Stages([1.0] * count, ends, sizes, [0.0] * count, limit))
    valid = [
        counts
        for counts in itertools.product(range(layers + 1), repeat=count)
        if sum(counts) == layers
        and all(n > 0 for n in counts[1:-1])
        and all(n * size <= limit for n, size in zip(counts, sizes, strict=True))
    ]
    if not valid:
        assert found is None
        return

    def slowest(counts):
        return max(n + end for n, end in zip(counts, ends, strict=True))

    assert found is not None and sum(found) == layers
    assert slowest(found) == pytest.approx(min(map(slowest, valid)), abs=1e-5)


def test_a_heavy_output_matrix_makes_the_last_stage_shorter():
    """A prime number of layers has no virtual stages, and slow links leave no other dimension."""
    shape = make_shape(n_layers=31, n_heads=25, n_kv_heads=25, d_ff=8192)
    job = make_job(shape, dp=8, sequences=64, length=4096)
    job = replace(job, accelerator=job.accelerator.model_copy(update={"network_gb_s": 0.5, "node": 1}))
    found = search(job, constants())
    pipelines = [one.job.parallelism for one in (found.best, *found.others)]
    uneven = [p for p in pipelines if p.layers_per_stage]
    assert uneven
    for p in uneven:
        assert sum(p.layers_per_stage) == 31 and p.layers_per_stage[-1] == min(p.layers_per_stage)

"""The step time: its parts sum to it, and it moves with its inputs as it must."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_jobs import make_job, make_shape

from armillary.plan.constants import constants
from armillary.plan.hardware_files import accelerators
from armillary.plan.memory import peak_memory
from armillary.plan.network import Group, Network
from armillary.plan.step_time import step_time
from armillary.recipe import UsageError

powers = st.sampled_from([1, 2, 4, 8])
jobs = st.builds(
    lambda tp, pp, cp, dp, batch, again, name, zero: make_job(
        accelerator=name, tp=tp, pp=pp, cp=cp, dp=dp, micro_batch=batch, recompute=again, zero=zero, sequences=128
    ),
    powers, powers, powers, powers, st.sampled_from([1, 2]), st.sampled_from(["none", "selective", "full"]),
    st.sampled_from(sorted(accelerators())), st.sampled_from([0, 1, 2, 3]),
)  # fmt: skip


def seconds(job):
    return step_time(job, constants()).total


@settings(deadline=None, max_examples=60)
@given(jobs)
def test_parts_sum_to_the_step_and_none_is_negative(job):
    step = step_time(job, constants())
    assert step.total == pytest.approx(sum(step.parts().values()))
    assert all(value >= 0 for value in step.parts().values())


@settings(deadline=None, max_examples=40)
@given(jobs)
def test_a_larger_batch_takes_longer_and_a_faster_accelerator_less(job):
    assert seconds(replace(job, sequences=2 * job.sequences)) > seconds(job)
    fast = {
        "peak": {k: 2 * v for k, v in job.accelerator.peak.items()},
        "bandwidth_gb_s": 2 * job.accelerator.bandwidth_gb_s,
    }
    assert seconds(replace(job, accelerator=job.accelerator.model_copy(update=fast))) < seconds(job)


@settings(deadline=None, max_examples=40)
@given(jobs, st.sampled_from(["link_gb_s", "network_gb_s", "bandwidth_gb_s"]))
def test_a_faster_link_never_takes_longer(job, figure):
    better = job.accelerator.model_copy(update={figure: 2 * getattr(job.accelerator, figure)})
    assert seconds(replace(job, accelerator=better)) <= seconds(job) * (1 + 1e-9)


def test_two_ranks_of_a_mesh_share_one_link_and_all_of_a_node_use_all():
    ascend = accelerators()["ascend-910b"]
    mesh = Network(ascend.model_copy(update={"link_latency_us": 0.0}), constants())
    switch = Network(ascend.model_copy(update={"link_latency_us": 0.0, "topology": "switch"}), constants())
    for collective in ("gather", "all_to_all"):
        pair, node = (
            getattr(mesh, collective)(1e9, Group(n, 1)) / getattr(switch, collective)(1e9, Group(n, 1)) for n in (2, 8)
        )
        assert pair == pytest.approx(7) and node == pytest.approx(1)
    assert mesh.send(1e9, 1) / switch.send(1e9, 1) == pytest.approx(7)
    assert mesh.gather(1e9, Group(4, 8)) == switch.gather(1e9, Group(4, 8))  # one rank of each node


def test_an_adapter_computes_no_gradients_of_frozen_weights():
    job = make_job(micro_batch=2, sequences=2)
    whole, adapter = (step_time(one, constants()) for one in (job, replace(job, adapter=True)))
    assert adapter.matmul / whole.matmul == pytest.approx(2 / 3, rel=0.02)
    assert adapter.attention == whole.attention and adapter.optimizer == 0


def test_attention_without_hoppers_instructions_is_slower_on_hopper_only():
    def ratio(accelerator):
        job = make_job(accelerator=accelerator)
        older = replace(job, software=replace(job.software, older_attention=True))
        return step_time(older, constants()).attention / step_time(job, constants()).attention

    assert ratio("a100-80gb") == pytest.approx(1) and ratio("h100") > 1.5


def test_parts_of_a_message_between_stages_are_sent_by_all_tensor_ranks():
    job = make_job(family="megatron-2021", tp=8, pp=4, dp=8)
    whole = replace(job, software=replace(job.software, sends_parts=False))
    assert step_time(whole, constants()).pipeline > 5 * step_time(job, constants()).pipeline


@settings(deadline=None, max_examples=40)
@given(jobs)
def test_memory_grows_with_the_micro_batch_and_falls_with_the_zero_stage(job):
    job = replace(job, sequences=4096)  # so that the micro-batches in flight are not limited by it

    def total(**changes):
        return peak_memory(job.with_parallelism(replace(job.parallelism, **changes)), constants()).total

    assert total(micro_batch=2 * job.parallelism.micro_batch) > total()
    assert total(zero=1) <= total(zero=0) and total(zero=2) <= total(zero=1)
    assert total(recompute="full") <= total(recompute="none")


def test_virtual_stages_shrink_the_bubble():
    one, four = (step_time(make_job(pp=8, stages=v, sequences=16), constants()).bubble for v in (1, 4))
    assert four == pytest.approx(one / 4)


def test_a_group_that_leaves_the_node_is_slower():
    inside = step_time(make_job(tp=8, family="nemo"), constants()).tensor
    small = make_job(tp=8, family="nemo")
    outside = step_time(
        replace(small, accelerator=small.accelerator.model_copy(update={"node": 4})), constants()
    ).tensor
    assert outside > 2 * inside


@pytest.mark.parametrize(
    ("parallelism", "message"),
    [
        ({"tp": 3}, r"heads \(32\) must be a multiple of tp \(3\); the nearest that divide are 2 and 4"),
        ({"ep": 2, "dp": 2}, "the model has no experts; set ep to 1"),
        ({"pp": 64}, "64 stages for 32 layers; use at most 32 stages"),
    ],
)
def test_a_model_that_cannot_be_divided_names_the_nearest_sizes(parallelism, message):
    with pytest.raises(UsageError, match=message):
        make_job(**parallelism).check()


def test_experts_take_memory_by_ep_and_time_by_tokens():
    shape = make_shape(d_ff=8192, experts={"count": 64, "active": 4, "d_ff": 2048})
    one, eight = (peak_memory(make_job(shape, dp=8, ep=ep, zero=0), constants()) for ep in (1, 8))
    assert one.parameters > 4 * eight.parameters
    assert step_time(make_job(shape, dp=8, ep=8), constants()).expert > 0


def test_experts_are_divided_over_tensor_ranks_where_no_other_ranks_share_them():
    shape = make_shape(d_ff=8192, experts={"count": 64, "active": 4, "d_ff": 2048})
    whole, divided = (peak_memory(make_job(shape, tp=tp, dp=8 // tp, zero=0), constants()) for tp in (1, 8))
    assert divided.parameters < 0.2 * whole.parameters
    assert make_job(shape, tp=2, dp=4, ep=4).expert_tp == 1
    assert make_job(shape, family="armillary", tp=2, dp=4).expert_tp == 1  # this trainer keeps experts whole

"""The planner against runs of this trainer on one NVIDIA H200 (docs/train.md, benchmarks/accelerator.py)."""

import pytest
from plan_jobs import make_job, make_shape

from armillary.plan.calibrate import factor_names
from armillary.plan.constants import constants
from armillary.plan.memory import peak_memory
from armillary.plan.step_time import step_time

# layers, width, heads, width of the feed-forward block, context length, sequences in a batch
SIZES = {"124M": (12, 768, 12, 2048, 1024, 32), "1.3B": (24, 2048, 16, 5504, 2048, 8)}


def job_of(size, family):
    layers, width, heads, wide, length, sequences = SIZES[size]
    shape = make_shape(n_layers=layers, d_model=width, n_heads=heads, n_kv_heads=heads, head_dim=width // heads,
                       d_ff=wide, vocab_size=50304)  # fmt: skip
    return make_job(shape, "h200", family, length, sequences, zero=0, micro_batch=sequences)


@pytest.mark.parametrize(
    ("size", "family", "tokens_per_s"),
    [
        ("124M", "armillary", 316_326),
        ("124M", "armillary-compiled", 485_247),
        ("1.3B", "armillary", 46_522),
        ("1.3B", "armillary-compiled", 59_647),
    ],
)
def test_speed_is_within_fifteen_per_cent_of_the_trainers(size, family, tokens_per_s):
    job = job_of(size, family)
    step = step_time(job, constants(), constants().factor(*factor_names(job)))
    assert job.tokens / step.total == pytest.approx(tokens_per_s, rel=0.15)


@pytest.mark.parametrize(("family", "gib"), [("armillary", 57.04), ("armillary-compiled", 47.0)])
def test_peak_of_live_tensors_is_within_five_per_cent_of_the_allocators(family, gib):
    assert peak_memory(job_of("1.3B", family), constants()).live * 1e9 / 2**30 == pytest.approx(gib, rel=0.05)

"""Memory against the trainer's dry run, which builds the program and counts its tensors."""

import pytest
from plan_jobs import make_job

from armillary.plan.constants import constants
from armillary.plan.memory import peak_memory
from armillary.recipe import ModelShape

# 8 layers of width 1024, 16 sequences of 1024 tokens: recorded by the test below, whose full form takes minutes.
SHAPE = ModelShape(n_layers=8, d_model=1024, n_heads=16, n_kv_heads=8, head_dim=64, d_ff=2816, vocab_size=32000)
CASES = {
    "shards": ({"dp": 4, "zero": 3, "micro_batch": 4}, "bf16", (0.160, 0.160, 0.320, 0.131, 2.678)),
    "parameters whole": ({"dp": 4, "zero": 2, "micro_batch": 4}, "bf16", (0.160, 0.160, 0.320, 0.320, 2.678)),
    "recompute": ({"dp": 4, "zero": 3, "micro_batch": 4, "recompute": "full"}, "bf16",
                  (0.160, 0.160, 0.320, 0.131, 1.535)),
    "recompute some": ({"dp": 4, "zero": 3, "micro_batch": 4, "recompute": "selective"}, "bf16",
                       (0.160, 0.160, 0.320, 0.131, 2.107)),
    "tensor": ({"dp": 2, "tp": 2, "zero": 3, "micro_batch": 8}, "bf16", (0.160, 0.160, 0.320, 0.066, 2.281)),
    "copies, fp32": ({"dp": 2, "zero": 0, "micro_batch": 4}, "fp32", (0.640, 0.640, 1.279, None, 3.911)),
}  # fmt: skip

# of all live tensors: while most activations are there, this trainer has no gradients
PEAKS = {"shards": 3.289, "parameters whole": 3.478, "recompute": 2.146, "recompute some": 2.718, "tensor": 2.826}


@pytest.mark.parametrize("case", PEAKS)
def test_the_peak_is_within_three_per_cent_of_the_dry_run(case):
    parallelism, precision, _ = CASES[case]
    job = make_job(SHAPE, family="armillary", length=1024, sequences=16, precision=precision, **parallelism)
    assert peak_memory(job, constants()).live == pytest.approx(PEAKS[case], rel=0.03)


@pytest.mark.parametrize("case", CASES)
def test_every_part_is_within_three_per_cent_of_the_dry_run(case):
    parallelism, precision, dry = CASES[case]
    sequences = 16 if precision == "bf16" else 8
    job = make_job(SHAPE, family="armillary", length=1024, sequences=sequences, precision=precision, **parallelism)
    found = peak_memory(job, constants())
    ours = (found.parameters, found.gradients, found.optimizer, found.gathered, found.activations + found.logits)
    for mine, theirs in zip(ours, dry, strict=True):
        if theirs is not None:
            assert mine == pytest.approx(theirs, rel=0.03)


# 8 layers of width 512, 16 sequences of 1024 tokens in bf16; peaks in GB recorded from the dry run of such layouts
SMALL = {
    "n_layers": 8,
    "d_model": 512,
    "n_heads": 8,
    "n_kv_heads": 4,
    "head_dim": 64,
    "d_ff": 1408,
    "vocab_size": 16000,
}
LATENT = {"kind": "latent", "kv_rank": 128, "rope_head_dim": 32, "value_head_dim": 64, "q_rank": 256}
EXPERTS = {"count": 8, "active": 2, "d_ff": 512, "shared_d_ff": 512}
LAYOUTS = {
    "pipeline": ({}, {"dp": 2, "pp": 2, "zero": 2}, 0.5247),
    "pipeline, recompute": ({}, {"dp": 2, "pp": 2, "zero": 2, "recompute": "full"}, 0.4532),
    "pipeline, recompute some": ({}, {"dp": 2, "pp": 2, "zero": 2, "recompute": "selective"}, 0.4890),
    "pipeline, no data": ({}, {"pp": 4, "zero": 2, "micro_batch": 2}, 0.7412),
    "pipeline of 8": ({}, {"dp": 2, "pp": 8, "zero": 2}, 0.3619),
    "two stages on a rank": ({}, {"dp": 2, "pp": 2, "stages": 2, "zero": 2}, 0.5794),
    "tensor and pipeline": ({}, {"dp": 2, "pp": 2, "tp": 2, "zero": 2}, 0.2440),
    "context": ({}, {"dp": 2, "cp": 2, "zero": 3, "micro_batch": 8}, 1.4594),
    "latent": ({"n_kv_heads": 8, "head_dim": 96, "attention": LATENT}, {"dp": 4, "zero": 3, "micro_batch": 4}, 1.6452),
    "latent, recompute some": ({"n_kv_heads": 8, "head_dim": 96, "attention": LATENT},
                               {"dp": 4, "zero": 3, "micro_batch": 4, "recompute": "selective"}, 1.2756),
    "latent, pipeline": ({"n_kv_heads": 8, "head_dim": 96, "attention": LATENT}, {"dp": 2, "pp": 2, "zero": 2}, 0.5490),
    "experts": ({"experts": EXPERTS}, {"dp": 4, "ep": 4, "zero": 3, "micro_batch": 4}, 1.8180),
    "experts, recompute some": ({"experts": EXPERTS},
                                {"dp": 4, "ep": 4, "zero": 3, "micro_batch": 4, "recompute": "selective"}, 1.4097),
    "experts, pipeline": ({"experts": EXPERTS}, {"dp": 4, "ep": 4, "pp": 2, "zero": 2}, 0.5543),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_peak_of_pipelines_latents_and_experts_is_that_of_the_dry_run(case):
    changes, parallelism, dry = LAYOUTS[case]
    shape = ModelShape.model_validate(SMALL | changes)
    job = make_job(shape, family="armillary", length=1024, sequences=16, **parallelism)
    assert peak_memory(job, constants()).live == pytest.approx(dry, rel=0.04)


# 4 layers of width 256, 16 sequences of 1024 tokens: more logits than are computed at once; recorded as above
WIDE = {"n_layers": 4, "d_model": 256, "n_heads": 4, "n_kv_heads": 4, "head_dim": 64, "d_ff": 704, "vocab_size": 64000}
BLOCKS = {
    "data": ({"dp": 4, "zero": 3, "micro_batch": 4}, 1.7481),
    "large micro-batch": ({"dp": 2, "zero": 3, "micro_batch": 8}, 2.0222),
    "tensor": ({"dp": 2, "tp": 2, "zero": 3, "micro_batch": 8}, 1.1855),
    "pipeline": ({"pp": 2, "zero": 2, "micro_batch": 8}, 1.9427),
    "pipeline, one block": ({"pp": 2, "zero": 2, "micro_batch": 2}, 1.7663),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_more_logits_than_are_computed_at_once_are_never_planned_too_small(case):
    """The planner counts all logits: with them it agrees with the allocator of an accelerator (test_own_runs.py)."""
    parallelism, recorded = BLOCKS[case]
    job = make_job(ModelShape.model_validate(WIDE), family="armillary", length=1024, sequences=16, **parallelism)
    assert peak_memory(job, constants()).live > 0.98 * recorded


def test_later_ranks_of_a_pipeline_with_virtual_stages_hold_fewer_micro_batches():
    shape = ModelShape.model_validate(SMALL | {"vocab_size": 512})
    jobs = [make_job(shape, length=1024, sequences=64, pp=4, stages=stages) for stages in (1, 2)]
    # 1F1B: 4 micro-batches on the first rank, 1 on the last; interleaved: (4 + 3 / 2) and (4 - 3 / 2)
    equal, interleaved = (peak_memory(job, constants()).activations for job in jobs)
    assert interleaved / equal == pytest.approx(5.5 / 4)


@pytest.mark.slow
def test_the_recorded_dry_run_is_still_what_it_finds():
    largest = dry(SHAPE, dp_shard=4)
    kinds = (largest.parameters, largest.gradients, largest.optimizer, largest.at_peak["gathered"],
             largest.at_peak["activations"])  # fmt: skip
    assert [kind / 1e9 for kind in kinds] == pytest.approx(CASES["shards"][2], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "layout"), [("data", {"dp_shard": 4}), ("tensor", {"dp_shard": 2, "tp": 2})])
def test_the_recorded_dry_run_of_large_vocabularies_is_still_what_it_finds(case, layout):
    assert dry(ModelShape.model_validate(WIDE), **layout).peak / 1e9 == pytest.approx(BLOCKS[case][1], rel=0.01)


def dry(shape, **layout):
    """The rank with the most memory in a dry run of 16 sequences."""
    from armillary.parallel import dry_run
    from armillary.recipe import Layout, MixturePhase, OptimizerSpec, RunSpec
    from armillary.train import LocalOptimizer

    spec = RunSpec(
        corpus="none", model=shape, context_length=1024, batch_sequences=16, steps=2, seed=1, precision="bf16",
        mixture=(MixturePhase(start_step=0, weights={"text": 1.0}),), optimizer=OptimizerSpec(lr=1e-3),
    )  # fmt: skip
    return dry_run(spec, Layout(**layout), LocalOptimizer, lambda *_: None).largest

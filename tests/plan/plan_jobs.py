"""Jobs for the tests of the planner."""

from armillary.plan.hardware_files import accelerators
from armillary.plan.job import Job, Parallelism
from armillary.plan.software_files import software
from armillary.recipe import ModelShape


def make_shape(**changes):
    sizes = {"n_layers": 32, "d_model": 4096, "n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "d_ff": 14336}
    return ModelShape.model_validate(sizes | {"vocab_size": 128256} | changes)


def make_job(shape=None, accelerator="h100", family="megatron-core", length=8192, sequences=128, precision="bf16", **p):
    return Job(
        shape or make_shape(),
        Parallelism(**p),
        length,
        sequences,
        accelerators()[accelerator],
        software(family),
        precision,
        accelerator_name=accelerator,
    )

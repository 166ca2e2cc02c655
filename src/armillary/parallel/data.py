"""Data parallel: parameters, gradients and optimizer state in shards (FSDP2), or in copies of shards (HSDP).

Each layer is gathered before it computes and resharded afterwards; the rest of the model is one more unit. Gradients
are summed over the ranks, not averaged, and the objective is divided by the number of ranks instead. One rule then
holds for dense parameters, for experts (whose tokens come from other ranks) and for backends without an average.
"""

from __future__ import annotations

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from armillary.model import Transformer, mixtures
from armillary.parallel.expert import shard_expert_data
from armillary.parallel.mesh import Grid


def shard_data(model: Transformer, grid: Grid, precision: str) -> None:
    """Shard the parameters of ``model`` over the data (and context) ranks.

    With ``precision`` bf16, parameters are gathered and used in bf16. The shards (master weights) and the reduction of
    gradients stay in fp32.
    """
    mixed = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    # a pipeline runs its stages many times per step, and gathering each time would cost too much
    reshard = grid.layout.reshard and grid.layout.pp == 1
    mesh = grid.sharded()
    for mixture in mixtures(model):
        shard_expert_data(mixture, grid, mixed, reshard)
    for layer in model.layers.values():
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard, mp_policy=mixed)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=mixed)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)

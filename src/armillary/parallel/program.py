"""One rank's part of a training program: from a specification and a layout to gradients.

The story, in the order that matters:

1. *Pipeline* cuts the model into stages; the rank builds its own ones, without memory for values (``meta`` device).
2. *Tensor* cuts matrices: first, since the dimensions after it work on what is left of a matrix on this rank.
3. *Context* puts its attention in the place of the model's.
4. *Data* shards what is left and gathers it layer by layer. Last, since it wraps whole layers as they have become.
5. Memory is taken, and every parameter's shard is cut from what the seed draws for the whole parameter: the numbers at
   the start are the same under every layout.

A step: ``gradients`` takes this rank's part of the batch through its stages and leaves the gradient of the whole
batch's objective in the shards; ``clip`` takes its norm over all ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from armillary.model import Transformer
from armillary.parallel.data import shard_data
from armillary.parallel.mesh import build_grid
from armillary.parallel.tensor import partial_gradients, shard_tensors
from armillary.recipe import Layout, RunSpec


class Program:
    """This rank's part of the run ``spec`` under ``layout``; the process group must be initialised.

    Raises:
        UsageError: the layout does not fit the run or the number of ranks.
    """

    def __init__(self, spec: RunSpec, layout: Layout, device: torch.device) -> None:
        layout.check(spec)
        self.spec, self.layout, self.device = spec, layout, device
        self.grid = build_grid(layout, device)
        with torch.device("meta"):
            self.parts = [Transformer(spec.model)]
        self.partial: list[nn.Parameter] = []
        for part in self.parts:
            if layout.tp > 1:
                shard_tensors(part, self.grid)
            if layout.data * layout.cp > 1:
                shard_data(part, self.grid, spec.precision)
            part.to_empty(device=device)
            self._init_weights(part)
            if layout.tp > 1:
                self.partial += partial_gradients(part, self.grid)
        self.count = layout.microbatch_count(spec)

    def _init_weights(self, part: Transformer) -> None:
        for name, parameter in part.named_parameters():
            values = part.init_values(name, parameter.shape, self.spec.seed)
            with torch.no_grad():
                if isinstance(parameter, DTensor):
                    size, offset = compute_local_shape_and_global_offset(
                        parameter.shape, parameter.device_mesh, parameter.placements
                    )
                    own = values[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))]
                    parameter.to_local().copy_(own)
                else:
                    parameter.copy_(values)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of this rank's stages under the names that they have in the whole model."""
        for part in self.parts:
            yield from part.named_parameters()

    def rows(self, batch: Tensor) -> list[Tensor]:
        """This rank's sequences of ``batch`` [batch_sequences, T + 1], one tensor for each micro-batch.

        A micro-batch of all data ranks together is what it is on a single rank, so that what depends on the sequences
        that are computed together does not depend on the layout.
        """
        return [part.chunk(self.layout.data)[self.grid.data_rank] for part in batch.chunk(self.count)]

    def gradients(self, batch: Tensor) -> Tensor:
        """Forward and backward over the whole ``batch`` [batch_sequences, T + 1] (int64, the same on every rank).

        Returns the mean cross entropy in nats over all ranks, still on the device.
        """
        parts = self.rows(batch)
        ranks = self.layout.data * self.layout.cp
        loss = torch.zeros((), device=self.device)
        (model,) = self.parts
        for number, part in enumerate(parts):
            tokens = part.to(self.device, non_blocking=True)
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(number == len(parts) - 1)
            with self.autocast():
                objective, entropy = model.objective(tokens[:, :-1], tokens[:, 1:], self.spec.optimizer.z_loss)
            (objective / (len(parts) * ranks)).backward()
            loss += entropy.detach() / len(parts)
        dist.all_reduce(loss, group=self.grid.tokens_group())
        for parameter in self.partial:
            dist.all_reduce(local(parameter.grad), group=self.grid.group("tp"))
        return loss / ranks

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of the matrix products where no data sharding sees to it."""
        if self.spec.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Scale all gradients so that their norm over all ranks is at most ``limit``; returns the norm before."""
        squares = torch.zeros((), device=self.device)
        for _, parameter in self.named_parameters():
            if parameter.grad is not None:
                squares += local(parameter.grad).square().sum() / copies(parameter, self.layout)
        dist.all_reduce(squares)
        norm = squares.sqrt()
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        for _, parameter in self.named_parameters():
            if parameter.grad is not None:
                local(parameter.grad).mul_(scale)
        return norm


def local(tensor: Tensor | None) -> Tensor:
    """This rank's part of a tensor; for one that is whole on every rank, all of it."""
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def copies(parameter: Tensor, layout: Layout) -> int:
    """On how many ranks of the same stage each number of ``parameter`` lies."""
    parts = 1
    if isinstance(parameter, DTensor):
        for dim, placement in enumerate(parameter.placements):
            parts *= parameter.device_mesh.size(dim) if placement.is_shard() else 1
    return layout.ranks // layout.pp // parts

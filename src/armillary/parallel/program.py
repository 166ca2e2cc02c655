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

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from armillary.parallel.context import shard_context, split_context
from armillary.parallel.data import shard_data
from armillary.parallel.mesh import build_grid
from armillary.parallel.pipeline import Pipeline, Stage, build_stages
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
        self.count = layout.microbatch_count(spec)
        positions = self._own(torch.arange(spec.context_length))
        with torch.device("meta"):
            self.parts = build_stages(spec, layout, self.grid.rank("pp"), positions)
        self.partial: list[nn.Parameter] = []
        for part in self.parts:
            if layout.tp > 1:
                shard_tensors(part, self.grid)
            if layout.cp > 1:
                shard_context(part, self.grid)
            if layout.data * layout.cp > 1:
                shard_data(part, self.grid, spec.precision)
            part.to_empty(device=device)
            self._init_weights(part)
            if layout.tp > 1:
                self.partial += partial_gradients(part, self.grid)
        self._entropy = torch.zeros((), device=device)
        self.pipeline: Pipeline | None = None
        if layout.pp > 1:
            tokens, hidden = self._between()
            self.pipeline = Pipeline(self.parts, self.grid, self.count, tokens, hidden, device, self._objective)

    def _between(self) -> tuple[Tensor, Tensor]:
        """What a stage takes: one micro-batch of token ids, or of the hidden state, without values."""
        sequences = self.spec.batch_sequences // (self.layout.data * self.count)
        length = self.spec.context_length // self.layout.cp
        tokens = torch.empty((sequences, length), dtype=torch.int64, device="meta")
        if self.layout.tp > 1 and self.layout.sequence_parallel:
            length //= self.layout.tp
        # the residual stream has the precision of the embedding, which is gathered in bf16 where data is sharded
        half = self.spec.precision == "bf16" and self.layout.data * self.layout.cp > 1
        size = (sequences, length, self.spec.model.d_model)
        dtype = torch.bfloat16 if half else torch.float32
        return tokens, torch.empty(size, dtype=dtype, device="meta", requires_grad=True)

    def _init_weights(self, part: Stage) -> None:
        for name, parameter in part.named_parameters():
            values = part.init_values(name, parameter.shape, self.spec.seed, self.spec.optimizer)
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
        tokens = torch.cat(self.rows(batch)).to(self.device, non_blocking=True)
        inputs, targets = self._own(tokens[:, :-1]), self._own(tokens[:, 1:])
        self._entropy = torch.zeros((), device=self.device)
        if self.pipeline is not None:
            self.pipeline.backward(inputs, targets)
        else:
            (model,) = self.parts
            for number, (x, wanted) in enumerate(zip(inputs.chunk(self.count), targets.chunk(self.count), strict=True)):
                if isinstance(model, FSDPModule):
                    model.set_requires_gradient_sync(number == self.count - 1)
                self._objective(model(x), wanted).backward()
        for parameter in self.partial:
            dist.all_reduce(local(parameter.grad), group=self.grid.group("tp"))
        # only the last stage has it, every rank of ``tp`` the same
        dist.all_reduce(self._entropy)
        return self._entropy / self.layout.tp

    def _own(self, x: Tensor) -> Tensor:
        """This rank's part of ``x`` [..., T] by context."""
        return split_context(x, self.grid.rank("cp"), self.layout.cp) if self.layout.cp > 1 else x

    def _objective(self, features: Tensor, targets: Tensor) -> Tensor:
        """This micro-batch's part of the objective of the whole batch; its part of the entropy is added up."""
        model = self.parts[-1]
        with model.autocast(features.device):
            objective, entropy = model.criterion(features, model.output_weight, targets, self.spec.optimizer.z_loss)
        parts = self.count * self.layout.data * self.layout.cp
        self._entropy += entropy.detach() / parts
        return objective / parts

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

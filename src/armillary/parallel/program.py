"""One rank's part of a training program: from a specification and a layout to gradients.

The order of construction matters:

1. *Pipeline* splits the model into stages. The rank builds only its own stages, on the ``meta`` device. A stage gets
   its adapters, which later steps treat as any other parameters; the rest of it is frozen.
2. *Tensor* splits matrices. It is first, because later steps work on this rank's part of a matrix.
3. *Expert* keeps this rank's experts and exchanges tokens with the ranks that hold the others.
4. *Context* replaces the model's attention with its own.
5. *Recompute* and *compile* wrap the changed layers.
6. *Data* shards the remaining parameters and gathers them layer by layer. It is last, because all earlier steps need
   the gathered parameters.
7. Memory is allocated. It is uninitialised until weights are loaded or ``init_weights`` runs. ``init_weights`` draws
   each whole parameter from the seed and keeps this rank's part, so initial weights are the same under every layout.

In a step, ``gradients`` runs this rank's part of the batch through its stages and leaves the gradient of the whole
batch's objective in the shards. ``clip`` limits the gradient's norm over all ranks. After the optimizer's step,
``balance`` updates the biases of experts from the load of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.utils import get_total_norm

from armillary.corpus import Batch
from armillary.model import (
    PairTargets,
    add_adapters,
    check_tokens,
    document_starts,
    kernels,
    linear_cross_entropy,
    mean_share,
    preference_sums,
    reduce_logits,
    set_batch_weight,
    slots_for,
    without_ignored,
)
from armillary.parallel.context import shard_context, split_context
from armillary.parallel.data import shard_data
from armillary.parallel.expert import balance_dealt_experts, shard_experts
from armillary.parallel.mesh import build_grid
from armillary.parallel.pipeline import Pipeline, Stage, build_stages, check_schedule
from armillary.parallel.recompute import recompute_all, recompute_cheap
from armillary.parallel.tensor import partial_gradients, shard_tensors
from armillary.recipe import Layout, Preference, RunSpec, measures


@dataclass(frozen=True)
class _Own:
    """This rank's part of a batch: inputs, targets, weights and starts of documents, each [B, own T].

    A batch of pairs also has ``documents`` and ``reference``, as in ``Batch``.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None
    starts: Tensor | None
    documents: Tensor | None = None
    reference: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> _Own:
        """Return a copy with ``change`` applied to each tensor."""
        others = (self.weights, self.starts, self.documents, self.reference)
        return _Own(change(self.inputs), change(self.targets), *(None if x is None else change(x) for x in others))

    def chunk(self, number: int, count: int) -> _Own:
        """The ``number``-th of ``count`` equal parts of the sequences."""
        return self.map(lambda x: x.chunk(count)[number])

    def about(self) -> dict[str, Tensor]:
        """The further arguments of a stage, by name."""
        return {name: x for name, x in (("starts", self.starts), ("weights", self.weights)) if x is not None}

    def wanted(self) -> Tensor:
        """Targets and the loss's further inputs as one tensor, [B, T] or [B, T, 2 or 4].

        A pipeline schedule passes on only one tensor. It is fp64, which is exact for every token id.
        """
        if self.weights is None:
            return self.targets
        others = () if self.documents is None or self.reference is None else (self.documents, self.reference)
        return torch.stack([x.double() for x in (self.targets, self.weights, *others)], dim=-1)


class Program:
    """This rank's part of the run ``spec`` under ``layout``; the process group must be initialised.

    Raises:
        UsageError: the layout does not fit the run or the number of ranks.
    """

    def __init__(self, spec: RunSpec, layout: Layout, device: torch.device) -> None:
        layout.check(spec)
        check_schedule(layout)
        self.spec, self.layout, self.device = spec, layout, device
        self.grid = build_grid(layout, device)
        self.count = layout.microbatch_count(spec)
        with torch.device("meta"):
            self.parts = build_stages(spec, layout, self.grid.rank("pp"))
            for part in self.parts:
                if spec.adapter is not None:
                    add_adapters(part, spec.adapter)
        self.partial: list[nn.Parameter] = []
        self.compiles = layout.compile and (device.type != "cpu" or kernels(torch.float32) is None)  # in the first step
        for part in self.parts:
            if layout.tp > 1:
                shard_tensors(part, self.grid)
            shard_experts(part, self.grid)
            if layout.cp > 1:
                shard_context(part, self.grid)
            if layout.recompute == "full":
                recompute_all(part)
            elif layout.recompute == "selective":
                recompute_cheap(part)
            # the C kernels of a CPU are fused already
            if self.compiles:
                for layer in part.layers.values():
                    layer.compile()
                if part.criterion is linear_cross_entropy:
                    part.criterion = partial(linear_cross_entropy, reduce=torch.compile(reduce_logits, dynamic=False))
            # experts are whole, so for them the tp ranks are data ranks and their parameters are sharded
            if layout.data * layout.cp > 1 or (layout.tp > 1 and spec.model.experts is not None):
                shard_data(part, self.grid, spec.precision)
            part.to_empty(device=device)
            if layout.tp > 1:
                self.partial += partial_gradients(part, self.grid)
        self.measured = torch.zeros(len(measures(spec.objective)), device=device)
        self._sums = torch.zeros(1 + len(self.measured), device=device)
        self._batch = Batch(torch.empty(0, 1))
        self.pipeline: Pipeline | None = None
        if layout.pp > 1:
            self.pipeline = Pipeline(self.parts, self.grid, self.count, device, self._objective)

    def init_weights(self) -> None:
        """Draw the whole model's initial weights from ``spec.seed`` and keep this rank's part."""
        for part in self.parts:
            for buffer in part.buffers():  # the biases of experts
                buffer.zero_()
            for name, parameter in part.named_parameters():
                self._init(part, name, parameter)

    def _init(self, part: Stage, name: str, parameter: nn.Parameter) -> None:
        cuts = [slice(0, size) for size in parameter.shape]
        if isinstance(parameter, DTensor):
            size, offset = compute_local_shape_and_global_offset(
                parameter.shape, parameter.device_mesh, parameter.placements
            )
            cuts = [slice(o, o + n) for o, n in zip(offset, size, strict=True)]
        experts = None
        if part.roles[name].cut == "experts":
            experts, cuts[0] = range(cuts[0].start, cuts[0].stop), slice(None)
        values = part.init_values(name, parameter.shape, self.spec.seed, self.spec.optimizer, experts)
        with torch.no_grad():
            local(parameter).copy_(values[tuple(cuts)])

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of this rank's stages, under their names in the whole model."""
        for part in self.parts:
            yield from part.named_parameters()

    def rows(self, batch: Tensor) -> list[Tensor]:
        """This rank's sequences of ``batch`` [batch_sequences, T + 1], one tensor for each micro-batch.

        A micro-batch over all data ranks holds the same sequences as on a single rank. Results that depend on which
        sequences are computed together are therefore the same under every layout.
        """
        return [part.chunk(self.layout.data)[self.grid.data_rank] for part in batch.chunk(self.count)]

    def gradients(self, batch: Batch[Tensor]) -> Tensor:
        """Run forward and backward over the whole ``batch``, which is the same on every rank.

        Returns the mean loss in nats over all ranks, still on the device. ``measured`` then holds the means of the
        objective's further measurements.

        Raises:
            TokenError: the batch is in host memory and has a token outside of the vocabulary; raised on all ranks.
        """
        check_tokens(without_ignored(batch.tokens, batch.weights), self.spec.model.vocab_size)
        own = self._own(batch.map(lambda x: torch.cat(self.rows(x))))
        self._batch = batch
        for part in self.parts:
            set_batch_weight(part, batch.predictions)
        self._sums = torch.zeros_like(self._sums)
        if self.pipeline is not None:
            self.pipeline.backward(own.inputs, own.wanted(), own.about())
        else:
            (model,) = self.parts
            for number in range(self.count):
                piece = own.chunk(number, self.count)
                if isinstance(model, FSDPModule):
                    last = number == self.count - 1
                    model.set_requires_gradient_sync(last)
                    model.set_reshard_after_backward(last or self.layout.reshard)
                self._objective(model(piece.inputs, **piece.about()), piece.wanted()).backward()
        if self.partial:
            whole = torch.cat([local(parameter.grad).flatten() for parameter in self.partial])
            dist.all_reduce(whole, group=self.grid.group("tp"))
            parts = whole.split([local(parameter).numel() for parameter in self.partial])
            for parameter, summed in zip(self.partial, parts, strict=True):
                local(parameter.grad).copy_(summed.view_as(local(parameter)))
        # only the last stage has a nonzero sum, the same on every rank of ``tp``
        dist.all_reduce(self._sums)
        means = self._sums / self.layout.tp
        self.measured = means[1:]
        return means[0]

    @torch.no_grad()
    def entropy(self, tokens: Tensor) -> Tensor:
        """Mean cross entropy in nats over ``tokens`` [n, T + 1] (int64, the same on every rank), for any n.

        The result is the same on every rank and still on the device. Sequences are computed in micro-batches of a
        step's size.

        Raises:
            TokenError: as ``gradients``.
        """
        check_tokens(tokens, self.spec.model.vocab_size)
        data = self.layout.data
        at_a_time = max(1, self.spec.batch_sequences // (data * self.count))
        missing = -len(tokens) % (data * at_a_time)
        batches = torch.cat((tokens, tokens[:1].expand(missing, -1))).split(data * at_a_time)
        own = self._own(Batch(torch.cat([batch.chunk(data)[self.grid.data_rank] for batch in batches])))
        micro_batches = own.inputs.split(at_a_time)
        model = self.parts[-1]
        total = torch.zeros((), device=self.device)
        for number, features in (
            self.pipeline.features(micro_batches) if self.pipeline else enumerate(map(model, micro_batches))
        ):
            first = (number * data + self.grid.data_rank) * at_a_time
            real = min(at_a_time, len(tokens) - first)
            if real > 0:
                wanted = own.targets[number * at_a_time :][:real]
                with model.autocast(self.device):
                    _, entropy = model.criterion(features[:real], model.output_weight, wanted, 0.0)
                    total += real * (entropy / wanted.numel()).float()
        # parameters gathered now would be stale after the next step
        for part in self.parts:
            for module in part.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        dist.all_reduce(total)
        return total / (len(tokens) * self.layout.cp * self.layout.tp)

    def _own(self, batch: Batch[Tensor]) -> _Own:
        """This rank's part of its sequences ``batch``, split by context."""
        here = batch.map(lambda x: x.to(self.device, non_blocking=True))
        tokens = without_ignored(here.tokens, here.weights)
        positions = torch.arange(tokens.shape[1] - 1)
        starts = None if here.documents is None else document_starts(here.documents)
        # torch 2.11 compares the strides of a pipeline's input with those at construction
        own = _Own(tokens[:, :-1].contiguous(), tokens[:, 1:], here.weights, starts)
        if here.reference is not None:
            own = replace(own, documents=here.documents, reference=here.reference)
        if self.layout.cp > 1:
            rank, ranks = self.grid.rank("cp"), self.layout.cp
            own = own.map(lambda x: split_context(x, rank, ranks))
            positions = split_context(positions, rank, ranks)
            for part in self.parts:  # no rank sees how long the whole sequence is
                part.turn_as(part.shape.at_length(tokens.shape[1] - 1))
        for part in self.parts:
            part.positions = positions
        return own

    def _objective(self, features: Tensor, wanted: Tensor) -> Tensor:
        """Return this micro-batch's part of the whole batch's objective, and add its measurements to the sums."""
        model, preference = self.parts[-1], self.spec.objective
        with model.autocast(self.device):
            if isinstance(preference, Preference):
                objective, measured = preference_sums(model, features, self._pair_targets(wanted), preference)
                # every cp rank computed the same pairs
                measured = measured / self.layout.cp
            else:
                targets, weights = (
                    (wanted, None) if wanted.ndim == 2 else (wanted[..., 0].long(), wanted[..., 1].float())
                )
                objective, entropy = model.criterion(
                    features, model.output_weight, targets, self.spec.optimizer.z_loss, weights
                )
                measured = entropy.detach()[None]
        parts = self.count * self.layout.data * self.layout.cp
        self._sums += mean_share(measured, self._batch.weight, parts)
        return mean_share(objective, self._batch.weight, parts)

    def _pair_targets(self, wanted: Tensor) -> PairTargets:
        """Convert ``wanted`` [B, own T, 4] of a batch of pairs to the form of the preference loss."""
        targets, weights, documents, reference = wanted.unbind(-1)
        assert self._batch.answers is not None
        chosen, _ = self._batch.answers
        return PairTargets(
            targets.long(), weights.float(), documents.long(), reference.float(),
            slots_for(wanted.shape[1] * self.layout.cp), self._batch.weight, chosen, self._add_up,
        )  # fmt: skip

    def _add_up(self, part: Tensor) -> Tensor:
        """The sum of ``part`` over the ranks that hold parts of the same sequences."""
        if self.layout.cp > 1:
            dist.all_reduce(part, group=self.grid.group("cp"))
        return part

    def balance(self) -> None:
        """Update the biases of experts from the load of the last ``gradients``; call after the optimizer's step."""
        for part in self.parts:
            balance_dealt_experts(part, self.grid)

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Scale all gradients so that their norm over all ranks is at most ``limit``; returns the norm before."""
        gradients: dict[int, list[Tensor]] = {}
        for _, parameter in self.named_parameters():
            if parameter.grad is not None:
                gradients.setdefault(copies(parameter, self.layout), []).append(local(parameter.grad))
        square = torch.zeros((), device=self.device)
        for times, tensors in gradients.items():
            square += get_total_norm(tensors).square() / times
        dist.all_reduce(square)
        norm = square.sqrt()
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        for tensors in gradients.values():
            torch._foreach_mul_(tensors, scale)
        return norm


def local(tensor: Tensor | None) -> Tensor:
    """This rank's part of a tensor, or the whole tensor if it is not a DTensor."""
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def copies(parameter: Tensor, layout: Layout) -> int:
    """The number of ranks of the same stage that hold a copy of each element of ``parameter``."""
    parts = 1
    if isinstance(parameter, DTensor):
        for dim, placement in enumerate(parameter.placements):
            # parameters have no partial placements, so any other placement is some kind of shard
            parts *= 1 if placement.is_replicate() else parameter.device_mesh.size(dim)
    return layout.ranks // layout.pp // parts

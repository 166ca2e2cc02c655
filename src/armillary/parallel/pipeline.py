"""Pipeline parallel: each rank holds consecutive layers, and micro-batches pass through them one after another.

The schedules are PyTorch's: GPipe (Huang et al. 2019, arXiv 1811.06965), 1F1B and interleaved 1F1B (Narayanan et al.
2021, arXiv 2104.04473, figure 4), zero-bubble ZB1P and ZB-V (Qi et al. 2023, arXiv 2401.10241), DualPipeV (DeepSeek-AI
2024, arXiv 2412.19437). Stages by rank, for 2 ranks with 2 stages each:

==========================  =====================  =====================
\\                           rank 0                 rank 1
==========================  =====================  =====================
interleaved, zero-bubble    stages 0 and 2         stages 1 and 3
zb-v, dualpipe-v            stages 0 and 3         stages 1 and 2
==========================  =====================  =====================

Trade-offs: stages exchange one tensor of a shape known in advance, so no extra pass is needed to infer shapes. The
schedule's loss function takes features, so the full logits never exist at once. PyTorch's V schedules cannot evaluate,
and its other schedules send gradients that evaluation does not need. The forward pass without gradients therefore has
its own schedule here, in which every rank computes at most one micro-batch per tick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.torch_version import TorchVersion

from armillary.model import Part, Transformer
from armillary.parallel.mesh import Grid
from armillary.recipe import Layout, RunSpec, UsageError

# By name, as they come with a compiler that takes two seconds to import.
_SCHEDULES = {
    "gpipe": "ScheduleGPipe",
    "1f1b": "Schedule1F1B",
    "interleaved": "ScheduleInterleaved1F1B",
    "zero-bubble": "ScheduleInterleavedZeroBubble",
    "zb-v": "ScheduleZBVZeroBubble",
    "dualpipe-v": "ScheduleDualPipeV",
}


class Stage(Transformer):
    """A part of the model as one pipeline stage: maps token ids or a hidden state to a hidden state or features.

    ``positions`` [T] are the positions of this rank's tokens in their sequences; set before the first pass.
    """

    def __init__(self, spec: RunSpec, part: Part) -> None:
        super().__init__(spec.model, part)
        self.precision = spec.precision
        self.positions = torch.empty(0, dtype=torch.int64, device="cpu")

    def forward(self, x: Tensor, starts: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """As ``features``, in the run's precision."""
        with self.autocast(x.device):
            return self.features(x, self.positions, starts, weights)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision of the matrix products, set in the forward pass; the backward pass inherits it."""
        # without the autocast cache: it would hold every weight twice until the last layer is done, and recompute runs
        # after the cache is cleared
        half = self.precision == "bf16"
        return torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False)


def check_schedule(layout: Layout) -> None:
    """Check that the installed PyTorch runs the layout's schedule.

    Before 2.13, ``stage_backward_weight`` cannot take the gradient of a function written in Python. The model has many
    of these.

    Raises:
        UsageError: the schedule needs a newer PyTorch.
    """
    if layout.splits_backward and TorchVersion(torch.__version__) < "2.13":
        raise UsageError(
            f"layout: schedule '{layout.schedule}' needs PyTorch 2.13, but {torch.__version__} is installed; use "
            "schedule '1f1b' or 'interleaved', or install PyTorch 2.13"
        )


def build_stages(spec: RunSpec, layout: Layout, rank: int) -> list[Stage]:
    """The stages of the ``rank``-th rank of a pipeline, first to last, on the current default device."""
    layers = layout.stage_layers(spec.model.n_layers)
    return [
        Stage(spec, Part(layers[index], begins=index == 0, ends=index == len(layers) - 1))
        for index in range(layout.stages)
        if layout.stage_rank(index) == rank
    ]


class Pipeline:
    """This rank's stages, and the exchange between stages in a step of ``count`` micro-batches.

    ``loss`` maps a micro-batch's features and targets to a number, whose gradient is accumulated.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        grid: Grid,
        count: int,
        device: torch.device,
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.layout, self.group, self.rank = grid.layout, grid.group("pp"), grid.rank("pp")
        indices = [i for i in range(self.layout.stages) if self.layout.stage_rank(i) == self.rank]
        self.stages = dict(zip(indices, stages, strict=True))
        self.count, self.device, self.loss = count, device, loss
        self._schedule: Any = None
        self._size = torch.Size()

    def backward(self, inputs: Tensor, targets: Tensor, about: dict[str, Tensor]) -> None:
        """Run forward and backward for all micro-batches: token ids and targets, each [count * B, T].

        ``about`` holds the further arguments of every stage, [count * B, T] each.
        """
        if inputs.shape != self._size:
            self._schedule, self._size = self._build(inputs[: len(inputs) // self.count]), inputs.shape
        arguments = (inputs,) if 0 in self.stages else ()
        self._schedule.step(*arguments, target=targets, return_outputs=False, **about)

    def _build(self, tokens: Tensor) -> Any:
        from torch.distributed import pipelining

        hidden = self._hidden(tokens, "meta").requires_grad_()
        stages = [
            pipelining.PipelineStage(
                stage,
                index,
                self.layout.stages,
                self.device,
                input_args=tokens if index == 0 else hidden,
                output_args=hidden,
                group=self.group,
            )
            for index, stage in self.stages.items()
        ]
        single = self.layout.schedule in ("gpipe", "1f1b")
        kind = getattr(pipelining, _SCHEDULES[self.layout.schedule])
        return kind(stages[0] if single else stages, self.count, loss_fn=self.loss, scale_grads=False)

    def _hidden(self, tokens: Tensor, device: torch.device | str) -> Tensor:
        """The tensor that stages exchange for this rank's ``tokens`` [B, T], uninitialised."""
        sequences, length = tokens.shape
        if self.layout.tp > 1 and self.layout.sequence_parallel:
            length //= self.layout.tp
        stage = next(iter(self.stages.values()))
        # the residual stream has the embedding's precision, and FSDP gathers the embedding in bf16
        half = stage.precision == "bf16" and isinstance(stage, FSDPModule)
        dtype = torch.bfloat16 if half else torch.float32
        return torch.empty((sequences, length, stage.shape.d_model), dtype=dtype, device=device)

    def features(self, inputs: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Run the forward pass of any number of micro-batches; on the last stage's rank, yield index and features.

        In each tick a rank computes at most one micro-batch in one stage. A micro-batch enters stage s exactly one tick
        after stage s - 1.
        """
        pp, last = self.layout.pp, self.layout.stages - 1
        plan: dict[tuple[int, int], tuple[int, int]] = {}
        for stage in range(last + 1):
            for number in range(len(inputs)):
                rounds = number // pp * self.layout.stages + number % pp + stage
                tick = stage + 2 * number if self.layout.is_v else rounds
                plan[tick, self.layout.stage_rank(stage)] = stage, number
        arrived = None
        for tick in range(max(tick for tick, _ in plan) + 1):
            talk: list[dist.P2POp] = []
            output = None
            if (tick, self.rank) in plan:
                stage, number = plan[tick, self.rank]
                output = self.stages[stage](inputs[number] if stage == 0 else arrived)
                if stage == last:
                    yield number, output
                elif self.layout.stage_rank(stage + 1) != self.rank:
                    talk.append(self._talk(dist.isend, output.contiguous(), stage + 1))
            arrived = output
            if (tick + 1, self.rank) in plan:
                stage, _ = plan[tick + 1, self.rank]
                if stage > 0 and self.layout.stage_rank(stage - 1) != self.rank:
                    arrived = self._hidden(inputs[0], self.device)
                    talk.append(self._talk(dist.irecv, arrived, stage - 1))
            for work in dist.batch_isend_irecv(talk) if talk else ():
                work.wait()

    def _talk(self, operation: Callable[..., Any], tensor: Tensor, stage: int) -> dist.P2POp:
        return dist.P2POp(operation, tensor, group=self.group, group_peer=self.layout.stage_rank(stage))

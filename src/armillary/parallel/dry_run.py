"""A dry run: the memory and communication that one rank of a training program needs, computed without a cluster.

The rank's own ``Program`` is built in a process group of the cluster's size, whose other ranks do not exist (PyTorch's
``fake`` backend). It takes one real step: forward and backward of its stages in the order of the pipeline's schedule,
collectives, clipping, optimizer. Only the arithmetic is left out (``dry_mode``).

Every phase with a different context length or batch is rehearsed, because a short context with many sequences may need
more memory than a long one with few. One rank is rehearsed per differing pipeline stage: the first in all other
dimensions, whose shards are the largest if shards are unequal.

Tensors kept between forward and backward are those of an accelerator's operators, not a CPU's. RMSNorm keeps its input
and one number per row (``dry_mode``). Attention keeps q, k, v, its output and one number per query and head (PyTorch's
flash attention, which the CPU has too). Everything else is composed of the same operators on both.

Trade-offs:

- Memory is the sum of the live storages, and a device needs some per cent more. An allocator rounds up and leaves gaps,
  kernels and libraries need work space, and overlap of gather and compute holds the next layer's parameters earlier.
- Routers are assumed to be balanced.
- Every objective is rehearsed as plain text. Weights and documents are small beside activations. Preference pairs pass
  over the output matrix a second time, in blocks of the same size and without gradients; the sums over ranks of that
  pass are not counted.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from armillary.corpus import Batch
from armillary.model.operators import use_large_blocks
from armillary.parallel.dry_mode import ACTIVATIONS, GATHERED, OPTIMIZER, WithoutNumbers, size
from armillary.parallel.mesh import Grid
from armillary.parallel.program import Program, local
from armillary.recipe import DIMENSIONS, Layout, NextToken, RunSpec


class Optimizer(Protocol):
    """The optimizer's interface for a step; its state exists from the beginning."""

    @property
    def state(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by parameter name and key."""

    def step(self, lr: float) -> None:
        """Take a step at the learning rate ``lr`` with the parameters' gradients."""


Progress = Callable[[str, float, float, str], None]
BuildOptimizer = Callable[[Iterable[tuple[str, nn.Parameter]], RunSpec], Optimizer]


@dataclass(frozen=True)
class Collective:
    """A collective that runs ``count`` times per step: ``nbytes`` (whole vector) over ``group`` of ``ranks``."""

    kind: str
    group: str
    ranks: int
    count: int
    nbytes: int


@dataclass(frozen=True)
class RankReport:
    """One rank's memory in bytes and its collectives of one step, in the phase of the run from ``first_step`` on.

    ``parameters``, ``gradients`` and ``optimizer`` are the bytes that the rank keeps between the parts of a step;
    ``numbers`` is its parameter count. ``most`` is the peak of each kind alone. ``peak`` is the peak of the total, and
    ``at_peak`` its parts by kind at that moment.
    """

    rank: int
    place: dict[str, int]
    first_step: int
    context_length: int
    batch_sequences: int
    microbatches: int
    layers: list[list[int]]
    numbers: int
    parameters: int
    gradients: int
    optimizer: int
    most: dict[str, int]
    peak: int
    at_peak: dict[str, int]
    collectives: list[Collective]
    seconds: float
    own_memory: int


@dataclass(frozen=True)
class DryRun:
    """Reports of the differing ranks in each differing phase, and their largest memory in bytes (``peak``).

    ``microbatches`` belongs to the phase with the peak. ``seconds`` and ``own_memory`` are the cost of the dry run
    itself: wall time, and the peak memory in bytes of all processes together.
    """

    ranks: int
    parameters: int
    microbatches: int
    peak: int
    reports: list[RankReport]
    seconds: float
    own_memory: int

    @property
    def largest(self) -> RankReport:
        """The report with the largest peak over all ranks and phases."""
        return max(self.reports, key=lambda report: report.peak)


def dry_run(
    spec: RunSpec, layout: Layout, build_optimizer: BuildOptimizer, progress: Progress = lambda *_: None
) -> DryRun:
    """Rehearse a step of each phase of ``spec`` on each differing rank of ``layout``.

    ``build_optimizer`` must be a module-level function, because it is called in another process. ``progress`` is called
    with ("dry run", ranks done, ranks in all, a note on the last finished phase).

    Raises:
        UsageError: the layout does not fit the run.
        ArmillaryError: the program reads values that a dry run does not have.
    """
    layout.check(spec)
    begin = time.perf_counter()
    ranks = [place * (layout.ranks // layout.pp) for place in differing(spec, layout)]
    tasks = [(run, layout, build_optimizer, rank, first) for first, run in phases(spec) for rank in ranks]
    workers = min(len(tasks), os.cpu_count() or 1)
    # one process per rank, because PyTorch keeps state of a process group after destroying it
    with ProcessPoolExecutor(workers, get_context("spawn"), max_tasks_per_child=1) as pool:
        progress("dry run", 0, len(tasks), f"{len(tasks)} ranks and phases, {workers} at a time")
        futures = [pool.submit(rehearse, *task) for task in tasks]
        for done, future in enumerate(as_completed(futures), 1):
            if future.exception() is None:
                report = future.result()
                note = f"rank {report.rank}, steps from {report.first_step} on"
                progress("dry run", done, len(tasks), note)
        reports = [future.result() for future in futures]
    most = sorted((report.own_memory for report in reports), reverse=True)[:workers]
    largest = max(reports, key=lambda report: report.peak)
    return DryRun(
        ranks=layout.ranks,
        parameters=spec.model.parameters,
        microbatches=largest.microbatches,
        peak=largest.peak,
        reports=reports,
        seconds=time.perf_counter() - begin,
        own_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + sum(most),
    )


def phases(spec: RunSpec) -> list[tuple[int, RunSpec]]:
    """The phases of a run whose steps differ in size: the first step of each, and the run from that step on."""
    found: dict[tuple[int, int], tuple[int, RunSpec]] = {}
    for first, end, run in spec.stretches():
        if end > first:
            found.setdefault((run.context_length, run.batch_sequences), (first, run))
    return list(found.values())


def differing(spec: RunSpec, layout: Layout) -> list[int]:
    """Pipeline ranks to rehearse: both ends, the first between them, and the one with most layers.

    Later ranks have fewer micro-batches in flight, so the first rank between the ends has the most of them.
    """
    layers = [0] * layout.pp
    for stage, its in enumerate(layout.stage_layers(spec.model.n_layers)):
        layers[layout.stage_rank(stage)] += len(its)
    return sorted({0, min(1, layout.pp - 1), layout.pp - 1, layers.index(max(layers))})


def rehearse(
    spec: RunSpec, layout: Layout, build_optimizer: BuildOptimizer, rank: int, first_step: int = 0
) -> RankReport:
    """Rehearse the step ``first_step`` of ``rank``, in a fresh process without a process group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

    begin = time.perf_counter()
    spec = spec.model_copy(update={"objective": NextToken()})
    os.environ["ARMILLARY_NATIVE"] = "0"  # the native CPU kernels would compute
    use_large_blocks()  # the block size of logits on an accelerator
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.ranks)
    device = torch.device("cpu")
    with WithoutNumbers() as mode:
        program = Program(spec, layout, device)
        mode.phase = OPTIMIZER
        optimizer = build_optimizer(program.named_parameters(), spec)
        mode.phase = GATHERED
        for part in program.parts:
            units = [module for module in part.modules() if isinstance(module, FSDPModule)]
            for unit in units:
                unit.unshard()
            for parameter in filter(lambda p: p.requires_grad, part.parameters()):
                parameter.register_post_accumulate_grad_hook(mode.gradient)
            for unit in units:
                unit.reshard()
        mode.phase = ACTIVATIONS
        mode.storages.restart()
        mode.collectives.clear()
        tokens = torch.zeros((1, 1), dtype=torch.int64).expand(spec.batch_sequences, spec.context_length + 1)
        program.gradients(Batch(tokens))
        program.clip(spec.optimizer.grad_clip)
        gradients = sum(size(local(p.grad)) for _, p in program.named_parameters() if p.requires_grad)
        mode.phase = OPTIMIZER
        optimizer.step(spec.lr(first_step))
    parameters = [local(parameter) for _, parameter in program.named_parameters()]
    names = group_names(program.grid)
    return RankReport(
        rank=rank,
        place={name: program.grid.rank(name) for name in DIMENSIONS},
        first_step=first_step,
        context_length=spec.context_length,
        batch_sequences=spec.batch_sequences,
        microbatches=program.count,
        layers=[list(part.part.layers) for part in program.parts],
        numbers=sum(parameter.numel() for parameter in parameters),
        parameters=size(parameters),
        gradients=gradients,
        optimizer=sum(size(list(tensors.values())) for tensors in optimizer.state.values()),
        most=mode.storages.most,
        peak=mode.storages.peak,
        at_peak=mode.storages.at_peak,
        collectives=[
            Collective(kind, *names[group], count, nbytes)
            for (kind, group, nbytes), count in sorted(mode.collectives.items())
        ],
        seconds=time.perf_counter() - begin,
        own_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def group_names(grid: Grid) -> dict[str, tuple[str, int]]:
    """Map the name of each process group of ``grid`` to the dimensions that it spans and its number of ranks."""
    world = dist.group.WORLD
    assert world is not None
    names: dict[str, tuple[str, int]] = {world.group_name: ("all", grid.layout.ranks)}
    for name in DIMENSIONS:
        names[grid.group(name).group_name] = (name, grid.size(name))
    for group, spanned in (
        (grid.shard, ("dp_shard", "ep", "cp")),
        (grid.experts_shard, ("dp_shard", "cp", "tp")),
    ):
        inner = group.get_group()
        wide = [name for name in spanned if grid.size(name) > 1]
        names.setdefault(inner.group_name, (" x ".join(wide) or spanned[0], inner.size()))
    return names

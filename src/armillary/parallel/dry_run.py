"""A dry run: what one rank of a training program needs in memory and sends to others, without a cluster to run it.

The rank's own ``Program`` is built in a process group of the cluster's size whose other ranks are not there (PyTorch's
``fake`` backend), and takes one true step: forward and backward of its stages in the order of its pipeline's schedule,
collectives, clipping, optimizer. Only the arithmetic is left out (``dry_mode``).

Every phase of a run is rehearsed that has another context length or batch: a short context with many sequences may hold
more than a long one with few. Of the ranks, those are looked at that differ in their stage of the pipeline; of each
stage the one that is first in all other dimensions, whose shards are the largest where they are not equal.

What stays between forward and backward is what an accelerator's operators keep, not a CPU's: RMSNorm its input and one
number per row (``dry_mode``), attention q, k, v, its output and one number per query and head (PyTorch's flash
attention, which the CPU has too). The rest is composed of the same operators on both.

Trade-offs: memory is the sum of the live storages. An allocator rounds up and leaves gaps, kernels and libraries have
work space of their own, and an accelerator that computes while it gathers holds the next layer's parameters a little
earlier, so a device needs some per cent more. Routers are taken to be balanced. Every objective is rehearsed as plain
text: weights and documents are small beside activations, and the second pass over the output matrix that pairs of
answers take has the blocks of the first, but no gradients; its sums over ranks are not counted.
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
    """What a step needs of the optimizer, whose state is there from the beginning."""

    @property
    def state(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by name of the parameter and key."""

    def step(self, lr: float) -> None:
        """A step at the learning rate ``lr`` along the parameters' gradients."""


Progress = Callable[[str, float, float, str], None]
BuildOptimizer = Callable[[Iterable[tuple[str, nn.Parameter]], RunSpec], Optimizer]


@dataclass(frozen=True)
class Collective:
    """``count`` times in a step ``nbytes`` (of the whole vector) over ``group`` of ``ranks``."""

    kind: str
    group: str
    ranks: int
    count: int
    nbytes: int


@dataclass(frozen=True)
class RankReport:
    """One rank's memory in bytes and its collectives of one step, in the phase of the run from ``first_step`` on.

    ``parameters`` (of which there are ``numbers``), ``gradients`` and ``optimizer`` are what the rank keeps between the
    parts of a step. ``most`` is the most that there was of each kind at any time in the step, and ``peak`` the most of
    all together, when there was of each ``at_peak``.
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
    """The ranks that differ in each phase that does, and the most memory that any of them needs at any time (``peak``).

    ``microbatches`` are those of a step of that phase. What it took to find out: wall time, and the most memory of all
    processes together.
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
        """The rank that needs most memory, in the phase in which it does."""
        return max(self.reports, key=lambda report: report.peak)


def dry_run(
    spec: RunSpec, layout: Layout, build_optimizer: BuildOptimizer, progress: Progress = lambda *_: None
) -> DryRun:
    """Rehearse a step of each phase of ``spec`` on each of the ranks of ``layout`` that differ.

    ``build_optimizer`` must have a name in a module: it is called in another process. ``progress`` is called with
    ("dry run", ranks done, ranks in all, a note on the phase that was rehearsed last).

    Raises:
        UsageError: the layout does not fit the run.
        ArmillaryError: the program cannot be carried out without its numbers.
    """
    layout.check(spec)
    begin = time.perf_counter()
    ranks = [place * (layout.ranks // layout.pp) for place in differing(spec, layout)]
    tasks = [(run, layout, build_optimizer, rank, first) for first, run in phases(spec) for rank in ranks]
    workers = min(len(tasks), os.cpu_count() or 1)
    # a process for each: what PyTorch remembers of a process group outlives it
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
    """The phases of a run whose steps differ in size: the first step of each, and the run as it is from there on."""
    found: dict[tuple[int, int], tuple[int, RunSpec]] = {}
    for first, end, run in spec.stretches():
        if end > first:
            found.setdefault((run.context_length, run.batch_sequences), (first, run))
    return list(found.values())


def differing(spec: RunSpec, layout: Layout) -> list[int]:
    """Places in the pipeline to look at: both ends, the first between them, and the one with most layers.

    The later a rank is in a pipeline, the fewer micro-batches it has in flight, so the first between the ends has most.
    """
    layers = [0] * layout.pp
    for stage, its in enumerate(layout.stage_layers(spec.model.n_layers)):
        layers[layout.stage_rank(stage)] += len(its)
    return sorted({0, min(1, layout.pp - 1), layout.pp - 1, layers.index(max(layers))})


def rehearse(
    spec: RunSpec, layout: Layout, build_optimizer: BuildOptimizer, rank: int, first_step: int = 0
) -> RankReport:
    """The step ``first_step`` of ``rank``, in a process that has no process group yet and is for nothing else."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

    begin = time.perf_counter()
    spec = spec.model_copy(update={"objective": NextToken()})
    os.environ["ARMILLARY_NATIVE"] = "0"  # kernels of a CPU would compute
    use_large_blocks()  # of logits, as an accelerator computes them
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
            for parameter in part.parameters():
                parameter.register_post_accumulate_grad_hook(mode.gradient)
            for unit in units:
                unit.reshard()
        mode.phase = ACTIVATIONS
        mode.storages.restart()
        mode.collectives.clear()
        tokens = torch.zeros((1, 1), dtype=torch.int64).expand(spec.batch_sequences, spec.context_length + 1)
        program.gradients(Batch(tokens))
        program.clip(spec.optimizer.grad_clip)
        gradients = sum(size(local(parameter.grad)) for _, parameter in program.named_parameters())
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
    """For the name of each process group of a grid the dimensions that it spans, and its ranks."""
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

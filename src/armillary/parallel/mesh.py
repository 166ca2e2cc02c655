"""The rank grid: one mesh over all ranks, and the process groups along its dimensions.

Rank ``r`` of a layout has the coordinates of ``r`` in a row-major array of its sizes in the order
``pp, dp_replicate, dp_shard, ep, cp, tp``. For pp 2, dp_shard 2, tp 2:

====  ==  ========  ==
rank  pp  dp_shard  tp
====  ==  ========  ==
0     0   0         0
1     0   0         1
2     0   1         0
3     0   1         1
4     1   0         0
5     1   0         1
6     1   1         0
7     1   1         1
====  ==  ========  ==

Neighbours in ``tp`` are neighbouring ranks (on one machine); stages of a pipeline are farthest apart.

Dense parameters are sharded over ``dp_shard``, ``ep`` and ``cp`` together, because ranks along all three hold different
tokens and the same parameters. Experts are first distributed over ``ep``, then sharded over ``dp_shard``, ``cp`` and
``tp``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from armillary.recipe import DIMENSIONS, Layout


@dataclass(frozen=True)
class Grid:
    """A layout's mesh seen from this rank, and flattened meshes for parameter shards, expert shards and tokens."""

    layout: Layout
    mesh: DeviceMesh
    shard: DeviceMesh
    experts_shard: DeviceMesh
    tokens: DeviceMesh

    def size(self, name: str) -> int:
        """Ranks along the dimension ``name``."""
        return int(self.mesh[name].size())

    def rank(self, name: str) -> int:
        """This rank's coordinate along the dimension ``name``."""
        return int(self.mesh.get_local_rank(name))

    def group(self, name: str) -> dist.ProcessGroup:
        """The group of ranks that differ from this one only along ``name``."""
        return self.mesh.get_group(name)

    @property
    def data_rank(self) -> int:
        """The index of this rank's part of each batch, split by sequences."""
        index = 0
        for name in ("dp_replicate", "dp_shard", "ep"):
            index = index * self.size(name) + self.rank(name)
        return index

    def sharded(self, experts: bool = False) -> DeviceMesh:
        """The mesh over which parameters are sharded: one dimension, or ``dp_replicate`` and one (HSDP)."""
        inner = self.experts_shard if experts else self.shard
        return inner if self.layout.dp_replicate == 1 else DeviceMesh._concatenate([self.mesh["dp_replicate"], inner])

    def tokens_group(self) -> dist.ProcessGroup:
        """The group of ranks that hold the same layers and different tokens."""
        return self.tokens.get_group()


def build_grid(layout: Layout, device: torch.device) -> Grid:
    """The mesh of ``layout`` over all ranks of the process group, which must be initialised.

    Raises:
        UsageError: the number of ranks differs from the layout's.
    """
    layout.refuse_others(dist.get_world_size())
    return Grid(layout, *_meshes(dist.group.WORLD, device.type, layout.sizes))


@cache
def _meshes(world: dist.ProcessGroup | None, device: str, sizes: tuple[int, ...]) -> tuple[DeviceMesh, ...]:
    """One set of meshes for all programs of these sizes in a ``world``: groups cost connections, threads and memory.

    All meshes are created here, because creating a group is a collective that every rank must enter in the same order.
    """
    mesh = init_device_mesh(device, sizes, mesh_dim_names=DIMENSIONS)
    tokens = ("dp_shard", "ep", "cp")
    flat = {"shard": tokens, "experts_shard": ("dp_shard", "cp", "tp"), "tokens": ("dp_replicate", *tokens)}
    return mesh, *(mesh[parts]._flatten(name) for name, parts in flat.items())

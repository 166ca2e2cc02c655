"""Which rank stands where: one mesh over all ranks, and the groups in which they talk.

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

Neighbours in ``tp`` are neighbouring ranks (on one machine), stages of a pipeline are farthest apart.

Dense parameters are sharded over ``dp_shard``, ``ep`` and ``cp`` together, for which all three hold different tokens
and the same parameters; experts over ``dp_shard``, ``cp`` and ``tp``, after ``ep`` has dealt them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from armillary.recipe import Layout, UsageError
from armillary.recipe.layout import DIMENSIONS


@dataclass(frozen=True)
class Grid:
    """A layout's mesh, seen from this rank."""

    layout: Layout
    mesh: DeviceMesh

    def size(self, name: str) -> int:
        """Ranks along the dimension ``name``."""
        return int(self.mesh[name].size())

    def rank(self, name: str) -> int:
        """Where this rank stands along the dimension ``name``."""
        return int(self.mesh.get_local_rank(name))

    def group(self, name: str) -> dist.ProcessGroup:
        """The ranks that differ from this one in ``name`` alone."""
        return self.mesh.get_group(name)

    @property
    def data_rank(self) -> int:
        """Which part of each batch, by sequences, is this rank's."""
        index = 0
        for name in ("dp_replicate", "dp_shard", "ep"):
            index = index * self.size(name) + self.rank(name)
        return index

    def sharded(self, experts: bool = False) -> DeviceMesh:
        """The mesh over which parameters are sharded: one dimension, or ``dp_replicate`` and one (HSDP)."""
        inner = self._flat("experts_shard", ("dp_shard", "cp", "tp")) if experts else self._flat("shard", _TOKENS)
        if self.layout.dp_replicate == 1:
            return inner
        names = ("dp_replicate", str((inner.mesh_dim_names or ("",))[0]))
        return self.mesh[names]

    def tokens_group(self) -> dist.ProcessGroup:
        """The ranks that hold the same layers and different tokens."""
        return self._flat("tokens", ("dp_replicate", *_TOKENS)).get_group()

    def _flat(self, name: str, parts: tuple[str, ...]) -> DeviceMesh:
        try:
            return self.mesh[name]
        except KeyError:
            return self.mesh[parts]._flatten(name)


_TOKENS = ("dp_shard", "ep", "cp")


def build_grid(layout: Layout, device: torch.device) -> Grid:
    """The mesh of ``layout`` over all ranks of the process group, which must be initialised.

    Raises:
        UsageError: there are more or fewer ranks than the layout has.
    """
    ranks = dist.get_world_size()
    if ranks != layout.ranks:
        sizes = " x ".join(f"{name} {size}" for name, size in zip(DIMENSIONS, layout.sizes, strict=True) if size > 1)
        raise UsageError(f"the layout has {layout.ranks} ranks ({sizes or 'all 1'}), but {ranks} were started")
    grid = Grid(layout, _mesh(dist.group.WORLD, device.type, layout.sizes))
    # made now, by all ranks in the same order, since making a group is a collective
    grid.sharded(), grid.sharded(experts=True), grid.tokens_group()
    return grid


@cache
def _mesh(world: dist.ProcessGroup | None, device: str, sizes: tuple[int, ...]) -> DeviceMesh:
    """One mesh for all programs of these sizes in a ``world``: groups cost connections, threads and memory."""
    return init_device_mesh(device, sizes, mesh_dim_names=DIMENSIONS)

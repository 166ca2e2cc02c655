"""Apply a function to whole matrices that ranks hold in parts: gather each on one rank, apply, and scatter the result.

Each matrix is assigned to one of the ranks that hold parts of it, copies included, so no work is done twice. A step
needs two all-to-all exchanges, in the precision of the exchanged tensors.

Trade-offs: the exchange waits for the whole backward pass, and a rank holds all of its gathered matrices (its share of
the model) in memory at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset


@dataclass(frozen=True)
class _Part:
    """A rank's part of one matrix: ``inside`` indexes the rank's part of the parameter, ``within`` the matrix."""

    rank: int
    inside: tuple[int | slice, ...]
    within: tuple[slice, slice]

    @property
    def size(self) -> tuple[int, int]:
        rows, columns = self.within
        return rows.stop - rows.start, columns.stop - columns.start


@dataclass(frozen=True, eq=False)
class _Matrix:
    """One matrix of the parameter with index ``parameter``; the rank ``owner`` applies ``turn`` to it.

    ``sources`` are the ``parts`` from which it is assembled: one copy of each, as several ranks may hold the same part.
    """

    parameter: int
    size: tuple[int, int]
    parts: tuple[_Part, ...]
    sources: tuple[_Part, ...]
    owner: int


class Exchange:
    """Applies ``turn`` to matrices that the ranks of ``mesh`` hold in parts; each rank computes its share of them."""

    def __init__(self, mesh: DeviceMesh, parameters: list[DTensor], turn: Callable[[Tensor], Tensor]) -> None:
        self._turn = turn
        flat = mesh if mesh.ndim == 1 else mesh._flatten()
        self._group, self._rank, ranks = flat.get_group(), flat.get_local_rank(), flat.size()
        matrices = self._deal_out(mesh, parameters, ranks)
        # parts sent to and received from each rank, in the same order on both ends
        everyone, own = range(ranks), self._rank
        self._owned = [m for m in matrices if m.owner == own]
        self._gives = [
            [(m, p) for m in matrices if m.owner == to for p in m.sources if p.rank == own] for to in everyone
        ]
        self._takes = [[(m, p) for m in self._owned for p in m.sources if p.rank == of] for of in everyone]
        self._returns = [[(m, p) for m in self._owned for p in m.parts if p.rank == to] for to in everyone]
        self._receives = [
            [(m, p) for m in matrices if m.owner == of for p in m.parts if p.rank == own] for of in everyone
        ]

    def _deal_out(self, mesh: DeviceMesh, parameters: list[DTensor], ranks: int) -> list[_Matrix]:
        """All matrices, the dearest first, each given to the rank that has the least to do."""
        places = [
            [int(i) for i in place] for place in torch.cartesian_prod(*map(torch.arange, mesh.shape)).view(ranks, -1)
        ]
        found = []
        for number, parameter in enumerate(parameters):
            *stack, rows, columns = parameter.shape
            parts: list[list[_Part]] = [[] for _ in range(stack[0] if stack else 1)]
            for rank, place in enumerate(places):
                size, offset = _compute_local_shape_and_global_offset(
                    parameter.shape, mesh.shape, place, parameter.placements
                )
                if not math.prod(size):
                    continue
                above, left = (slice(o, o + n) for o, n in zip(offset[-2:], size[-2:], strict=True))
                for index in range(size[0]) if stack else [0]:
                    inside = (index,) if stack else (slice(None), slice(None))
                    parts[offset[0] + index if stack else 0].append(_Part(rank, inside, (above, left)))
            found += [(rows * columns * min(rows, columns), number, (rows, columns), held) for held in parts]
        load = [0] * ranks
        matrices = []
        for cost, number, sides, held in sorted(found, key=lambda one: -one[0]):
            whole = [part.rank for part in held if part.size == sides]
            owner = min(whole or range(ranks), key=lambda rank: load[rank])
            load[owner] += cost
            same: dict[tuple[int, int], list[_Part]] = {}
            for part in held:
                same.setdefault((part.within[0].start, part.within[1].start), []).append(part)
            # copies are consecutive (HSDP), and the owner takes the one of its own replica
            sources = tuple(copies[owner * len(copies) // ranks] for copies in same.values())
            matrices.append(_Matrix(number, sides, tuple(held), sources, owner))
        return matrices

    def __call__(self, updates: list[Tensor]) -> list[Tensor]:
        """Map this rank's parts of matrices to the same parts of ``turn`` of the whole matrices."""
        given = [[updates[m.parameter][p.inside] for m, p in parts] for parts in self._gives]
        arrived = self._swap(given, self._takes, updates[0])
        whole = {m: updates[0].new_empty(m.size) for m in self._owned}
        for (m, p), piece in arrived:
            whole[m][p.within] = piece
        turned = {m: self._turn(matrix) for m, matrix in whole.items()}
        returned = [[turned[m][p.within] for m, p in parts] for parts in self._returns]
        results = [torch.empty_like(update) for update in updates]
        for (m, p), piece in self._swap(returned, self._receives, updates[0]):
            results[m.parameter][p.inside] = piece
        return results

    def _swap(
        self, pieces: list[list[Tensor]], expected: list[list[tuple[_Matrix, _Part]]], like: Tensor
    ) -> list[tuple[tuple[_Matrix, _Part], Tensor]]:
        """Send ``pieces`` to each rank and return the ``expected`` pieces of each rank."""
        coming = [part for parts in expected for part in parts]
        sent = torch.cat([like.new_empty(0), *(piece.reshape(-1) for parts in pieces for piece in parts)])
        arrived = like.new_empty(sum(math.prod(part.size) for _, part in coming))
        dist.all_to_all_single(
            arrived,
            sent,
            [sum(math.prod(part.size) for _, part in parts) for parts in expected],
            [sum(piece.numel() for piece in parts) for parts in pieces],
            group=self._group,
        )
        cut = torch.split(arrived, [math.prod(part.size) for _, part in coming])
        return [(one, piece.view(one[1].size)) for one, piece in zip(coming, cut, strict=True)]

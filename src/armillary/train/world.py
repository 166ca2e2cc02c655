"""The processes that carry out a run together: how they come to one decision without a step waiting for it.

``Single`` is a process alone. ``Ranks`` are those of a process group. A vote (stop, save) goes round on the CPU while
the next step is computed and is looked at after it, so that nobody waits for it: what is decided after step n happens
after step n + 1, on all ranks.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist


class World(Protocol):
    """What a run asks of those that it is carried out by."""

    rank: int
    size: int

    def vote(self, urgency: int) -> int:
        """The highest urgency that any rank gave, at the latest by its vote after this one; asked once a step."""

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank; all wait."""

    def collect(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank; all wait."""


class Single:
    """A process alone."""

    rank, size = 0, 1

    def vote(self, urgency: int) -> int:
        """Its own."""
        return urgency

    def share(self, value: Any) -> Any:
        """Its own."""
        return value

    def collect(self, value: Any) -> list[Any]:
        """Its own."""
        return [value]


class Ranks:
    """The ranks of the process group, which must be initialised."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo")  # on the CPU, whatever the tensors are on
        self._round: tuple[torch.Tensor, Any] | None = None

    def vote(self, urgency: int) -> int:
        """The highest urgency of the votes before this one."""
        decided = self._counted()
        ballot = torch.tensor([urgency])
        work = dist.all_reduce(ballot, dist.ReduceOp.MAX, group=self.group, async_op=True)
        self._round = (ballot, work)
        return decided

    def share(self, value: Any) -> Any:
        """Rank 0's value."""
        holder = [value]
        dist.broadcast_object_list(holder, src=0, group=self.group)
        return holder[0]

    def collect(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def _counted(self) -> int:
        if self._round is None:
            return 0
        ballot, work = self._round
        work.wait()
        return int(ballot.item())

    def close(self) -> None:
        """Wait for the vote that is still going round."""
        self._counted()

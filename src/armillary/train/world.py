"""The processes that train a run together, and how they come to one decision without a step waiting for it.

``Single`` is one process. ``Ranks`` are those of a process group. A vote (which hooks any rank wishes) is counted on
the CPU while the next step is computed, and read after it: what is wished after step n happens after step n + 1, on all
ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from armillary.recipe import ArmillaryError

T = TypeVar("T")


class World(Protocol):
    """The processes of a run, seen from one of them."""

    rank: int
    size: int

    def vote(self, wishes: int) -> int:
        """All bits that any rank has set, at the latest by its vote after this one; called once a step."""

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank; all wait."""

    def collect(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank; all wait."""

    def any(self, value: bool) -> bool:
        """Whether ``value`` is true on any rank, on every rank; all wait."""


class Single:
    """A process alone."""

    rank, size = 0, 1

    def vote(self, wishes: int) -> int:
        """Its own."""
        return wishes

    def share(self, value: Any) -> Any:
        """Its own."""
        return value

    def collect(self, value: Any) -> list[Any]:
        """Its own."""
        return [value]

    def any(self, value: bool) -> bool:
        """Its own."""
        return value


class Ranks:
    """The ranks of the process group, which must be initialised."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo")  # on the CPU, whatever the tensors are on
        self._round: tuple[torch.Tensor, Any] | None = None

    def vote(self, wishes: int) -> int:
        """All bits of the votes before this one."""
        decided = self._counted()
        ballot = torch.tensor([wishes])
        work = dist.all_reduce(ballot, dist.ReduceOp.BOR, group=self.group, async_op=True)
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

    def any(self, value: bool) -> bool:
        """Whether it is true on any rank."""
        flag = torch.tensor([int(value)])
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group)
        return bool(flag.item())

    def _counted(self) -> int:
        if self._round is None:
            return 0
        ballot, work = self._round
        work.wait()
        return int(ballot.item())

    def close(self) -> None:
        """Wait for the vote that is still going round."""
        self._counted()


def by_first(world: World, act: Callable[[], T]) -> T:
    """What ``act`` returns on rank 0, on every rank; an error of it is raised on all."""
    outcome: Any = None
    if world.rank == 0:
        try:
            outcome = act()
        except (ArmillaryError, OSError) as error:
            outcome = error
    outcome = world.share(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    result: T = outcome
    return result


def together(world: World, act: Callable[[], T]) -> T:
    """What ``act`` returns on this rank; where it fails on some ranks, its first error is raised on all."""
    result: Any = None
    problem: ArmillaryError | None = None
    try:
        result = act()
    except ArmillaryError as error:
        problem = error
    if world.any(problem is not None):
        others = [other for other in world.collect(problem) if other is not None]
        raise problem or others[0]
    done: T = result
    return done

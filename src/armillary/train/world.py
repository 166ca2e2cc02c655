"""The processes that train a run together, and how they agree without delaying a step.

``Single`` is one process; ``Ranks`` are the ranks of a process group. A vote collects the hooks that any rank wishes.
It is counted on the CPU while the next step is computed, and read after it. So a wish after step n takes effect after
step n + 1, on all ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
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
        """All bits that any rank has set; a new bit appears at the latest in the next vote. Called once per step."""

    def share(self, value: Any) -> Any:
        """Return rank 0's value on every rank; all ranks wait."""

    def collect(self, value: Any) -> list[Any]:
        """Return the values of all ranks on every rank; all ranks wait."""

    def any(self, value: bool) -> bool:
        """Return on every rank whether ``value`` is true on any; all ranks wait."""


class Single:
    """A single process; every method returns its own value."""

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
        self.group = dist.new_group(backend="gloo")  # on the CPU, wherever the tensors are
        self._round: tuple[torch.Tensor, Any] | None = None
        self._background: list[dist.ProcessGroup] = []

    def background_group(self) -> dist.ProcessGroup:
        """A new group of all ranks for threads beside training, with its own timeout."""
        group: dist.ProcessGroup = dist.new_group(backend="gloo")
        self._background.append(group)
        return group

    def limit_waits(self, seconds: float) -> None:
        """Set the timeout of all groups in which training waits for other ranks."""
        for group in dist.distributed_c10d._world.pg_map:
            if group not in self._background:
                set_timeout(group, seconds)

    def vote(self, wishes: int) -> int:
        """All bits of the earlier votes."""
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
        """Whether ``value`` is true on any rank."""
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
        """Wait for the vote in progress."""
        self._counted()


def set_timeout(group: dist.ProcessGroup, seconds: float) -> None:
    """Set the timeout of the next collectives of a group, on every device whose backend supports it."""
    for device in group._device_types:
        with contextlib.suppress(AttributeError, RuntimeError):
            group._get_backend(device)._set_default_timeout(timedelta(seconds=seconds))


def by_first(world: World, act: Callable[[], T]) -> T:
    """Call ``act`` on rank 0; return its result on every rank, or raise its error on all."""
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
    """Call ``act`` on every rank and return its result; if it fails on some, raise the first error on all."""
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

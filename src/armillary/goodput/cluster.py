"""The description of a simulated cluster: accelerators, failures, repairs, checkpoints, spares, stragglers.

Times are in seconds unless the name has another unit. Every part is optional. Without any, failures are exponential and
independent, each costs the same recovery, and the simulation has the exact formula's goodput.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from armillary.goodput.formula import MOST_ACCELERATORS
from armillary.recipe import Document

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Cause(Document):
    """A kind of failure.

    ``share`` is its part of all failures, and ``detection_s`` the time until it is detected (for a hang, a timeout).
    ``nodes`` neighbours under one switch fail together. ``replaces``: whether the node must be repaired.
    """

    share: Share
    detection_s: Seconds = 0.0
    nodes: int = Field(default=1, ge=1)
    replaces: bool = True


class Tier(Document):
    """A place for checkpoints. ``survives``: how many neighbouring nodes may be lost at once without losing it.

    Peer memory that keeps each node's copy on one other node survives 1, a local disk 0, remote storage any number.
    """

    interval_s: Positive
    block_s: Seconds
    read_s: Seconds
    survives: int = Field(default=1_000_000, ge=0)


class Repair(Document):
    """The duration of a repair: log-normal, so a few take very long. A mean of 10 times the median is common."""

    median_s: Positive
    mean_s: Positive

    @model_validator(mode="after")
    def _tail(self) -> Self:
        if self.mean_s < self.median_s:
            raise ValueError("mean_s must not be below median_s: repair times have a long tail to the right")
        return self


class Lemons(Document):
    """A ``share`` of nodes that fail ``times`` as often; each is replaced for good after ``removed_after`` failures."""

    share: Share
    times: Positive
    removed_after: int | None = Field(default=None, ge=1)


class Stragglers(Document):
    """Nodes that become slow: how often, by which factor a step slows down, and the time until detection."""

    mtbf_node_hours: Positive
    slowdown: float = Field(gt=1, allow_inf_nan=False)
    detection_s: Seconds


class Cluster(Document):
    """A job on a cluster. ``recovery_s`` follows detection: restart of all processes, and the first step."""

    accelerators: int = Field(ge=1, le=MOST_ACCELERATORS)
    mtbf_accelerator_hours: Positive
    recovery_s: Seconds
    tiers: tuple[Tier, ...] = Field(min_length=1)
    step_s: Positive = 10.0
    accelerators_per_node: int = Field(default=8, ge=1)
    causes: dict[str, Cause] = Field(default={"failure": Cause(share=1.0)}, min_length=1)
    spares: int | None = Field(default=None, ge=0)
    repair: Repair | None = None
    lemons: Lemons | None = None
    stragglers: Stragglers | None = None

    @property
    def nodes(self) -> int:
        """Nodes of the job, the last of them perhaps with fewer accelerators."""
        return -(-self.accelerators // self.accelerators_per_node)

    @property
    def mtbf_s(self) -> float:
        """Mean time between two failures of the job if all nodes are sound."""
        return self.mtbf_accelerator_hours * 3600.0 / self.accelerators

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if abs(sum(cause.share for cause in self.causes.values()) - 1) > 1e-6:
            raise ValueError("the shares of the causes must sum to 1")
        if self.spares is not None and self.repair is None:
            raise ValueError("spares without repair: give repair, since a limited number of spares matters only then")
        return self


# Unexpected interruptions of Llama 3 405B on 16,384 accelerators in 54 days (arXiv 2407.21783, Table 5), as shares of
# 419. Timeouts of collectives and silent corruption are detected late: ten minutes is the usual timeout, one hour our
# assumption. Every other kind ends a process at once.
_LLAMA3 = {
    "faulty GPU": 148, "HBM3 memory": 72, "software": 54, "network": 35, "host maintenance": 32, "SRAM": 19,
    "GPU system processor": 17, "network interface": 7, "collective timeout": 7, "silent corruption": 6,
    "thermal interface": 6, "SSD": 3, "power supply": 3, "chassis": 2, "IO board": 2, "dependency": 2, "CPU": 2,
    "system memory": 2,
}  # fmt: skip
_LATE_S = {"collective timeout": 600.0, "silent corruption": 3600.0}
_STAYS = ("software", "collective timeout", "dependency")
PUBLISHED_CAUSES = {
    name: Cause(share=count / 419, detection_s=_LATE_S.get(name, 10.0), replaces=name not in _STAYS)
    for name, count in _LLAMA3.items()
}

"""Time of collectives over the hierarchy of links.

Ranks are numbered as Megatron and our mesh number them: neighbours differ in tp, then in cp, then in dp (with ep as its
inner part), then in pp. A group of ``size`` ranks with distance ``stride`` has ``inside`` of them in one node. A ring
crosses the border of a node once, so each of the ``inside`` members' network links carries a share (Thakur et al. 2005
for the volumes; NCCL's rings use all links).

In a node whose accelerators are joined in pairs (``topology`` mesh: Ascend 910B, MI300X), a rank has one link to each
other one. A group of some of the node's ranks uses only the links between them.
"""

from __future__ import annotations

from dataclasses import dataclass

from armillary.plan.constants import Constants
from armillary.plan.hardware_files import Accelerator


@dataclass(frozen=True)
class Group:
    """Ranks that communicate: ``size`` of them, ``stride`` apart."""

    size: int
    stride: int

    def inside(self, node: int) -> int:
        """Members in one node."""
        return max(1, min(self.size, node // self.stride if self.stride <= node else 1))


class Network:
    """Seconds of collectives between accelerators of one kind."""

    def __init__(self, accelerator: Accelerator, constants: Constants, number_bytes: int = 2) -> None:
        """Volumes are given for numbers of 16 bits; those of ``number_bytes`` take their share more."""
        self._node, self._mesh = accelerator.node, accelerator.topology == "mesh" and accelerator.node > 1
        self._link = accelerator.link_gb_s * 1e9 * constants.link * 2 / number_bytes
        self._network = accelerator.network_gb_s * 1e9 * constants.network * 2 / number_bytes
        self._link_s = accelerator.link_latency_us * 1e-6
        self._network_s = accelerator.network_latency_us * 1e-6

    def gather(self, nbytes: float, group: Group) -> float:
        """All-gather or reduce-scatter of ``nbytes`` (the whole vector)."""
        if group.size == 1:
            return 0.0
        inside = group.inside(self._node)
        if inside == group.size:
            rate, latency = self._links(inside), self._link_s * min(group.size - 1, 16)
        else:
            rate = min(self._links(inside), self._network * inside)
            # rings inside the node, trees between nodes
            latency = self._link_s * (inside - 1) + self._network_s * (group.size // inside).bit_length()
        return nbytes * (group.size - 1) / group.size / rate + latency

    def all_reduce(self, nbytes: float, group: Group) -> float:
        """All-reduce of ``nbytes``."""
        return 2 * self.gather(nbytes, group)

    def all_to_all(self, nbytes: float, group: Group) -> float:
        """All-to-all in which each rank sends ``nbytes`` in all."""
        if group.size == 1:
            return 0.0
        inside = group.inside(self._node)
        outside = nbytes * (group.size - inside) / group.size
        within = nbytes * (inside - 1) / group.size
        latency = (self._link_s if inside == group.size else self._network_s) * 2
        return max(outside / self._network, within / self._links(inside)) + latency

    def send(self, nbytes: float, stride: int) -> float:
        """Point-to-point transfer to the rank ``stride`` away."""
        if stride < self._node:
            return nbytes / self._links(2) + self._link_s
        return nbytes / self._network + self._network_s

    def _links(self, members: int) -> float:
        """Bytes per second of one rank over the links to the others of ``members`` ranks of its node."""
        if not self._mesh or members == 1:
            return self._link
        return self._link * (members - 1) / (self._node - 1)

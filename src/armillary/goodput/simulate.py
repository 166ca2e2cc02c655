"""Simulates a training job on a failing cluster by discrete events, in the same format as the events of a real run.

The ledger reads the output like that of a real run. One file covers the whole job, since ranks of a synchronous job
wait for each other. Times are simulated and begin at the Unix epoch.

A segment is the steps up to the next checkpoint and the time that the checkpoint blocks. A failure within it loses the
segment's steps. Then the failure is detected, nodes are replaced (from spares, or the job waits for a repair), the
processes restart, and the newest checkpoint that survived is read. A failure during the recovery restarts it. Failures
and stragglers arrive at random with constant rates, so they can be drawn one at a time. Between two of them,
checkpoints follow at regular intervals. 90 days of 10,000 accelerators have a few hundred failures and a hundred
thousand checkpoints.

Not covered: failures that depend on the time of day or the load, several jobs on one cluster, the network's topology
beyond groups of nodes that fail together, and fewer replicas instead of a restart.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from armillary.goodput.cluster import Cluster, Tier
from armillary.goodput.events import Event, EventKind
from armillary.recipe import UsageError

DAY_S = 86_400.0
MOST_EVENTS = 20_000_000


def simulate(cluster: Cluster, days: float, seed: int = 0) -> Iterator[Event]:
    """The events of a job over ``days``, in order; determined by the seed.

    Raises:
        UsageError: ``days`` is not a positive number, or the job fails or checkpoints too often to be simulated.
    """
    if not math.isfinite(days) or days <= 0:
        raise UsageError(f"days is {days:g}: it must be a positive number of days")
    shortest = min(cluster.mtbf_s, *(tier.interval_s for tier in cluster.tiers))
    if days * DAY_S / shortest > MOST_EVENTS:
        what = "the job fails" if shortest == cluster.mtbf_s else "a checkpoint is written"
        raise UsageError(
            f"{what} every {shortest:.3g} s, which is more than {MOST_EVENTS:,} times in {days:g} days; simulate "
            "fewer days"
        )
    return _Job(cluster, days * DAY_S, np.random.default_rng(seed), f"simulated-{seed}").events()


@dataclass
class _Job:
    cluster: Cluster
    end_s: float
    rng: np.random.Generator
    run: str
    now: float = 0.0
    step: int = 0
    saved: dict[int, int] = field(default_factory=dict)
    away: list[float] = field(default_factory=list)
    slow_since: float | None = None
    runs: bool = True

    def __post_init__(self) -> None:
        cluster = self.cluster
        per_node = cluster.accelerators / cluster.nodes
        self.rates = np.full(cluster.nodes, per_node / (cluster.mtbf_accelerator_hours * 3600.0))
        self.failures = np.zeros(cluster.nodes, dtype=int)
        if cluster.lemons:
            self.rates[self.rng.random(cluster.nodes) < cluster.lemons.share] *= cluster.lemons.times
        self.sound_rate = per_node / (cluster.mtbf_accelerator_hours * 3600.0)
        self.names = list(cluster.causes)
        self.shares = np.array([cluster.causes[name].share for name in self.names])
        self.shares /= self.shares.sum()
        # Tiers by interval: each interval is a multiple of the shortest one.
        self.tiers = sorted(cluster.tiers, key=lambda tier: tier.interval_s)
        self.steps = max(1, round(self.tiers[0].interval_s / cluster.step_s))
        self.every = [max(1, round(tier.interval_s / (self.steps * cluster.step_s))) for tier in self.tiers]
        self.saved = dict.fromkeys(range(len(self.tiers)), 0)
        self.next_failure = self._draw(self.rates.sum())
        self.next_straggler = math.inf
        self._plan_straggler()

    def events(self) -> Iterator[Event]:
        yield self._event("start", accelerators=self.cluster.accelerators)
        yield self._event("running")
        while self.now < self.end_s:
            yield from self._segment()
            if self.now >= self.next_failure:
                yield from self._failures()
            elif self.slow_since is not None and self._noticed():
                yield from self._evict()
        yield self._event("stop")

    def _segment(self) -> Iterator[Event]:
        """Steps and the next checkpoint, ended early by a failure or the end of the simulated time."""
        pace = self._pace()
        until = min(self.next_failure, self.end_s)
        taken = min(self.steps, int((until - self.now) / pace + 1e-9))
        if taken:
            self.now += taken * pace
            self.step += taken
            yield self._event("progress", duration_s=taken * pace)
        if taken < self.steps:
            self.now = until
            return
        number = self.step // self.steps
        due = [tier for tier, every in enumerate(self.every) if number % every == 0]
        block = sum(self.tiers[tier].block_s for tier in due)
        if self.now + block > until:
            self.now = until
            return
        self.now += block
        self.saved.update(dict.fromkeys(due, self.step))
        if due:
            yield self._event("checkpoint", duration_s=block)

    def _pace(self) -> float:
        straggler = self.cluster.stragglers
        if straggler is None or (self.slow_since is None and self.now < self.next_straggler):
            return self.cluster.step_s
        if self.slow_since is None:
            self.slow_since = self.now
        return self.cluster.step_s * straggler.slowdown

    def _noticed(self) -> bool:
        assert self.cluster.stragglers is not None and self.slow_since is not None
        return self.now - self.slow_since >= self.cluster.stragglers.detection_s

    def _evict(self) -> Iterator[Event]:
        """Replace a straggler right after a checkpoint, so that no step is lost."""
        yield self._event("straggler")
        yield self._event("detected", problem="straggler")
        self.slow_since = None
        self._plan_straggler()
        yield from self._recover(lost=0, replaced=1)
        if not self.runs:
            yield from self._failures()

    def _failures(self) -> Iterator[Event]:
        """A failure and its recovery; further failures during the recovery restart it, until the job runs again."""
        lost = 0
        while True:
            self.now = min(self.next_failure, self.end_s)
            if self.now == self.end_s:
                return
            node = int(self.rng.choice(len(self.rates), p=self.rates / self.rates.sum()))
            name = self.names[int(self.rng.choice(len(self.names), p=self.shares))]
            cause = self.cluster.causes[name]
            yield self._event("fault", problem=name, node=node)
            self._count(node)
            self.next_failure = self.now + self._draw(self.rates.sum())
            lost = max(lost, cause.nodes if cause.replaces else 0)
            if self.now + cause.detection_s > self.next_failure:
                continue  # the next failure comes before this one is detected
            self.now += cause.detection_s
            yield self._event("detected", problem=name)
            if self.slow_since is not None:  # all processes restart, which also reveals the slow node
                self.slow_since = None
                self._plan_straggler()
            yield from self._recover(lost, cause.nodes if cause.replaces else 0)
            if self.runs:
                return

    def _recover(self, lost: int, replaced: int) -> Iterator[Event]:
        """Wait for nodes, restart, read the newest checkpoint that survived the loss of ``lost`` nodes at once."""
        wait = self._replace(replaced)
        if wait > 0:
            yield self._event("restart", waiting=True)
            self.now += wait
        yield self._event("restart")
        surviving = [tier for tier in self.saved if self.tiers[tier].survives >= lost]
        step = max((self.saved[tier] for tier in surviving), default=0)
        read = min((self.tiers[tier].read_s for tier in surviving if self.saved[tier] == step), default=0.0)
        back = self.now + self.cluster.recovery_s + read
        self.runs = back <= self.next_failure
        if not self.runs:
            self.now = min(self.next_failure, self.end_s)
            return
        self.now = back
        self.step = step
        for tier in self.saved:
            self.saved[tier] = min(self.saved[tier], step) if tier in surviving else 0
        yield self._event("resume")
        yield self._event("running")

    def _replace(self, nodes: int) -> float:
        """Remove ``nodes`` for repair; return how long the job waits for the same number of other nodes."""
        repair, spares = self.cluster.repair, self.cluster.spares
        if nodes == 0 or repair is None or spares is None:
            return 0.0
        while self.away and self.away[0] <= self.now:
            heapq.heappop(self.away)
        sigma = math.sqrt(2 * math.log(repair.mean_s / repair.median_s))
        for _ in range(nodes):
            heapq.heappush(self.away, self.now + repair.median_s * math.exp(sigma * self.rng.standard_normal()))
        missing = len(self.away) - spares
        return max(0.0, heapq.nsmallest(missing, self.away)[-1] - self.now) if missing > 0 else 0.0

    def _count(self, node: int) -> None:
        lemons = self.cluster.lemons
        self.failures[node] += 1
        if lemons and lemons.removed_after and self.failures[node] >= lemons.removed_after:
            self.rates[node], self.failures[node] = self.sound_rate, 0  # another node takes its place

    def _plan_straggler(self) -> None:
        straggler = self.cluster.stragglers
        if straggler is not None:
            rate = self.cluster.nodes / (straggler.mtbf_node_hours * 3600.0)
            self.next_straggler = self.now + self._draw(rate)

    def _draw(self, rate: float) -> float:
        return float(self.rng.exponential(1 / rate))

    def _event(self, kind: EventKind, duration_s: float | None = None, **data: object) -> Event:
        return Event(time_s=self.now, run=self.run, kind=kind, step=self.step, duration_s=duration_s, data=data)


def one_tier(
    accelerators: int, mtbf_accelerator_hours: float, block_s: float, interval_s: float, recovery_s: float
) -> Cluster:
    """The cluster of the exact formula: independent failures, one checkpoint that survives all of them.

    A step is at most a hundredth of the interval, so that a failure in the middle of a step loses almost nothing more.
    """
    return Cluster(
        accelerators=accelerators,
        mtbf_accelerator_hours=mtbf_accelerator_hours,
        recovery_s=recovery_s,
        step_s=min(10.0, interval_s / 100),
        tiers=(Tier(interval_s=interval_s, block_s=block_s, read_s=0.0),),
    )

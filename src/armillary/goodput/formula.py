"""Goodput of a job that fails at random, in closed form.

Failures are exponential with the job's MTBF M. A segment is τ seconds of steps and a checkpoint that blocks for δ. A
failure at any point of the segment loses it, and R seconds pass before it is taken again; a failure during those R
seconds starts them anew. The expected time of a segment is then ``M e^(R/M) (e^((τ+δ)/M) - 1)`` (Daly, "A higher order
estimate of the optimum checkpoint interval for restart dumps", FGCS 2006, equation 13), and goodput is τ over it.

What the formula does not cover: failures that come in groups, repair that takes long when no spare is left, hangs that
are noticed late, stragglers. `simulate` has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import lambertw

from armillary.recipe import UsageError

HOUR_S = 3600.0
MOST_ACCELERATORS = 10**8
_LARGEST = 700.0  # e to this power is still a number


@dataclass(frozen=True)
class Reliability:
    """How often a job fails and what a failure and a checkpoint cost, in seconds.

    ``mtbf_s`` is that of the whole job, ``block_s`` how long training waits for a checkpoint (δ), ``recovery_s`` how
    long it takes from a failure until steps are taken again (R): detection, restart, and reading the checkpoint.

    Raises:
        UsageError: a value is negative or not finite, or the MTBF is zero.
    """

    mtbf_s: float
    block_s: float
    recovery_s: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value) or value < 0 or (name == "mtbf_s" and value == 0):
                raise UsageError(f"{name} is {value:g}: it must be a {'positive' if name == 'mtbf_s' else 'finite'} "
                                 "number of seconds, not below 0")  # fmt: skip

    @classmethod
    def of_cluster(
        cls, accelerators: int, mtbf_accelerator_hours: float, block_s: float, recovery_s: float
    ) -> Reliability:
        """Of ``accelerators`` that fail independently, each once in ``mtbf_accelerator_hours`` on average."""
        if not 1 <= accelerators <= MOST_ACCELERATORS:
            raise UsageError(f"accelerators is {accelerators}: there must be 1 to {MOST_ACCELERATORS:,}")
        return cls(mtbf_accelerator_hours * HOUR_S / accelerators, block_s, recovery_s)


def goodput(job: Reliability, interval_s: float) -> float:
    """Share of the elapsed time that is spent on steps that count, with a checkpoint every ``interval_s`` of steps."""
    if not math.isfinite(interval_s) or interval_s <= 0:
        raise UsageError(f"interval_s is {interval_s:g}: it must be a positive number of seconds")
    segment = (interval_s + job.block_s) / job.mtbf_s
    exponent = job.recovery_s / job.mtbf_s
    if segment + exponent > _LARGEST:
        return 0.0
    return interval_s / (job.mtbf_s * math.exp(exponent) * math.expm1(segment))


def best_interval(job: Reliability) -> float:
    """Seconds of steps between two checkpoints at which ``goodput`` is largest; 0 where a checkpoint costs nothing.

    Setting the derivative to zero gives ``τ = M (1 + W(-e^(-1-δ/M)))``, with Lambert's W on its principal branch.
    """
    if job.block_s == 0:
        return 0.0
    ratio = job.block_s / job.mtbf_s
    if ratio < 1e-6:  # 1 + W(-1/e + small) cancels; its series begins as Young's estimate
        root = math.sqrt(2 * ratio)
        return job.mtbf_s * (root - root * root / 3)
    return float(job.mtbf_s * (1 + lambertw(-math.exp(-1 - ratio)).real))


def young_interval(job: Reliability) -> float:
    """The estimate ``sqrt(2 δ M)`` (Young, CACM 1974, equation 9)."""
    return math.sqrt(2 * job.block_s * job.mtbf_s)


def daly_interval(job: Reliability) -> float:
    """Daly's estimate of higher order (2006, equation 37); M where a checkpoint costs more than 2 M."""
    if job.block_s >= 2 * job.mtbf_s:
        return job.mtbf_s
    root = math.sqrt(job.block_s / (2 * job.mtbf_s))
    return math.sqrt(2 * job.block_s * job.mtbf_s) * (1 + root / 3 + root * root / 9) - job.block_s


def best_goodput(job: Reliability) -> float:
    """Goodput at the best interval: ``(1 - τ/M) e^(-R/M)``."""
    return (1 - best_interval(job) / job.mtbf_s) * math.exp(-job.recovery_s / job.mtbf_s)


def largest_recovery(mtbf_s: float, goal: float) -> float:
    """Seconds that a recovery may take for ``goal`` if checkpoints cost nothing: ``-M ln goal``."""
    return -Reliability(mtbf_s, 0, 0).mtbf_s * math.log(_share(goal))


def largest_block(mtbf_s: float, recovery_s: float, goal: float) -> float:
    """Seconds that a checkpoint may block for ``goal`` at its best interval; 0 where the recovery alone is too long.

    From ``goal = (1 - τ/M) e^(-R/M)`` and the best τ: ``δ = M (y - ln y - 1)`` with ``y = goal e^(R/M)``.
    """
    job = Reliability(mtbf_s, 0, recovery_s)
    if recovery_s >= largest_recovery(mtbf_s, goal):
        return 0.0
    y = goal * math.exp(job.recovery_s / job.mtbf_s)
    return mtbf_s * ((y - 1) - math.log1p(y - 1))


def needed_mtbf(block_s: float, recovery_s: float, goal: float) -> float:
    """Seconds between two failures of the job that ``goal`` needs, with a checkpoint at the best interval.

    Infinite for a goal of 1; 0 where neither a checkpoint nor a recovery costs anything.
    """
    _share(goal)
    if block_s == recovery_s == 0:
        return 0.0
    low = high = block_s + recovery_s
    while best_goodput(Reliability(high, block_s, recovery_s)) < goal:
        high *= 2
        if not math.isfinite(high):
            return math.inf
    while best_goodput(Reliability(low, block_s, recovery_s)) > goal:
        low /= 2
    for _ in range(200):  # halved until two neighbours are left
        middle = math.sqrt(low * high)
        if best_goodput(Reliability(middle, block_s, recovery_s)) < goal:
            low = middle
        else:
            high = middle
    return high


def _share(goal: float) -> float:
    if not 0 < goal < 1:
        raise UsageError(f"the goal is {goal:g}: it must lie between 0 and 1, as in 0.98")
    return goal

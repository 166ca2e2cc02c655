"""Goodput of a job that fails at random, in closed form.

Failures are exponential with the job's MTBF M. A segment is τ seconds of steps and a checkpoint that blocks for δ. A
failure at any point of the segment loses it, and it starts again after R seconds. A failure during the R seconds
restarts them. The expected time of a segment is then ``M e^(R/M) (e^((τ+δ)/M) - 1)`` (Daly, "A higher order estimate of
the optimum checkpoint interval for restart dumps", FGCS 2006, equation 13), and goodput is τ over it.

The formula does not cover groups of failures, long repairs without spares, hangs that are detected late, and
stragglers. `simulate` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import lambertw

from armillary.recipe import UsageError

HOUR_S = 3600.0
MOST_ACCELERATORS = 10**8
_LARGEST = 700.0  # e to this power does not overflow


@dataclass(frozen=True)
class Reliability:
    """The failure rate of a job, and the costs of a failure and a checkpoint, in seconds.

    ``mtbf_s`` is that of the whole job. ``block_s`` (δ) is the time that training waits for a checkpoint.
    ``recovery_s`` (R) is the time from a failure to the next step: detection, restart, and reading the checkpoint.

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
        """The rates of ``accelerators`` that fail independently, each every ``mtbf_accelerator_hours`` on average."""
        if not 1 <= accelerators <= MOST_ACCELERATORS:
            raise UsageError(f"accelerators is {accelerators}: there must be 1 to {MOST_ACCELERATORS:,}")
        return cls(mtbf_accelerator_hours * HOUR_S / accelerators, block_s, recovery_s)


def goodput(job: Reliability, interval_s: float) -> float:
    """Share of the elapsed time spent on steps that count, with a checkpoint every ``interval_s`` seconds of steps."""
    if not math.isfinite(interval_s) or interval_s <= 0:
        raise UsageError(f"interval_s is {interval_s:g}: it must be a positive number of seconds")
    segment = (interval_s + job.block_s) / job.mtbf_s
    exponent = job.recovery_s / job.mtbf_s
    if segment + exponent > _LARGEST:
        return 0.0
    return interval_s / (job.mtbf_s * math.exp(exponent) * math.expm1(segment))


def best_interval(job: Reliability) -> float:
    """Seconds of steps between two checkpoints that maximise ``goodput``; 0 if a checkpoint costs nothing.

    Setting the derivative to zero gives ``τ = M (1 + W(-e^(-1-δ/M)))``, with Lambert's W on its principal branch.
    """
    if job.block_s == 0:
        return 0.0
    ratio = job.block_s / job.mtbf_s
    if ratio < 1e-6:  # 1 + W(-1/e + small) cancels, so use its series, which begins with Young's estimate
        root = math.sqrt(2 * ratio)
        return job.mtbf_s * (root - root * root / 3)
    return float(job.mtbf_s * (1 + lambertw(-math.exp(-1 - ratio)).real))


def young_interval(job: Reliability) -> float:
    """The estimate ``sqrt(2 δ M)`` (Young, CACM 1974, equation 9)."""
    return math.sqrt(2 * job.block_s * job.mtbf_s)


def daly_interval(job: Reliability) -> float:
    """Daly's higher-order estimate (2006, equation 37); M if a checkpoint costs more than 2 M."""
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
    """Seconds that a checkpoint may block for ``goal`` at its best interval; 0 if the recovery alone is too long.

    From ``goal = (1 - τ/M) e^(-R/M)`` and the best τ: ``δ = M (y - ln y - 1)`` with ``y = goal e^(R/M)``.
    """
    job = Reliability(mtbf_s, 0, recovery_s)
    if recovery_s >= largest_recovery(mtbf_s, goal):
        return 0.0
    y = goal * math.exp(job.recovery_s / job.mtbf_s)
    return mtbf_s * ((y - 1) - math.log1p(y - 1))


def needed_mtbf(block_s: float, recovery_s: float, goal: float) -> float:
    """Seconds between two failures of the job that ``goal`` needs, with a checkpoint at the best interval.

    Infinite for a goal of 1; 0 if neither a checkpoint nor a recovery costs anything.
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
    for _ in range(200):  # bisection down to neighbouring floats
        middle = math.sqrt(low * high)
        if best_goodput(Reliability(middle, block_s, recovery_s)) < goal:
            low = middle
        else:
            high = middle
    return high


def _share(goal: float) -> float:
    if not 0 < goal < 1:
        raise UsageError(f"the goal is {goal:g}: it must be between 0 and 1, such as 0.98")
    return goal

"""The computations of the goodput verbs: a simulated run in a file, and the frontier of a goal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from armillary.goodput.cluster import Cluster
from armillary.goodput.events import write_events
from armillary.goodput.formula import HOUR_S, Reliability, best_interval, goodput, largest_block, largest_recovery
from armillary.goodput.ledger import read_ledger
from armillary.goodput.simulate import one_tier, simulate
from armillary.recipe import UsageError, load_document

# Recovery times of the frontier, as shares of the longest that the goal allows.
_SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)


def cluster_of(
    file: Path | None,
    accelerators: int | None = None,
    mtbf_accelerator_hours: float | None = None,
    checkpoint_block_s: float | None = None,
    checkpoint_interval_s: str = "best",
    recovery_s: float | None = None,
) -> Cluster:
    """The cluster in a YAML file, or the cluster of the exact formula from its five numbers.

    ``checkpoint_interval_s`` is a number of seconds, or ``best``.

    Raises:
        UsageError: both or neither are given, a number is missing, or the file does not fit, with file and line.
    """
    given = {
        "--accelerators": accelerators,
        "--mtbf-accelerator-hours": mtbf_accelerator_hours,
        "--checkpoint-block-s": checkpoint_block_s,
        "--recovery-s": recovery_s,
    }
    if file is not None:
        doubled = [name for name, value in given.items() if value is not None]
        if doubled:
            raise UsageError(f"{doubled[0]} and --cluster: the file sets it already; leave the option out")
        return load_document(file, Cluster)
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise UsageError(f"{missing[0]} is missing; give it, or --cluster FILE")
    assert accelerators and mtbf_accelerator_hours and checkpoint_block_s is not None and recovery_s is not None
    job = Reliability.of_cluster(accelerators, mtbf_accelerator_hours, checkpoint_block_s, recovery_s)
    interval_s = _interval(checkpoint_interval_s, job)
    return one_tier(accelerators, mtbf_accelerator_hours, checkpoint_block_s, interval_s, recovery_s)


def _interval(text: str, job: Reliability) -> float:
    if text == "best":
        if job.block_s == 0:
            raise UsageError(
                "--checkpoint-interval-s best: with checkpoints that cost nothing, every step is best; give a "
                "number of seconds"
            )
        return best_interval(job)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"--checkpoint-interval-s {text}: must be a positive number of seconds, or best")
    return value


def run_simulation(cluster: Cluster, days: float, seed: int, out: Path) -> dict[str, Any]:
    """Simulate into the file ``out``, and read it back with the ledger.

    Returns the ledger's report with ``checkpoint_interval_s``, and ``formula``: the exact goodput if the formula covers
    everything in the cluster, else None.

    Raises:
        UsageError: ``out`` exists, or ``days`` is not positive.
        ArmillaryError: the file cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out}: exists; give another file, or remove it")
    write_events(out, simulate(cluster, days, seed))
    tier = cluster.tiers[0]
    plain = len(cluster.tiers) == 1 and len(cluster.causes) == 1 and not (
        cluster.spares is not None or cluster.lemons or cluster.stragglers
    )  # fmt: skip
    formula = None
    if plain:
        (cause,) = cluster.causes.values()
        recovery_s = cluster.recovery_s + cause.detection_s + tier.read_s
        formula = goodput(Reliability(cluster.mtbf_s, tier.block_s, recovery_s), tier.interval_s)
    return {
        **read_ledger(out).to_json(),
        "formula": formula,
        "checkpoint_interval_s": min(one.interval_s for one in cluster.tiers),
        "days": days,
        "seed": seed,
        "cluster": json.loads(cluster.model_dump_json()),
    }


def limits_of(
    accelerators: int, mtbf_accelerator_hours: float, goal: float, recoveries_s: Sequence[float] = ()
) -> dict[str, Any]:
    """The frontier of ``goal``: for several recovery times, the longest block of a checkpoint at its best interval.

    ``recoveries_s`` are the recovery times; by default shares of the longest that the goal allows. For a longer
    recovery, block and interval are None.

    Raises:
        UsageError: a value is out of range.
    """
    job = Reliability.of_cluster(accelerators, mtbf_accelerator_hours, 0, 0)
    longest = largest_recovery(job.mtbf_s, goal)
    frontier: list[dict[str, float | None]] = []
    for recovery_s in recoveries_s or [share * longest for share in _SHARES]:
        block_s = interval_s = None
        if recovery_s < longest:
            block_s = largest_block(job.mtbf_s, recovery_s, goal)
            interval_s = best_interval(Reliability(job.mtbf_s, block_s, recovery_s))
        frontier.append({"recovery_s": recovery_s, "checkpoint_block_s": block_s, "checkpoint_interval_s": interval_s})
    return {
        "goal": goal,
        "accelerators": accelerators,
        "mtbf_accelerator_hours": mtbf_accelerator_hours,
        "mtbf_job_s": job.mtbf_s,
        "failures_per_day": 24 * HOUR_S / job.mtbf_s,
        "largest_recovery_s": longest,
        "frontier": frontier,
    }

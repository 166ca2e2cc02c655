"""A run with faults beside the simulator and the exact formula, which use only what was measured in the run.

The formula has neither a start nor validations nor slow steps. So these are left out of the run's time, and slow steps
count as productive. All time between steps that has no other account counts as that of checkpoints.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import median
from typing import Any

from armillary.goodput.events import event_files, read_events
from armillary.goodput.formula import Reliability, goodput
from armillary.goodput.ledger import Account, ends_training, ledger, read_ledger
from armillary.goodput.simulate import one_tier, simulate
from armillary.recipe import UsageError

ALLOWED = 0.02  # difference in goodput between a run and its simulation
_HOUR_S, _DAY_S = 3600.0, 86_400.0
FAILURES = 1000  # of the simulated job
_LEFT_OUT: tuple[Account, ...] = ("start_up", "evaluation", "compile", "paused")
_SAVED = ("checkpoint", "snapshot", "checkpoint_begin")


def compare(path: Path, seed: int = 0) -> dict[str, Any]:
    """Compare the run of a folder, or of one file of events, with its simulation and the formula.

    Returns:
        ``goodput``, ``simulated`` and ``formula`` as shares, and under ``measured`` the number of ``faults``, the time
        of a step, the steps between two checkpoints or snapshots, the time that one blocks, the time from a fault to
        the next step, and the mean time between faults, in seconds.

    Raises:
        UsageError: the run has no events, no fault that ended its training, no recovery, or no checkpoints.
        DamagedFileError, ForeignFileError: as ``read_events``.
    """
    found = read_ledger(path)
    files = event_files(path) if path.is_dir() else {0: path}
    streams = {rank: list(read_events(file)) for rank, file in files.items()}
    events = [event for own in streams.values() for event in own]
    faults = sum(event.kind == "fault" and ends_training(event) for event in events)
    first = streams[min(streams)]
    saved = sorted({event.step for event in first if event.kind in _SAVED})
    steps = max(event.step for event in events)
    if not faults or not found.recovery_s or len(saved) < 2 or not steps:
        raise UsageError(
            f"{path}: has {faults} faults that ended training, {len(found.recovery_s)} recoveries and {len(saved)} "
            "checkpoints; a comparison needs one, one and two (armillary train RUN.yaml --inject FAULTS.yaml)"
        )
    elapsed_s = found.elapsed_s - sum(found.seconds[account] for account in _LEFT_OUT)
    productive_s = found.seconds["productive"] + found.seconds["degraded"]
    step_s = productive_s / steps
    every = median(later - before for before, later in itertools.pairwise(saved))
    job = Reliability(
        elapsed_s / faults,
        (found.seconds["checkpoint"] + found.seconds["other"]) * every / steps,
        (sum(found.detection_s) + sum(found.recovery_s)) / len(found.recovery_s),
    )
    interval_s = every * step_s
    cluster = one_tier(found.ranks, found.ranks * job.mtbf_s / _HOUR_S, job.block_s, interval_s, job.recovery_s)
    cluster = cluster.model_copy(update={"step_s": step_s})
    return {
        "goodput": productive_s / elapsed_s,
        "simulated": ledger({0: list(simulate(cluster, FAILURES * job.mtbf_s / _DAY_S, seed))}).goodput,
        "formula": goodput(job, interval_s),
        "measured": {
            "faults": faults, "step_s": step_s, "checkpoint_interval_s": interval_s, "checkpoint_block_s": job.block_s,
            "recovery_s": job.recovery_s, "mtbf_s": job.mtbf_s,
        },
    }  # fmt: skip

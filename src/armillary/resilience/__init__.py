"""Faults of a run over many ranks: detection, recovery, and injection."""

from armillary.resilience.detect import Detector, Finding
from armillary.resilience.heartbeats import Heartbeat, Heartbeats, HeartbeatWriter
from armillary.resilience.inject import (
    KINDS,
    Fault,
    FaultClock,
    FaultHook,
    FaultRate,
    Faults,
    FaultState,
    RandomFaults,
    load_faults,
)
from armillary.resilience.judge import WINDOW, Judge, Verdict
from armillary.resilience.nodes import NODE_FAILURES, Attempt, Ending, excluded_nodes, may_restart
from armillary.resilience.patience import START_S, Patience, wait_limit
from armillary.resilience.snapshots import forget, forget_here, memory_folder

__all__ = [
    "KINDS",
    "NODE_FAILURES",
    "START_S",
    "WINDOW",
    "Attempt",
    "Detector",
    "Ending",
    "Fault",
    "FaultClock",
    "FaultHook",
    "FaultRate",
    "FaultState",
    "Faults",
    "Finding",
    "Heartbeat",
    "HeartbeatWriter",
    "Heartbeats",
    "Judge",
    "Patience",
    "RandomFaults",
    "Verdict",
    "excluded_nodes",
    "forget",
    "forget_here",
    "load_faults",
    "may_restart",
    "memory_folder",
    "wait_limit",
]

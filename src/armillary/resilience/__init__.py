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
from armillary.resilience.snapshots import forget, memory_folder

__all__ = [
    "KINDS",
    "WINDOW",
    "Detector",
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
    "RandomFaults",
    "Verdict",
    "forget",
    "load_faults",
    "memory_folder",
]

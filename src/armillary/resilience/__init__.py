"""Faults of a run over many ranks: found from outside, put right, and made on purpose."""

from armillary.resilience.detect import Detector, Finding
from armillary.resilience.heartbeats import Heartbeat, Heartbeats, HeartbeatWriter
from armillary.resilience.inject import Fault, Faults, Inject, Injection, load_faults
from armillary.resilience.snapshots import forget, memory_folder

__all__ = [
    "Detector",
    "Fault",
    "Faults",
    "Finding",
    "Heartbeat",
    "HeartbeatWriter",
    "Heartbeats",
    "Inject",
    "Injection",
    "forget",
    "load_faults",
    "memory_folder",
]

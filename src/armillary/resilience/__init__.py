"""Faults of a run over many ranks: found from outside, put right, and made on purpose."""

from armillary.resilience.beats import Beats, Pulse, Sign
from armillary.resilience.detect import Detector, Finding
from armillary.resilience.inject import Fault, Faults, Inject, Injection, load_faults
from armillary.resilience.memory import forget, memory_folder

__all__ = [
    "Beats",
    "Detector",
    "Fault",
    "Faults",
    "Finding",
    "Inject",
    "Injection",
    "Pulse",
    "Sign",
    "forget",
    "load_faults",
    "memory_folder",
]

"""The training rate of a fleet of workers in tokens per second, by kind of run, kept in the store.

A budget in time is divided by rates. A rate is looked up before it is measured. Finished runs of a study give the best
rate, since their steps waited for data, wrote events and shared the machine like the next ones. A probe (training steps
on random tokens) is run once, for work that was never trained here.

The key of a rate covers everything that affects a step's time: shape, context, batch, precision, optimizer, z-loss,
accumulation, length phases, and the machine.

Trade-offs: a machine is the device, the workers or the layout of ranks, and the versions. Machines that share a store
have separate rates, and a new version of torch or of this package starts without rates. Time lost to other programs is
part of a run's rate; later runs correct it, because only the last minutes count. A cluster of different nodes is one
machine with all their names. If nodes join or leave during a study, its runs count for the workers at its end.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

import armillary
from armillary.goodput import read_events
from armillary.launch import Probe
from armillary.recipe import Document, RunSpec, canonical_hash
from armillary.store import Store

Precision = Literal["fp32", "bf16"]

# A probe is the median of several windows, interleaved with those of the other shapes. So a short load from other
# programs affects one window of each shape instead of all windows of one. The best window would give a rate that runs
# never reach.
_WINDOWS, _WINDOW_S = 5, 0.5
# Seconds of training after which the rate of runs replaces that of a probe, and after which older runs do not count.
_ENOUGH_S, _MEMORY_S = 3.0, 600.0


class Machinery(Protocol):
    """Workers that train runs, and the store of the runs."""

    @property
    def store(self) -> Store:
        """The store of runs and rates."""

    @property
    def n_workers(self) -> int:
        """Number of runs that train at the same time."""

    @property
    def device(self) -> str:
        """Name of the workers' accelerator or processor, not of this process's."""


class Fleet(Machinery, Protocol):
    """A fleet whose throughput can be measured."""

    def measure(self, probes: Sequence[Probe]) -> list[float]:
        """Tokens per second of all workers together for each probe."""


class Machine(Document):
    """The inputs of a rate besides the run: the device, the number of workers on the machine, and the versions."""

    device: str
    workers: int
    torch: str
    armillary: str

    @property
    def id(self) -> str:
        """16 hexadecimal digits under which the store keeps this machine's rates."""
        return canonical_hash(self.model_dump(mode="json"))


def machine(fleet: Machinery) -> Machine:
    """The machine, or the machines, of the fleet's workers."""
    return Machine(
        device=fleet.device, workers=fleet.n_workers, torch=str(torch.__version__), armillary=armillary.__version__
    )


def train_rates(fleet: Fleet, probes: Sequence[Probe]) -> list[float]:
    """Tokens per second of all workers together for each probe: from runs, else from an earlier probe, else measured
    now.

    Raises:
        ArmillaryError: a worker died, or could not train at this size.
    """
    _measure(fleet, [probe for probe in probes if not _known(fleet, probe)])
    return [known["runs"] if "runs" in known else known["probe"] for known in (_known(fleet, p) for p in probes)]


def faster_precision(fleet: Fleet, probe: Probe) -> Precision:
    """The precision with the faster steps for ``probe`` on this machine, ignoring the probe's own; fp32 in a tie.

    Both are compared by rates of the same kind (probe or runs), since runs are a little slower than a probe.

    Raises:
        ArmillaryError: as ``train_rates``.
    """
    choices: tuple[Precision, ...] = ("fp32", "bf16")
    probes = [replace(probe, precision=precision) for precision in choices]
    known = [_known(fleet, probe) for probe in probes]
    how = "runs" if all("runs" in k for k in known) else "probe"
    _measure(fleet, [probe for probe, k in zip(probes, known, strict=True) if how not in k])
    single, half = (_known(fleet, probe)[how] for probe in probes)
    return "bf16" if half > single else "fp32"


def record_rates(fleet: Machinery, specs: Iterable[RunSpec], since: float) -> None:
    """Record the rates of runs on this fleet after ``since`` (seconds since the epoch).

    They are read from the runs' events: tokens of training steps per second spent on them, times the workers. Events
    before ``since`` do not count, since they may come from another machine.
    """
    spent: dict[Probe, tuple[float, float]] = {}
    for spec in {spec.id: spec for spec in specs}.values():
        probe = Probe.of(spec)
        steps, seconds = _trained(fleet.store.run_folder(spec.id) / "events.jsonl", since)
        tokens_before, seconds_before = spent.get(probe, (0.0, 0.0))
        spent[probe] = tokens_before + steps * spec.batch_tokens, seconds_before + seconds
    for probe, (tokens, seconds) in spent.items():
        if seconds < _ENOUGH_S:
            continue
        per_token, remembered = seconds / tokens, 0.0
        for row in fleet.store.rates(**_key(fleet, probe), how="runs"):
            remembered = min(row["seconds"], _MEMORY_S)
            # Seconds per token are averaged, because a budget adds times, not rates.
            tokens_before = remembered * row["tokens_per_s"] / fleet.n_workers
            per_token = (seconds + remembered) / (tokens + tokens_before)
        _record(fleet, probe, "runs", fleet.n_workers / per_token, seconds + remembered)


def _trained(events: Path, since: float) -> tuple[float, float]:
    """Steps of a run after ``since``, and their seconds; a repeated step counts once."""
    taken: list[tuple[int, int, float, bool]] = []  # first and last step, seconds, and whether they count
    last = 0
    if events.exists():
        for event in read_events(events):
            # Only these give the current step: a checkpoint may be reported some steps after its own.
            if event.kind in ("start", "resume"):
                again, last = event.step, event.step
                taken = [
                    (first, min(end, again), seconds * (min(end, again) - first) / (end - first), counts)
                    for first, end, seconds, counts in taken
                    if first < again
                ]
            elif event.kind == "progress" and event.duration_s is not None and event.step > last:
                counts = event.time_s - event.duration_s >= since
                taken.append((last, event.step, event.duration_s, counts))
                last = event.step
    steps = sum(end - first for first, end, _, counts in taken if counts)
    return steps, sum(seconds for *_, seconds, counts in taken if counts)


def _measure(fleet: Fleet, probes: Sequence[Probe]) -> None:
    """Measure the rates of ``probes``, and record them."""
    if not probes:
        return
    windows = fleet.measure([replace(probe, seconds=_WINDOW_S) for probe in probes] * _WINDOWS)
    for number, probe in enumerate(probes):
        _record(fleet, probe, "probe", statistics.median(windows[number :: len(probes)]), _WINDOWS * _WINDOW_S)


def _known(fleet: Fleet, probe: Probe) -> dict[str, float]:
    """Rates of this machine for the work of the probe, by their source: ``probe``, ``runs``."""
    return {row["how"]: row["tokens_per_s"] for row in fleet.store.rates(**_key(fleet, probe))}


def _key(fleet: Machinery, probe: Probe) -> dict[str, str | int]:
    return {
        "machine": machine(fleet).id,
        "shape": canonical_hash([probe.shape.model_dump(mode="json"), _work(probe)]),
        "context_length": probe.context_length,
        "batch_sequences": probe.batch_sequences,
        "precision": probe.precision,
    }


def _work(probe: Probe) -> dict[str, Any]:
    """The inputs of a step's time besides shape, batch and precision."""
    return {
        "optimizer": probe.optimizer,
        "z_loss": probe.z_loss > 0,
        "accumulation": probe.accumulation,
        "lengths": [phase.model_dump(mode="json") for phase in probe.lengths],
    }


def _record(fleet: Machinery, probe: Probe, how: str, rate: float, seconds: float) -> None:
    about = {
        "machine": machine(fleet).model_dump(mode="json"),
        "model": probe.shape.model_dump(mode="json"),
        "work": _work(probe),
    }
    fleet.store.record_rate(
        _key(fleet, probe) | {"how": how}, tokens_per_s=rate, seconds=seconds, recorded_at=time.time(), about=about
    )

"""The constants of the planner: the shares of data-sheet figures that training programs reach, with sources.

Those in ``calibration.toml`` are physical: shares of a peak that benchmarks of single operations show. Those in
``factors.toml`` are fitted to published runs by ``armillary plan validate CSV --factors FILE``: a factor on compute
time for each accelerator and each family of programs, and the width of intervals.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

from armillary.plan.hardware_files import Accelerator


@dataclass(frozen=True)
class Interval:
    """Quantiles of the log of measured over predicted."""

    low: float
    high: float

    def around(self, value: float) -> tuple[float, float]:
        """Lower and upper end for a predicted value."""
        return value * math.exp(self.low), value * math.exp(self.high)


@dataclass(frozen=True)
class Constants:
    """Shares, bytes and factors; see ``calibration.toml`` for the meaning and the source of each."""

    matmul: float = 0.75
    matmul_fp8: float = 0.65
    matmul_fp4: float = 0.5
    attention: float = 0.5
    attention_older: float | None = None
    narrow_heads: float = 0.7
    batched: float = 0.5
    bandwidth: float = 0.85
    traffic: float = 0.6
    misaligned: float = 0.75
    elementwise: float = 1.0
    unfused: float = 2.0
    scores_bytes: float = 12.0
    logits_bytes: float = 16.0
    cast_bytes: float = 3.0
    grouped: float = 1.25
    permute: float = 3.0
    optimizer_bytes: float = 30.0
    link: float = 0.75
    network: float = 0.7
    straggle: float = 0.008
    pipeline_exposed: float = 0.5
    offload_s_per_number: float = 1.5e-9
    communicator_gb: float = 0.8
    generations: dict[str, dict[str, float]] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)

    def matmul_of(self, precision: str) -> float:
        """The share of the peak that large matrix products reach in a precision."""
        return {"fp8": self.matmul_fp8, "fp4": self.matmul_fp4}.get(precision, self.matmul)

    def of(self, accelerator: Accelerator) -> Constants:
        """The constants with the values of the accelerator's generation, or those measured on it."""
        own: dict[str, Any] = {**self.generations.get(accelerator.generation, {}), **accelerator.shares}
        return replace(self, **own)

    def factor(self, *names: str) -> float:
        """The product of the calibrated factors on compute time for ``names``; 1 for a name without one."""
        product = 1.0
        for name in names:
            product *= self.factors.get(name, 1.0)
        return product

    def interval(self, kind: str) -> Interval:
        """The 90 % interval of a kind of prediction (``uncertainty.kind_of``)."""
        return self.intervals.get(kind) or self.intervals["all"]


@cache
def constants() -> Constants:
    """The constants of the package."""
    folder = files("armillary.plan")
    read = tomllib.loads(folder.joinpath("calibration.toml").read_text("utf-8"))
    fitted = tomllib.loads(folder.joinpath("factors.toml").read_text("utf-8"))
    intervals = {name: Interval(*ends) for name, ends in fitted["intervals"].items()}
    return Constants(**read["physics"], generations=read["generation"], factors=fitted["factors"], intervals=intervals)

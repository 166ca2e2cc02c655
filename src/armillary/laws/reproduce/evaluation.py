"""The results of a reproduction: figures beside the published ones, and forecasts for coverage."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """One line of a table: our value beside the published one and the trivial rule's, if they exist.

    ``low`` and ``high`` are the ends of an interval for ``ours`` (over resampled training sets), if one was taken.
    ``goal`` is our goal; ``better`` says whether ``lower``, ``higher`` or ``equal`` is better.
    """

    measure: str
    ours: float
    published: float | None = None
    trivial: float | None = None
    low: float | None = None
    high: float | None = None
    goal: float | None = None
    better: str = "lower"
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Forecast:
    """A held-out measurement, and the prediction of a law fitted without it: 90 % interval ``low`` to ``high``.

    ``group`` names forecasts with correlated errors (one fit, one held-out size); coverage counts each forecast.
    """

    group: str
    what: str
    predicted: float
    low: float
    high: float
    measured: float
    extrapolation: float

    @property
    def inside(self) -> bool:
        """Whether the interval covers the measurement."""
        return self.low <= self.measured <= self.high


@dataclass(frozen=True)
class Evaluation:
    """A reproduced result: its name, its description with the source, figures and forecasts."""

    name: str
    source: str
    figures: list[Figure]
    forecasts: list[Forecast] = field(default_factory=list)

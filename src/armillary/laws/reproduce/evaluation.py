"""What a reproduction of a published result says: figures beside the published ones, and forecasts for coverage."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """One line of a table: ours beside the published value and the trivial rule's, where there are such.

    ``low`` and ``high`` are the ends of an interval for ``ours`` (over resampled training sets), if one was taken.
    ``goal`` is what we set out to reach; ``better`` says whether ``lower`` or ``higher`` is better, or ``equal``.
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
    """A measurement that was held out, and what a law fitted without it said: 90 % interval ``low`` to ``high``.

    ``group`` names forecasts that stand or fall together (one fit, one held-out size); coverage counts each forecast.
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
    """A published result, carried out again: its name, what it is with its source, figures and forecasts."""

    name: str
    source: str
    figures: list[Figure]
    forecasts: list[Forecast] = field(default_factory=list)

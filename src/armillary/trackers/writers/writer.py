"""The contract of a tracker's writer, and how one is opened.

A writer continues the tracker's run of the same Armillary run, if there is one. ``last`` is the last step of which the
tracker has everything, by its own records, so a kill at any point neither repeats a step nor leaves one out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from armillary.recipe import UsageError
from armillary.trackers.destination import Destination
from armillary.trackers.source import About, Row, State

# The module of a tracker and the extra that installs its package have the tracker's name.
_WRITERS = {
    "tensorboard": "TensorBoardWriter",
    "mlflow": "MlflowWriter",
    "wandb": "WandbWriter",
    "trackio": "TrackioWriter",
}


class Writer(ABC):
    """One run in one tracker. Opening reads what the tracker has of it."""

    last: int

    @abstractmethod
    def __init__(self, about: About, where: Destination) -> None: ...

    @abstractmethod
    def write(self, rows: Sequence[Row]) -> None:
        """Add the rows of steps after ``last``, in order; on return they are there for other programs."""

    @abstractmethod
    def close(self, state: State) -> None:
        """Release the tracker; ``state`` is that of the run."""


def open_writer(about: About, where: Destination) -> Writer:
    """The writer of a run at a destination.

    Raises:
        UsageError: the tracker's package is not installed.
        Exception: as the package raises.
    """
    try:
        module = import_module(f"armillary.trackers.writers.{where.tracker}")
        writer: Writer = getattr(module, _WRITERS[where.tracker])(about, where)
    except ImportError as error:
        raise UsageError(
            f"{error.name or where.tracker} is not installed here: pip install 'armillary[{where.tracker}]'"
        ) from error
    return writer


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """A document as dotted fields with plain values."""
    if isinstance(content, dict):
        parts = [flat(value, f"{prefix}{name}.") for name, value in content.items()]
    elif isinstance(content, list | tuple) and any(isinstance(value, dict | list | tuple) for value in content):
        parts = [flat(value, f"{prefix}{number}.") for number, value in enumerate(content)]
    else:
        return {prefix.rstrip("."): content}
    return {name: value for part in parts for name, value in part.items()}

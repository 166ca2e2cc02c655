"""The places to run that ``--on`` names: one file each, which registers its place under the word before ``://``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from armillary.launch.workers.pool import WorkerExecutor
from armillary.recipe import UsageError
from armillary.store import Store


@dataclass(frozen=True)
class Place:
    """A place to run: ``addresses`` says what to give to ``--on``, ``check`` refuses an address that cannot be used.

    ``open`` takes the store, the folder of the corpus, the address and a number of workers (None: as many as fit).
    """

    addresses: str
    check: Callable[[str], None]
    open: Callable[[Store, Path, str, int | None], WorkerExecutor]


_PLACES: dict[str, Place] = {}


def register_place(name: str, place: Place) -> None:
    """Make a place known to ``--on``, whose addresses are ``name`` alone or begin with ``name://``."""
    _PLACES[name] = place


def check_place(on: str) -> None:
    """Refuse, before any work, an address that cannot be used; connects to nothing.

    Raises:
        UsageError: no place has such an address, or its package is not installed.
    """
    _find(on).check(on)


def open_place(on: str, store: Store, corpus: Path, workers: int | None) -> WorkerExecutor:
    """The executor at the address ``on``.

    Raises:
        UsageError: as ``check_place``.
    """
    return _find(on).open(store, corpus, on, workers)


def _find(on: str) -> Place:
    place = _PLACES.get(on.partition("://")[0])
    if place is None:
        known = " or ".join(place.addresses for place in _PLACES.values())
        raise UsageError(f"--on {on}: not understood; give {known}")
    return place

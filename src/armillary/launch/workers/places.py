"""The registry of places for ``--on``. Each place is one file, registered under the scheme before ``://``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from armillary.launch.workers.pool import WorkerExecutor
from armillary.recipe import UsageError
from armillary.store import Store


@dataclass(frozen=True)
class Place:
    """A place to run: ``addresses`` describes its addresses for ``--on``, ``check`` refuses an unusable address.

    ``open`` takes the store, the corpus folder, the address and the number of workers (None: as many as fit).
    """

    addresses: str
    check: Callable[[str], None]
    open: Callable[[Store, Path, str, int | None], WorkerExecutor]


_PLACES: dict[str, Place] = {}


def register_place(name: str, place: Place) -> None:
    """Register a place for ``--on``; its addresses are ``name`` alone or begin with ``name://``."""
    _PLACES[name] = place


def check_place(on: str) -> None:
    """Refuse an unusable address before any work, without connecting.

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
        raise UsageError(f"--on {on}: unknown; give {known}")
    return place

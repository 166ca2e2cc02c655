"""What the console watches: stores and folders of runs, each read-only and each on its own.

A place that cannot be read now (locked, torn, of a newer format, deleted, replaced) is one line on the page, and the
others go on. Keys in addresses are ids of runs, or hashes of paths that were found here, so that no address is a path.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from armillary.console.curves import state_of
from armillary.goodput import event_files
from armillary.recipe import (
    EVENTS,
    RESULT,
    SPEC,
    ArmillaryError,
    RunSpec,
    UsageError,
    read_json,
    read_result,
    read_spec,
)
from armillary.store import Chain, Key, ListedRun, Reader, RunFilter, StudyState, facts_of, in_use

T = TypeVar("T")

_NOWHERE = Path("/dev/null")  # the folder of a store of which only the database is known: nothing lies in it
_DEEPEST = 3
_LOOKS = 20_000  # folders that are entered at most
_AGAIN_S = 5.0  # until folders are looked through again
_PATIENCE = 10  # what took a second to read is not read again for this many
_PASSED = {"store", "corpus", "checkpoints", "metrics", "node_modules", "__pycache__"}


@dataclass(frozen=True)
class Found:
    """What lies in a folder that is watched, by key: run folders, examinations, publications."""

    runs: dict[str, Path] = field(default_factory=dict)
    examinations: dict[str, Path] = field(default_factory=dict)
    publications: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run of a place: how it is listed, its specification (None where it cannot be read), and its folder."""

    place: Place
    listed: ListedRun
    content: dict[str, Any] | None
    folder: Path

    @property
    def key(self) -> str:
        """What names the run in addresses."""
        return f"{self.place.number}.{self.listed.run}"

    @cached_property
    def spec(self) -> RunSpec | None:
        """The specification as this version reads it."""
        try:
            return None if self.content is None else RunSpec.model_validate(self.content)
        except ValueError:
            return None


@dataclass
class Check:
    """What is known of a store's chain: the head that was checked, when, what was found, and how long it took."""

    head: tuple[int, str] = (-1, "")
    at: float = 0.0
    took: float = 0.0
    chain: Chain | None = None
    error: str = ""
    running: bool = False


@dataclass(frozen=True)
class _Known:
    """What was read of a store: the state of its files then, when, and how many seconds it took."""

    state: Any
    at: float
    took: float
    value: list[StudyState]


class Place:
    """One store or folder. ``workspace`` is looked through for examinations and publications."""

    def __init__(self, number: int, name: str, workspace: Path | None, reader: Reader | None) -> None:
        self.number, self.name, self.workspace, self.reader = number, name, workspace, reader
        self.check = Check()
        self._studies: _Known | None = None
        self._found, self._looked = Found(), float("-inf")
        self._listed: dict[str, tuple[Any, ListedRun]] = {}

    @property
    def found(self) -> Found:
        """What lies in the workspace; looked for again after some seconds."""
        if self.workspace is not None and time.monotonic() - self._looked > _AGAIN_S:
            self._found, self._looked = _look(self.workspace, self.reader is None), time.monotonic()
        return self._found

    def page(self, wanted: RunFilter, limit: int, before: Key | None) -> list[ListedRun]:
        """At most ``limit`` runs, the newest first.

        Raises:
            ArmillaryError: the store cannot be read.
        """
        if self.reader is not None:
            return self.reader.page(wanted, limit, before)
        rows = sorted(
            (self._folder_run(key) for key in self.found.runs), key=lambda row: (row.created_at, row.run), reverse=True
        )
        return [
            row
            for row in rows
            if (before is None or (row.created_at, row.run) < before)
            and wanted.status in ("", row.status)
            and (not wanted.study or wanted.study in row.studies)
            and row.run.startswith(wanted.run)
            and wanted.fits(row.__dict__)
        ][:limit]

    def counts(self) -> dict[str, int]:
        """Runs by status.

        Raises:
            ArmillaryError: the store cannot be read.
        """
        if self.reader is not None:
            return self.reader.counts()
        states = [self._folder_run(key).status for key in self.found.runs]
        return {status: states.count(status) for status in dict.fromkeys(states)}

    def runs(self, keys: Sequence[str]) -> dict[str, Run]:
        """The runs of these keys, those that there are.

        Raises:
            ArmillaryError: the store cannot be read.
        """
        if self.reader is not None:
            rows = self.reader.listed(keys)
            contents = self.reader.spec_contents(row.run for row in rows)
            return {
                row.run: Run(self, row, _mapping(contents.get(row.run)), self.reader.folder_of(row.run)) for row in rows
            }
        found = {}
        for key in keys:
            folder = self.found.runs.get(key)
            if folder is None:
                continue
            try:
                content = read_json(folder / SPEC, "run specification", "")
            except (ArmillaryError, OSError):
                content = None
            found[key] = Run(self, self._folder_run(key), content, folder)
        return found

    def studies(self) -> list[StudyState]:
        """The studies of the store; of a large store that changes all the time they may be some seconds old.

        Raises:
            ArmillaryError: the store cannot be read.
        """
        if self.reader is None:
            return []
        state, begun = self.reader.state_of_file(), time.monotonic()
        known = self._studies
        if known is not None and state is not None:
            age = begun - known.at
            if age < _PATIENCE * known.took or (known.state == state and age < _AGAIN_S * _PATIENCE):
                return known.value
        value = self.reader.studies()
        self._studies = _Known(state, time.monotonic(), time.monotonic() - begun, value)
        return value

    def _folder_run(self, key: str) -> ListedRun:
        folder = self.found.runs[key]
        states = tuple(state_of(folder / name) for name in (SPEC, RESULT, EVENTS))
        known = self._listed.get(key)
        if known is not None and known[0] == states and known[1].status == "done":
            return known[1]
        listed = _listed(key, folder)
        self._listed[key] = (states, listed)
        return listed


class Watch:
    """All places, and what of them cannot be read now."""

    def __init__(self, places: list[Place]) -> None:
        self.places = places

    def each(self, act: Callable[[Place], T], problems: list[str]) -> Iterator[tuple[Place, T]]:
        """``act`` on each place; a place on which it fails is a line of ``problems``."""
        for place in self.places:
            try:
                yield place, act(place)
            except ArmillaryError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{error.filename or place.name}: {error.strerror or error}")

    def place(self, number: str) -> Place | None:
        """The place of that number in an address."""
        known = number.isascii() and number.isdigit() and len(number) < 5 and int(number) < len(self.places)
        return self.places[int(number)] if known else None

    def runs(self, keys: Sequence[str], problems: list[str]) -> list[Run]:
        """The runs of keys in an address, ``PLACE.RUN``, in their order; those that there are."""
        by_place: dict[Place, list[str]] = {}
        for key in keys:
            number, _, run = key.partition(".")
            place = self.place(number)
            if place is not None and run.isascii() and run.isalnum() and len(run) <= 16:
                by_place.setdefault(place, []).append(run)
        found: dict[str, Run] = {}
        for place, wanted in by_place.items():
            try:
                found.update({run.key: run for run in place.runs(wanted).values()})
            except (ArmillaryError, OSError) as error:
                problems.append(str(error))
        return [found[key] for key in keys if key in found]

    def run(self, key: str, problems: list[str]) -> Run | None:
        """The run of a key in an address; None where there is none."""
        return next(iter(self.runs([key], problems)), None)

    def warm(self) -> None:
        """Read what the first page shows, so that it comes at once; what cannot be read is said there."""
        for place in self.places:
            with contextlib.suppress(ArmillaryError, OSError):
                place.studies()

    def close(self) -> None:
        """End all connections."""
        for place in self.places:
            if place.reader is not None:
                place.reader.close()


def watch(given: Iterable[str]) -> Watch:
    """The places of the arguments: a workspace, a store's folder or database (file or URL), or a folder that holds any.

    Raises:
        UsageError: there is no such place, or no database can be used by that URL.
    """
    places: list[Place] = []
    for argument in given:
        if "://" in argument:
            reader = Reader(_NOWHERE, argument)
            places.append(Place(len(places), reader.database.name, None, reader))
            continue
        path = Path(argument)
        if not path.exists():
            raise UsageError(f"{path}: there is no such file or folder; give a workspace, a store or a folder of runs")
        if path.is_file():
            reader = Reader(path.parent, f"sqlite:///{path}")
            places.append(Place(len(places), argument, _workspace(path.parent), reader))
        else:
            places += _of_folder(path, len(places))
    return Watch(places)


def _workspace(store: Path) -> Path:
    return store.resolve().parent if store.resolve().name == "store" else store


def _of_folder(path: Path, first: int) -> list[Place]:
    if (path / "store.sqlite").exists():
        return [Place(first, str(path), _workspace(path), Reader(path))]
    if (path / "store").is_dir():
        return [Place(first, str(path), path, Reader(path / "store"))]
    stores = sorted(file.parent.parent for file in path.glob("*/store/store.sqlite"))
    stores += sorted(file.parent.parent for file in path.glob("*/*/store/store.sqlite"))
    places = [Place(first + n, str(one), one, Reader(one / "store")) for n, one in enumerate(stores)]
    loose = Place(first + len(places), str(path), path, None)
    return [*places, loose] if not places or loose.found.runs else places


def _look(root: Path, with_runs: bool) -> Found:
    found, entered = Found(), 0
    waiting = [(root, 0)]
    while waiting and entered < _LOOKS:
        folder, depth = waiting.pop(0)
        entered += 1
        try:
            names = {entry.name: entry for entry in os.scandir(folder)}
        except OSError:
            continue
        key = hashlib.sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        if "results.json" in names:
            found.examinations[key] = folder
        if "lineage.json" in names:
            found.publications[key] = folder
        if with_runs and (SPEC in names or EVENTS in names):
            found.runs[key] = folder
        elif depth < _DEEPEST:
            # links are not followed: they may lead out of the folder, or in a circle
            inside = [entry for entry in names.values() if entry.is_dir(follow_symlinks=False)]
            waiting += [
                (Path(entry.path), depth + 1)
                for entry in sorted(inside, key=lambda entry: entry.name)
                if not entry.name.startswith(".") and (entry.name not in _PASSED)
            ]
    return found


def _mapping(content: Any) -> dict[str, Any] | None:
    return content if isinstance(content, dict) else None


def _listed(key: str, folder: Path) -> ListedRun:
    """A run's folder as lists show it."""
    facts: dict[str, Any] = {"shape": "", "parameters": 0, "tokens": 0, "flops": 0.0, "mixture": {}, "tags": ""}
    error, result, done = None, None, False
    try:
        facts = facts_of(read_spec(folder))
    except FileNotFoundError:
        pass
    except (ArmillaryError, OSError) as problem:
        error = str(problem)
    try:
        found = read_result(folder)
        result, done = (None, False) if found is None else ({**found.__dict__}, True)
    except (ArmillaryError, OSError) as problem:
        error = str(problem)
    times = []
    for name in (SPEC, EVENTS):
        if (state := state_of(folder / name)) is not None:
            times.append(state[1] / 1e9)
    status = "done" if done else "running" if in_use(folder) else "interrupted"
    ended = state_of(folder / (RESULT if done else EVENTS))
    return ListedRun(
        key, status, 1, min(times, default=0.0), min(times, default=None), None if ended is None else ended[1] / 1e9,
        error, result, (folder.name,), **facts,
    )  # fmt: skip


def rank_files(folder: Path) -> dict[int, Path]:
    """Files of events of a run's folder by rank; empty where there are none."""
    try:
        return event_files(folder)
    except (ArmillaryError, OSError):
        return {}

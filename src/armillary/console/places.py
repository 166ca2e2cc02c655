"""The places that the console watches: stores and folders of runs, all read-only and independent of each other.

A place that cannot be read (locked, torn, of a newer format, deleted, replaced) becomes one line on the page; the
others are shown. URLs contain ids of runs, or hashes of paths found here, never paths.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
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

_NOWHERE = Path("/dev/null")  # stands for the folder of a store that is given by a database URL: it has no files
_MAX_DEPTH = 3
_MAX_FOLDERS = 20_000  # folders of one scan
_RESCAN_S = 5.0  # until folders are scanned again
_WAIT_FACTOR = 10  # wait at least this many times as long as the last read took before the next one
_SKIPPED = {"store", "corpus", "checkpoints", "metrics", "node_modules", "__pycache__"}


@dataclass(frozen=True)
class Found:
    """The contents of a watched folder by key: run folders, examinations, publications."""

    runs: dict[str, Path] = field(default_factory=dict)
    examinations: dict[str, Path] = field(default_factory=dict)
    publications: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run of a place: its row in lists, its specification (None if it cannot be read), and its folder."""

    place: Place
    listed: ListedRun
    content: dict[str, Any] | None
    folder: Path

    @property
    def key(self) -> str:
        """The run's key in URLs."""
        return f"{self.place.number}.{self.listed.run}"

    @property
    def label(self) -> str:
        """The name of its folder in a place without a store, else its id."""
        return self.folder.name if self.place.reader is None else self.listed.run

    @cached_property
    def spec(self) -> RunSpec | None:
        """The specification as this version reads it."""
        try:
            return None if self.content is None else RunSpec.model_validate(self.content)
        except ValueError:
            return None


@dataclass
class Check:
    """The last check of a store's journal: its head, when it began (``at``), how many seconds it ``took``, the result.

    ``chain`` is the checked journal, or None with the reason under ``error``.
    """

    head: tuple[int, str] = (-1, "")
    at: float = 0.0
    took: float = 0.0
    chain: Chain | None = None
    error: str = ""
    running: bool = False


@dataclass(frozen=True)
class _Known:
    """A value read from a store, the ``state`` of its files at that time, the time, and how many seconds it took."""

    state: Any
    at: float
    took: float
    value: list[StudyState]


class Place:
    """One store, or one folder of runs without a store (``reader`` is then None).

    The folder ``workspace`` is scanned for evaluations and published models, and without a store also for runs.
    """

    def __init__(self, number: int, name: str, workspace: Path | None, reader: Reader | None) -> None:
        self.number, self.name, self.workspace, self.reader = number, name, workspace, reader
        self.check = Check()
        self._studies: _Known | None = None
        self._found, self._scanned_at = Found(), float("-inf")
        self._listed: dict[str, tuple[Any, ListedRun]] = {}

    @property
    def found(self) -> Found:
        """The contents of the workspace, from a scan that is at most a few seconds old."""
        if self.workspace is not None and time.monotonic() - self._scanned_at > _RESCAN_S:
            self._found, self._scanned_at = _scan(self.workspace, self.reader is None), time.monotonic()
        return self._found

    def page(self, wanted: RunFilter, limit: int, before: Key | None) -> list[ListedRun]:
        """At most ``limit`` matching runs, the newest first, that were added before the run with the key ``before``.

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
        """The runs with these keys, by key; unknown keys are left out.

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
        """The studies of the store; in a large store that is being written, they may be a few seconds old.

        Raises:
            ArmillaryError: the store cannot be read.
        """
        if self.reader is None:
            return []
        state, begun = self.reader.state_of_file(), time.monotonic()
        known = self._studies
        if known is not None and state is not None:
            age = begun - known.at
            # Runs can end without a change of the store: a killed one writes nothing.
            calm = known.state == state and not any(one.runs.get("running") for one in known.value)
            if age < _WAIT_FACTOR * known.took or (calm and age < _RESCAN_S * _WAIT_FACTOR):
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
    """All watched places; a place's ``number`` is its position in ``places``.

    In ``folders`` new stores are looked for every few seconds. They are added at the end, so numbers stay valid.
    """

    def __init__(self, places: list[Place], folders: Sequence[Path] = ()) -> None:
        self._places, self._folders = places, folders
        self._looked_at, self._looking = time.monotonic(), threading.Lock()

    @property
    def places(self) -> list[Place]:
        """The places, with the stores that have appeared meanwhile."""
        with self._looking:
            if self._folders and time.monotonic() - self._looked_at > _RESCAN_S:
                known = {place.workspace for place in self._places if place.reader is not None}
                for folder in self._folders:
                    for one in _workspaces(folder):
                        if one not in known:
                            self._places.append(Place(len(self._places), str(one), one, Reader(one / "store")))
                self._looked_at = time.monotonic()
            return list(self._places)

    def each(self, act: Callable[[Place], T], problems: list[str]) -> Iterator[tuple[Place, T]]:
        """Yield each place with the result of ``act``; a failure is added to ``problems`` and its place is skipped."""
        for place in self.places:
            try:
                yield place, act(place)
            except ArmillaryError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{error.filename or place.name}: {error.strerror or error}")

    def place(self, number: str) -> Place | None:
        """The place whose number has this text in a URL; None if there is none."""
        places = self.places
        known = number.isascii() and number.isdigit() and len(number) < 5 and int(number) < len(places)
        return places[int(number)] if known else None

    def runs(self, keys: Sequence[str], problems: list[str]) -> list[Run]:
        """The runs of the keys ``PLACE.RUN`` of a URL, in their order; unknown keys are left out."""
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
        """The run of a key in a URL; None if there is none."""
        return next(iter(self.runs([key], problems)), None)

    def warm(self) -> None:
        """Read the studies in advance, so that the first page is fast; the page itself reports read errors."""
        for place in self.places:
            with contextlib.suppress(ArmillaryError, OSError):
                place.studies()

    def close(self) -> None:
        """Close all connections."""
        for place in self._places:
            if place.reader is not None:
                place.reader.close()


def watch(given: Iterable[str]) -> Watch:
    """Open the places that ``given`` names: workspaces, folders or databases (file or URL) of stores, folders of these.

    Raises:
        UsageError: a place does not exist, or the database of a URL cannot be used.
    """
    places: list[Place] = []
    folders: list[Path] = []
    for argument in given:
        if "://" in argument:
            reader = Reader(_NOWHERE, argument)
            places.append(Place(len(places), reader.database.name, None, reader))
            continue
        path = Path(argument)
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; give a workspace, a store or a folder of runs")
        if path.is_file():
            reader = Reader(path.parent, f"sqlite:///{path}")
            places.append(Place(len(places), argument, _workspace(path.parent), reader))
        elif (path / "store.sqlite").exists():
            places.append(Place(len(places), argument, _workspace(path), Reader(path)))
        else:
            for one in (workspaces := _workspaces(path)):
                places.append(Place(len(places), str(one), one, Reader(one / "store")))
            if path not in workspaces:
                places.append(Place(len(places), argument, path, None))
            folders.append(path)
    return Watch(places, folders)


def _workspace(store: Path) -> Path:
    return store.resolve().parent if store.resolve().name == "store" else store


def _workspaces(path: Path) -> list[Path]:
    """The folder itself if it has a store, else the folders below it that have one."""
    if (path / "store").is_dir():
        return [path]
    below = (sorted(file.parent.parent for file in path.glob(f"{depth}store/store.sqlite")) for depth in ("*/", "*/*/"))
    return [one for folders in below for one in folders]


def _scan(root: Path, with_runs: bool) -> Found:
    """Scan a folder, and the folders in it down to a depth of ``_MAX_DEPTH``, breadth first.

    With runs, it is a folder without a store; workspaces in it are places by themselves and are left out.
    """
    found, entered = Found(), 0
    waiting = [(root, 0)]
    while waiting and entered < _MAX_FOLDERS:
        folder, depth = waiting.pop(0)
        entered += 1
        try:
            names = {entry.name: entry for entry in os.scandir(folder)}
        except OSError:
            continue
        if with_runs and "store" in names and (folder / "store" / "store.sqlite").exists():
            continue
        key = hashlib.sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        if "results.json" in names:
            found.examinations[key] = folder
        if "lineage.json" in names or {"record.json", "examined"} <= names.keys():  # or a post-training
            found.publications[key] = folder
        if with_runs and (SPEC in names or EVENTS in names):
            found.runs[key] = folder
        elif depth < _MAX_DEPTH:
            # Links are not followed: they may point outside the folder, or form a loop.
            inside = [entry for entry in names.values() if entry.is_dir(follow_symlinks=False)]
            waiting += [
                (Path(entry.path), depth + 1)
                for entry in sorted(inside, key=lambda entry: entry.name)
                if not entry.name.startswith(".") and (entry.name not in _SKIPPED)
            ]
    return found


def _mapping(content: Any) -> dict[str, Any] | None:
    return content if isinstance(content, dict) else None


def _listed(key: str, folder: Path) -> ListedRun:
    """The row in lists of a run without a store, from the files in its folder; damage is shown as its error."""
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
    """The event files in a run's folder by rank; empty if there are none or the folder cannot be read."""
    try:
        return event_files(folder)
    except (ArmillaryError, OSError):
        return {}

"""Whether what lies on disk is still what was written there: a workspace, or any part of one.

``verify`` finds out what it was given, has every room read its own files, and returns all problems.
Nothing is changed, moved or created.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.corpus import verify_corpus
from armillary.laws.files import read_law
from armillary.recipe import ArmillaryError, UsageError, is_workspace, load_training, read_json, read_sealed
from armillary.release import check_lineage
from armillary.study import Store
from armillary.train import verify_checkpoint, verify_run

# JSON files of a workspace. From format 2 on those that are read back are sealed; their rooms refuse newer formats.
_JSON = ("plan.json", "cost.json", "summary.json")
_SEALED_SINCE = 2
_ANY_FORMAT = 10**9
_REMEDY = "restore it from a copy, or remove it to have it made again"


@dataclass(frozen=True)
class Problem:
    """A file that is not what was written, and what to do about it."""

    file: Path
    what: str
    remedy: str


@dataclass(frozen=True)
class Verified:
    """What was found at a place: ``checked`` names each part that was read, ``problems`` is empty if all is well."""

    kind: str
    checked: list[str]
    problems: list[Problem]


def verify(place: Path, database: str | None = None) -> Verified:
    """Check a workspace, store, corpus, run, checkpoint, published model, law file, recipe or large run's file.

    Args:
        database: SQLAlchemy URL of a workspace's or store's database, where it is not the file in it.

    Raises:
        UsageError: ``place`` is none of these.
    """
    if place.is_file():
        kind, check = ("law", read_law) if place.suffix == ".json" else ("recipe", load_training)
        return Verified(kind, [place.name], _refused(place, check))
    if not place.is_dir():
        raise UsageError(f"{place}: no such file or folder; give a folder of results, or a part of one")
    if (place / "lineage.json").exists():
        return Verified("published model", [place.name], _refused(place, check_lineage))
    if (place / "checkpoint.json").exists():
        return Verified("checkpoint", [place.name], _refused(place, verify_checkpoint))
    if (place / "spec.json").exists() or (place / "result.json").exists():
        return Verified("run", [place.name], _run(place))
    if (place / "manifest.json").exists() or (place / "index").is_dir():
        return Verified("corpus", [place.name], _corpus(place))
    if (place / "store.sqlite").exists() or ((place / "runs").is_dir() and not is_workspace(place)):
        return _store(place, database)
    if is_workspace(place):
        return _workspace(place, database)
    raise UsageError(
        f"{place}: nothing of Armillary is here; give a folder of results, or a corpus, store, run or "
        "published model in one"
    )


def _workspace(folder: Path, database: str | None) -> Verified:
    checked: list[str] = []
    problems: list[Problem] = []
    for name in _JSON:
        if (folder / name).exists():
            checked.append(name)
            problems += _refused(folder / name, _json)
    for name in ("recipe.yaml", "target.yaml"):
        if (folder / name).exists():
            checked.append(name)
            problems += _refused(folder / name, load_training)
    if (folder / "corpus").is_dir():
        checked.append("corpus")
        problems += _corpus(folder / "corpus")
    if (folder / "store").is_dir():
        store = _store(folder / "store", database)
        checked += store.checked
        problems += store.problems
    if (folder / "model").is_dir():
        checked.append("model")
        problems += _refused(folder / "model", check_lineage)
    return Verified("workspace", checked, problems)


def _store(folder: Path, database: str | None) -> Verified:
    checked: list[str] = []
    problems: list[Problem] = []
    if database is not None or (folder / "store.sqlite").exists():
        checked.append("store")
        try:
            for said in Store(folder, database).verify():
                problems.append(_problem(folder, said, "restore it from a backup, or start the same command again"))
        except ArmillaryError as error:
            problems.append(_problem(folder, str(error), _REMEDY))
    for run in sorted((folder / "runs").glob("*")):
        if (run / "spec.json").exists() or (run / "result.json").exists():
            checked.append(f"run {run.name}")
            problems += _run(run)
    return Verified("store", checked, problems)


def _run(folder: Path) -> list[Problem]:
    return [Problem(p.file, p.what, p.remedy) for p in verify_run(folder)]


def _corpus(folder: Path) -> list[Problem]:
    return [Problem(found.file, found.what, found.remedy) for found in verify_corpus(folder)]


def _json(file: Path) -> None:
    document = read_json(file, file.name, _REMEDY)
    if "format" in document:
        read_sealed(file, file.name, _ANY_FORMAT, _REMEDY, sealed_since=_SEALED_SINCE)


def _refused(place: Path, check: Callable[[Path], Any]) -> list[Problem]:
    """What ``check`` raises over ``place``."""
    try:
        check(place)
    except (ArmillaryError, OSError) as error:
        return [_problem(place, line, _REMEDY) for line in str(error).splitlines()]
    return []


def _problem(place: Path, message: str, remedy: str) -> Problem:
    """A problem from the message of a reader, "FILE: what; remedy"."""
    file, found, rest = message.partition(": ")
    if not found or "/" not in file:
        return Problem(place, message, remedy)
    what, found, own = rest.partition("; ")
    return Problem(Path(file), what, own if found else remedy)

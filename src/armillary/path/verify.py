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
from armillary.path import derived
from armillary.path.workspace import COST_FORMAT, PLAN_FORMAT
from armillary.recipe import (
    ArmillaryError,
    FileProblem,
    UsageError,
    given,
    is_workspace,
    load_training,
    problem_of,
    read_json,
    read_sealed,
)
from armillary.release import check_lineage, check_record
from armillary.study import Store
from armillary.train import verify_checkpoint, verify_run

# The newest format of each JSON file of a workspace; from format 2 on those that are read back are sealed.
_JSON = {"plan.json": PLAN_FORMAT, "cost.json": COST_FORMAT, "summary.json": 1}
_SEALED_SINCE = 2
_REMEDIES = {
    "plan.json": "restore it from a copy; without it the next call sizes the studies again",
    "cost.json": "restore it from a copy; without it the next call counts wall time anew",
    "summary.json": derived.REMEDY,
    "recipe.yaml": "restore it from a copy, or give the recipe itself with --out, which writes it anew",
    "target.yaml": derived.REMEDY,
}
_REMEDY = "restore it from a copy, or remove it to have it made again"
_STORE_REMEDY = "restore it from a backup, or start the same command again"


@dataclass(frozen=True)
class Verified:
    """What was found at a place: ``checked`` names each part that was read, ``problems`` is empty if all is well."""

    kind: str
    checked: list[str]
    problems: list[FileProblem]


def verify(place: Path, database: str | None = None) -> Verified:
    """Check a workspace, store, corpus, run, checkpoint, published model, law file, recipe or large run's file.

    Args:
        database: SQLAlchemy URL of a workspace's or store's database, where it is not the file in it.

    Raises:
        UsageError: ``place`` is none of these.
    """
    if place.is_file():
        kind, check = ("law", read_law) if place.suffix == ".json" else ("recipe", load_training)
        return Verified(kind, [place.name], _refused(place, _REMEDY, check))
    if not place.is_dir():
        raise UsageError(f"{place}: no such file or folder; give a folder of results, or a part of one")
    if (place / "lineage.json").exists():
        return Verified("published model", [place.name], _refused(place, _REMEDY, check_lineage))
    if (place / "checkpoint.json").exists():
        return Verified("checkpoint", [place.name], _refused(place, _REMEDY, verify_checkpoint))
    if (place / "spec.json").exists() or (place / "result.json").exists():
        return Verified("run", [place.name], verify_run(place))
    if (place / "manifest.json").exists() or (place / "index").is_dir():
        return Verified("corpus", [place.name], verify_corpus(place))
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
    problems: list[FileProblem] = []
    finished = (folder / derived.RECORD).exists()
    if finished:
        checked.append("reports")
        problems += _refused(folder / derived.RECORD, derived.REMEDY, lambda _: derived.recorded(folder))
        if not problems:
            problems += derived.check_derived(folder)
    for name in (*_JSON, "recipe.yaml", "target.yaml"):
        file = folder / name
        if file.exists():
            checked.append(name)
            problems += _refused(file, _REMEDIES[name], _json if name in _JSON else load_training)
        elif finished and name in ("plan.json", "cost.json", "recipe.yaml"):
            problems.append(FileProblem(file, "is missing", _REMEDIES[name]))
    if (folder / "recipe.yaml").exists() and given(folder).edited:
        remedy = "restore it from a copy, unless the edit was meant: the next call does what it says now"
        problems.append(FileProblem(folder / "recipe.yaml", "was edited or damaged after it was written", remedy))
    if (folder / "corpus").is_dir():
        checked.append("corpus")
        problems += verify_corpus(folder / "corpus")
    if (folder / "store").is_dir():
        store = _store(folder / "store", database)
        checked += store.checked
        problems += store.problems
    if (folder / "model").is_dir():
        checked.append("model")
        problems += _refused(folder / "model", _REMEDY, check_lineage)
        problems += _refused(folder / "model", _REMEDY, check_record)
    return Verified("workspace", checked, _first_of_each(problems))


def _store(folder: Path, database: str | None) -> Verified:
    checked: list[str] = []
    problems: list[FileProblem] = []
    runs = [
        run
        for run in sorted((folder / "runs").glob("*"))
        if any((run / name).exists() for name in ("spec.json", "result.json"))
    ]
    file = folder / "store.sqlite"
    if database is not None or file.exists():
        checked.append("store")
        try:
            problems += [problem_of(file, said, _STORE_REMEDY) for said in Store(folder, database).verify()]
        except ArmillaryError as error:
            problems.append(problem_of(file, error, _REMEDY))
    elif runs:
        remedy = "put a backup in its place, or name the database with --database"
        problems.append(FileProblem(file, "is missing, and with it every prediction and verdict", remedy))
    for run in runs:
        checked.append(f"run {run.name}")
        problems += verify_run(run)
    return Verified("store", checked, _first_of_each(problems))


def _first_of_each(problems: list[FileProblem]) -> list[FileProblem]:
    """The first problem of each file: a damaged file is often found by more than one check."""
    first = {problem.file: problem for problem in reversed(problems)}
    return [first[file] for file in dict.fromkeys(problem.file for problem in problems)]


def _json(file: Path) -> None:
    document = read_json(file, file.name, _REMEDIES[file.name])
    if "format" in document:
        read_sealed(file, file.name, _JSON[file.name], _REMEDIES[file.name], sealed_since=_SEALED_SINCE)


def _refused(place: Path, remedy: str, check: Callable[[Path], Any]) -> list[FileProblem]:
    """What ``check`` raises over ``place``."""
    try:
        check(place)
    except OSError as error:
        return [problem_of(place, error, remedy)]
    except ArmillaryError as error:
        return [problem_of(place, line, remedy) for line in str(error).splitlines()]
    return []

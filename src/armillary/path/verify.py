"""Checks that the files of a workspace, or of any part of one, are unchanged since they were written.

``verify`` recognises the kind of a folder or file, calls the check of the subpackage that wrote each file, and returns
all problems. It never changes, moves or creates a file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.corpus import verify_corpus
from armillary.laws.files import read_law
from armillary.path import examination, lesson
from armillary.path.derived import check_derived
from armillary.path.verify_taught import kind_of, verify_taught
from armillary.path.workspace import COST_FORMAT, PLAN_FORMAT
from armillary.publish import SUMS, check_lineage, check_record, check_sums, is_publication
from armillary.recipe import (
    RECORD,
    RECORD_REMEDY,
    ArmillaryError,
    DamagedDocumentError,
    DamagedFileError,
    FileProblem,
    ForeignFileError,
    LargeRun,
    Recipe,
    UsageError,
    is_workspace,
    load_training,
    problem_of,
    read_json,
    read_sealed,
    read_yaml,
    recorded,
    was_changed,
)
from armillary.store import Store, verify_database
from armillary.train import verify_checkpoint, verify_run

# The newest format of each JSON file of a workspace; since format 2, files that are read back are sealed.
_JSON = {"plan.json": PLAN_FORMAT, "cost.json": COST_FORMAT, "summary.json": 1}
_SEALED_SINCE = 2
# A field that distinguishes each sealed file from an intact file of another kind.
_FIELDS = {"plan.json": "plan", "cost.json": "wall_s"}
_REMEDIES = {
    "plan.json": "restore it from a copy; without it the next call sizes the studies again",
    "cost.json": "restore it from a copy; without it the next call counts wall time from 0",
    "summary.json": RECORD_REMEDY,
    "recipe.yaml": "restore it from a copy, or pass the recipe itself with --out to rewrite it",
    "target.yaml": RECORD_REMEDY,
}
_REMEDY = "restore it from a copy, or remove it to have it made again"
_UNLESS_INTENDED = (
    "restore it from a copy, unless you edited it on purpose: the next call follows the file as it is now"
)
_BACKUP_REMEDY = "use another backup"
_STORE_REMEDY = "restore it from a backup, or start the same command again"

_KNOWN = (
    "a folder of results, or a store, corpus, run, checkpoint or published model in one; a folder of post-training, of "
    "one of its stages or of an examination; a law file, a recipe, or a backup of a store's database"
)
_SQLITE = b"SQLite format 3\0"
# Files for which their whole folder is checked, and fields that identify law files and recipes.
_OF_A_FOLDER = {"lineage.json", SUMS, "manifest.json", "checkpoint.json", "result.json", "spec.json"}
_LAW_FIELDS = {"laws_version", "fitted", "kind", "targets"}
_DOCUMENT_KEYS = {*Recipe.model_fields, *LargeRun.model_fields} - {"format", "name"}


@dataclass(frozen=True)
class Verified:
    """The result of ``verify``: the kind of folder or file, the parts that were ``checked``, and the problems found."""

    kind: str
    checked: list[str]
    problems: list[FileProblem]


def verify(place: Path, database: str | None = None) -> Verified:
    """Check a workspace, store, corpus, run, checkpoint, published model, post-training folder or single file.

    Args:
        database: SQLAlchemy URL of a workspace's or store's database, if it is not the file in the folder.

    Raises:
        UsageError: ``place`` is none of these kinds.
    """
    if place.is_file():
        return _file(place, database)
    if not place.is_dir():
        raise UsageError(f"{place}: no such file or folder; give a folder of results, or a part of one")
    kind = _kind(place)
    if kind is None:
        raise UsageError(f"{place}: verify does not recognise this folder; give {_KNOWN}")
    if kind == "workspace":
        return _workspace(place, database)
    if kind == "store":
        return _store(place, database, begun=True)
    problems = {
        "checkpoint": lambda: _refused(place, _REMEDY, verify_checkpoint),
        "run": lambda: verify_run(place),
        "corpus": lambda: verify_corpus(place),
        "published model": lambda: _publication(place),
    }
    if kind in problems:
        return Verified(kind, [place.name], problems[kind]())
    checked, wrong = verify_taught(place)
    return Verified(kind, checked, _first_of_each(wrong))


def _kind(folder: Path) -> str | None:
    """The kind of a folder, even if a part of it is missing; None for an unknown kind."""

    def has(*names: str) -> bool:
        return any((folder / name).exists() for name in names)

    if has("checkpoint.json"):
        return "checkpoint"
    if (taught := kind_of(folder)) is not None:
        return taught
    if has("spec.json", "result.json"):
        return "run"
    if has("lineage.json", SUMS):
        return "published model"
    if has("manifest.json") or (folder / "index").is_dir() or (has("tokenizer.json") and has("validation")):
        return "corpus"
    if has("store.sqlite"):
        return "store"
    if has(RECORD) or is_workspace(folder):
        return "workspace"
    if (folder / "runs").is_dir():
        return "store"
    return "published model" if is_publication(folder) else None


def _file(place: Path, database: str | None) -> Verified:
    """Check a law file, a recipe, a large run's file, a store's database or a backup of it, or a part of a workspace.

    For a file that identifies its folder, such as a manifest, the whole folder is checked.
    """
    with place.open("rb") as stream:
        is_database = stream.read(len(_SQLITE)) == _SQLITE
    if is_database:
        problems: list[FileProblem] = []
        try:
            problems += [problem_of(place, problem, _BACKUP_REMEDY) for problem in verify_database(place)]
        except DamagedFileError as error:
            problems.append(problem_of(place, error, _BACKUP_REMEDY))
        except ForeignFileError as error:
            raise UsageError(str(error)) from error
        return Verified("database of a store", [place.name], _first_of_each(problems))
    if place.name in _OF_A_FOLDER:
        return verify(place.parent, database)
    if place.name in _JSON:
        return Verified(place.name, [place.name], _refused(place, _REMEDIES[place.name], _json))
    if _is_law(place):
        return Verified("law", [place.name], _refused(place, _REMEDY, read_law))
    if _is_document(place):
        return Verified("recipe", [place.name], _document(place))
    kind = _kind(place.parent)
    if kind is not None:
        raise UsageError(
            f"{place}: verify does not check this file alone; give {place.parent}, the {kind} it belongs to"
        )
    raise UsageError(f"{place}: verify does not recognise this file; give {_KNOWN}")


def _is_law(place: Path) -> bool:
    """Whether a file is a law file, damaged or not."""
    if place.suffix != ".json":
        return False
    try:
        document = read_json(place, "law", _REMEDY)
    except DamagedFileError:
        return place.read_bytes().lstrip()[:1] in (b"{", b"")
    return bool(_LAW_FIELDS & set(document))


def _is_document(place: Path) -> bool:
    """Whether a file is a recipe or a large run's file, damaged or not."""
    try:
        return bool(read_yaml(place).keys & _DOCUMENT_KEYS)
    except UsageError:
        return place.suffix in (".yaml", ".yml")


def _document(place: Path) -> list[FileProblem]:
    """The problems of a recipe or a large run's file; the copy in a workspace also has a seal."""
    try:
        load_training(place)
    except DamagedDocumentError as error:
        first = problem_of(place, str(error.__cause__).splitlines()[0], "")
        remedy = _REMEDIES.get(place.name, "restore it from a copy, or correct it")
        return [FileProblem(first.file, f"was damaged or edited after it was written: {first.what}", remedy)]
    except ArmillaryError as error:
        return [problem_of(place, line, "correct it") for line in str(error).splitlines()]
    remedy = RECORD_REMEDY if place.name == "target.yaml" else _UNLESS_INTENDED
    return [FileProblem(place, "was damaged or edited after it was written", remedy)] if was_changed(place) else []


def _workspace(folder: Path, database: str | None) -> Verified:
    checked: list[str] = []
    problems: list[FileProblem] = []
    finished = (folder / RECORD).exists()
    begun = finished or (folder / "plan.json").exists()  # written once corpus and store exist
    if finished:
        checked.append("reports")
        problems += _refused(folder / RECORD, RECORD_REMEDY, lambda _: recorded(folder))
        if not problems:
            problems += check_derived(folder)
    for name in (*_JSON, "recipe.yaml", "target.yaml"):
        file = folder / name
        if file.exists():
            checked.append(name)
            problems += _refused(file, _REMEDIES[name], _json) if name in _JSON else _document(file)
        elif finished and name in ("plan.json", "cost.json", "recipe.yaml"):
            problems.append(FileProblem(file, "is missing", _REMEDIES[name]))
    if (folder / "corpus").is_dir():
        checked.append("corpus")
        problems += verify_corpus(folder / "corpus")
    if begun or (folder / "store").is_dir():
        store = _store(folder / "store", database, begun)
        checked += store.checked
        problems += store.problems
    if begun:
        problems += _lost(folder)
    for name in (examination.FOLDER, lesson.FOLDER):
        if (folder / name).is_dir():
            found = verify_taught(folder / name)
            checked += found[0]
            problems += found[1]
    for name in ("model", lesson.CHAT):
        if is_publication(folder / name):
            checked.append(name)
            problems += _publication(folder / name)
            problems += _refused(folder / name, _REMEDY, check_record)
    return Verified("workspace", checked, _first_of_each(problems))


def _lost(folder: Path) -> list[FileProblem]:
    """Problems of a workspace whose corpus, runs or published model is missing altogether."""
    problems, summary = [], {}
    with contextlib.suppress(OSError, DamagedFileError):
        summary = read_json(folder / "summary.json", "summary", RECORD_REMEDY)
    corpus = folder / "corpus" / str(summary.get("corpus", ""))
    if not any(path.is_dir() and path.name != "index" for path in corpus.glob("[!.]*")):
        remedy = "restore it from a copy, or give the same command again, which builds it from its sources"
        problems.append(FileProblem(corpus, "is missing", remedy))
    runs = folder / "store" / "runs"
    if (folder / RECORD).exists() and not any(runs.glob("*")):
        remedy = "restore it from a copy, or give the same command again, which trains the runs again"
        problems.append(FileProblem(runs, "is missing, and with it every run", remedy))
    if summary.get("target") and not any((folder / "model").glob("*")):
        problems.append(FileProblem(folder / "model", "is missing, and a model was published", RECORD_REMEDY))
    return problems


def _publication(folder: Path) -> list[FileProblem]:
    """The problems of a published model."""
    remedy = "publish the model again (`armillary run`), or fetch the folder again"
    if not any(folder.glob("*")):
        return [FileProblem(folder, "is missing, and a model was published there", remedy)]
    if not (folder / "lineage.json").exists():
        return [FileProblem(folder / "lineage.json", "is missing, and with it the hashes of the other files", remedy)]
    problems = [*_refused(folder, _REMEDY, check_lineage), *_refused(folder, _REMEDY, check_sums)]
    return _first_of_each(problems)


def _store(folder: Path, database: str | None, begun: bool) -> Verified:
    checked: list[str] = []
    problems: list[FileProblem] = []
    runs = [
        run
        for run in sorted((folder / "runs").glob("*"))
        if any((run / name).exists() for name in ("spec.json", "result.json"))
    ]
    for run in runs:
        checked.append(f"run {run.name}")
        problems += verify_run(run)
    damaged = {problem.file.parent for problem in problems}
    file = folder / "store.sqlite"
    if database is not None or file.exists():
        checked.append("store")
        try:
            found = [problem_of(file, message, _STORE_REMEDY) for message in Store(folder, database).verify()]
        except ArmillaryError as error:
            found = [problem_of(file, error, _REMEDY)]
        # A run with damaged files also differs from its record in the store.
        problems = [*(problem for problem in found if problem.file.parent not in damaged), *problems]
    elif begun or runs:
        remedy = "put a backup in its place, or name the database with --database"
        problems.append(FileProblem(file, "is missing, and with it every prediction and verdict", remedy))
    return Verified("store", checked, _first_of_each(problems))


def _first_of_each(problems: list[FileProblem]) -> list[FileProblem]:
    """The first problem of each file, since several checks often find the same damaged file."""

    def key(problem: FileProblem) -> tuple[Path, str]:  # a database can have one problem per record
        return problem.file, problem.what if problem.file.name == "store.sqlite" else ""

    first = {key(problem): problem for problem in reversed(problems)}
    return [first[name] for name in dict.fromkeys(map(key, problems))]


def _json(file: Path) -> None:
    """Check a JSON file of a workspace.

    Raises:
        ArmillaryError: the file is damaged, was edited, or is another file under this name.
    """
    document = read_json(file, file.name, _REMEDIES[file.name])
    if "format" in document:
        remedy = _REMEDIES[file.name]
        document = read_sealed(file, file.name, _JSON[file.name], remedy, sealed_since=_SEALED_SINCE)
        if _FIELDS.get(file.name, "format") not in document:
            raise DamagedFileError(f"{file}: is not a {file.name}, but an intact file of another kind; {remedy}")


def _refused(place: Path, remedy: str, check: Callable[[Path], Any]) -> list[FileProblem]:
    """The problems with which ``check`` refuses ``place``: one per line of its error; none if it passes."""
    try:
        check(place)
    except OSError as error:
        return [problem_of(place, error, remedy)]
    except ArmillaryError as error:
        return [problem_of(place, line, remedy) for line in str(error).splitlines()]
    return []

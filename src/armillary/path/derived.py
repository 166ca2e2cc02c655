"""The files of a workspace that every call writes anew, and the record by which ``verify`` checks them.

``.written.json`` holds the SHA-256 of the reports, ``summary.json``, ``recipe.found.yaml``, ``target.yaml`` and the
answers in ``examination``. It is sealed. It also holds the last stage in each report, so that a report of the first
stages does not replace one of more. No stage needs one of these files, so a damaged one costs nothing: the next call
replaces it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from armillary.recipe import (
    RECORD,
    RECORD_FORMAT,
    RECORD_REMEDY,
    DamagedFileError,
    FileProblem,
    read_sealed,
    recorded,
    write_sealed,
)

Reached = tuple[str, str]  # the last stage in a report, and the hash of the recipe it is of


def record(folder: Path, *names: str, reached: Reached | None = None) -> None:
    """Record the files of these names in ``folder`` as they are now; a damaged record is begun anew.

    ``reached`` says of the first of them, a report, how far it goes.

    Raises:
        ForeignFileError: the record is of a newer version.
    """
    try:
        known, reports = recorded(folder), reports_reached(folder)
    except DamagedFileError:
        known, reports = {}, {}
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    if reached is not None:
        reports = {**reports, names[0]: reached}
    document = {"format": RECORD_FORMAT, "files": {**known, **found}, "reached": reports}
    write_sealed(folder / RECORD, document)


def reports_reached(folder: Path) -> dict[str, Reached]:
    """How far each report goes, by its name; one of an older version is missing.

    Raises:
        DamagedFileError, ForeignFileError: the record cannot be used.
    """
    try:
        document = read_sealed(folder / RECORD, "record of what was written", RECORD_FORMAT, RECORD_REMEDY)
    except FileNotFoundError:
        return {}
    return {name: (str(goal), str(recipe)) for name, (goal, recipe) in document.get("reached", {}).items()}


def check_derived(folder: Path) -> list[FileProblem]:
    """The recorded files that are missing or not what was written.

    Raises:
        DamagedFileError, ForeignFileError: the record cannot be used.
    """
    problems = []
    for name, digest in recorded(folder).items():
        path = folder / name
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                problems.append(FileProblem(path, "is not what was written", RECORD_REMEDY))
        except FileNotFoundError:
            problems.append(FileProblem(path, "is missing", RECORD_REMEDY))
        except OSError as error:
            problems.append(FileProblem(path, f"cannot be read ({error.strerror})", "make it readable"))
    return problems

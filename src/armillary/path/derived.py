"""The files of a workspace that every call rewrites, and the record with which ``verify`` checks them.

``.written.json`` holds the SHA-256 of the reports, ``summary.json``, ``recipe.found.yaml``, ``target.yaml`` and the
answers in ``examination``. It is sealed. It also holds the last stage in each report, so that a shorter report does
not replace a longer one. No stage reads these files, so a damaged one is simply rewritten by the next call.
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

Reached = tuple[str, str]  # the last stage in a report, and the hash of its recipe


def record(folder: Path, *names: str, reached: Reached | None = None) -> None:
    """Record the current hashes of the named files in ``folder``; a damaged record is replaced.

    ``reached`` is the last stage in the first file, a report.

    Raises:
        ForeignFileError: the record has a newer version.
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
    """The last stage in each report, by its name; reports of older versions are missing.

    Raises:
        DamagedFileError, ForeignFileError: the record cannot be used.
    """
    try:
        document = read_sealed(folder / RECORD, "record of what was written", RECORD_FORMAT, RECORD_REMEDY)
    except FileNotFoundError:
        return {}
    return {name: (str(goal), str(recipe)) for name, (goal, recipe) in document.get("reached", {}).items()}


def check_derived(folder: Path) -> list[FileProblem]:
    """The recorded files that are missing or were changed.

    Raises:
        DamagedFileError, ForeignFileError: the record cannot be used.
    """
    problems = []
    for name, digest in recorded(folder).items():
        path = folder / name
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                problems.append(FileProblem(path, "was changed", RECORD_REMEDY))
        except FileNotFoundError:
            problems.append(FileProblem(path, "is missing", RECORD_REMEDY))
        except IsADirectoryError:
            problems.append(FileProblem(path, "is a folder, not the file that was written", "move it away"))
        except OSError as error:
            problems.append(FileProblem(path, f"cannot be read ({error.strerror})", "make it readable"))
    return problems

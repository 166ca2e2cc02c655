"""The files of a workspace that every call writes anew, and the record by which ``verify`` checks them.

``.written.json`` holds the SHA-256 of the reports, ``summary.json``, ``recipe.found.yaml``, ``target.yaml`` and the
answers in ``examination``. It is sealed. No stage needs one of these files, so a damaged one costs nothing: the next
call replaces it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from armillary.recipe import DamagedFileError, FileProblem, read_sealed, write_sealed

RECORD = ".written.json"
REMEDY = "give `armillary report` again, which writes it anew"
_FORMAT = 1


def record(folder: Path, *names: str) -> None:
    """Record the files of these names in ``folder`` as they are now; a damaged record is begun anew.

    Raises:
        ForeignFileError: the record is of a newer version.
    """
    try:
        known = recorded(folder)
    except DamagedFileError:
        known = {}
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    write_sealed(folder / RECORD, {"format": _FORMAT, "files": {**known, **found}})


def recorded(folder: Path) -> dict[str, str]:
    """SHA-256 by name; empty where nothing was recorded.

    Raises:
        DamagedFileError, ForeignFileError: as ``read_sealed``.
    """
    try:
        document: dict[str, Any] = read_sealed(folder / RECORD, "record of what was written", _FORMAT, REMEDY)
    except FileNotFoundError:
        return {}
    files: dict[str, str] = document["files"]
    return files


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
                problems.append(FileProblem(path, "is not what was written", REMEDY))
        except FileNotFoundError:
            problems.append(FileProblem(path, "is missing", REMEDY))
        except OSError as error:
            problems.append(FileProblem(path, f"cannot be read ({error.strerror})", "make it readable"))
    return problems

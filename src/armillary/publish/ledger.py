"""Records the files published into a folder, so that only these are ever replaced.

``.model.published.json`` next to ``model/`` holds the SHA-256 of every file of every publication written there. A
folder that equals one of them, byte for byte, may be replaced. A folder that shares a file with one of them was
published here and changed or damaged since; it is kept under another name. Any other folder is refused.

Without a record (an older version, or a lost file), a folder counts as changed if its lineage belongs to the same run
and, since format 2, lists exactly its files.

Trade-off: a copy of another run's publication without the hidden file counts as foreign; it is refused, not deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from armillary.recipe import ArmillaryError, DamagedFileError, UsageError, read_json, read_sealed, write_sealed

State = Literal["nothing", "intact", "changed"]
_FORMAT = 1
_REMEDY = "run `armillary run` or `armillary report` to rewrite it"


def ledger_file(folder: Path) -> Path:
    """The file that records the publications of ``folder``."""
    return folder.with_name(f".{folder.name}.published.json")


def state(folder: Path, run: str | None = None) -> State:
    """The state of ``folder``: empty, an unchanged publication from here, or one that was changed since.

    ``run`` is the run to publish, or None if it is not known yet. If the record is damaged, every folder counts as
    changed, so that nothing is lost.

    Raises:
        UsageError: ``folder`` is a file, or holds files that were not published there.
        ForeignFileError: the record has a newer version.
    """
    if not folder.exists():
        return "nothing"
    if not folder.is_dir():
        raise UsageError(f"{folder}: is a file, but the model needs a folder of that name; move the file away")
    found = fingerprints(folder)
    if not found:
        return "nothing"
    try:
        known = _read(folder)
    except DamagedFileError:
        return "changed"
    if found in known:
        return "intact"
    if {digest for files in known for digest in files.values()} & set(found.values()):
        return "changed"
    if not known and _speaks_for(folder, found, run):
        return "changed"
    raise UsageError(
        f"{folder}: has files that were not published from here ('{min(found)}' is not in {ledger_file(folder)}), "
        "and publishing would delete them; move the folder away"
    )


def check_record(folder: Path) -> None:
    """Check the record of the publications of ``folder``.

    Raises:
        DamagedFileError: the record is damaged, or missing although ``folder`` holds a publication.
        ForeignFileError: the record has a newer version.
    """
    if not _read(folder) and folder.is_dir():
        raise DamagedFileError(f"{ledger_file(folder)}: is missing; {_REMEDY}")


def enter(folder: Path, files: dict[str, str]) -> None:
    """Record that ``files`` (name: SHA-256) are about to appear as ``folder``."""
    try:
        known = _read(folder)
    except DamagedFileError:
        known = []
    if files not in known:
        write_sealed(ledger_file(folder), {"format": _FORMAT, "publications": [*known, files]})


def set_aside(folder: Path) -> Path:
    """Rename ``folder`` to the first free name ``NAME.kept-N``, and return it."""
    number = 1
    while (place := folder.with_name(f"{folder.name}.kept-{number}")).exists():
        number += 1
    folder.rename(place)
    return place


def fingerprints(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in ``folder``, by its relative path.

    Raises:
        ArmillaryError: a file cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def sha256(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal digits.

    Raises:
        ArmillaryError: the file is missing, not a regular file, or cannot be read.
    """
    if not path.is_file():  # opening a pipe would wait for a writer
        raise ArmillaryError(f"{path}: {'is not a regular file' if path.exists() else 'is missing'}")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArmillaryError(f"{path}: cannot be read ({error.strerror})") from error


def check_files(folder: Path, recorded: Mapping[str, str], source: str, remedy: str) -> None:
    """Compare the files of ``folder`` with their ``recorded`` SHA-256 (by name) from the file ``source``.

    Raises:
        DamagedFileError: a file is missing, unreadable or changed; one line per file, each with ``remedy``.
    """
    problems = []
    for name, digest in recorded.items():
        try:
            found = sha256(folder / name)
        except ArmillaryError as error:
            problems.append(f"{error}; {remedy}")
            continue
        if found != digest:
            problems.append(
                f"{folder / name}: was changed or damaged after publication: its SHA-256 is {found}, but {source} has "
                f"{digest}; {remedy}"
            )
    if problems:
        raise DamagedFileError("\n".join(problems))


def _speaks_for(folder: Path, files: dict[str, str], run: str | None) -> bool:
    """Whether the lineage in ``folder`` belongs to ``run``, if known, and since format 2 lists ``files``."""
    try:
        document = read_json(folder / "lineage.json", "lineage", "remove it")
    except (OSError, DamagedFileError):
        return False
    listed = {name: digest for name, digest in files.items() if name != "lineage.json"}
    whole = document.get("format") == 1 or document.get("files") == listed
    return whole and "argued_by" in document and run in (None, document.get("run"))


def _read(folder: Path) -> list[dict[str, str]]:
    """The recorded publications, oldest first.

    Raises:
        DamagedFileError, ForeignFileError: as ``read_sealed``.
    """
    path = ledger_file(folder)
    try:
        document = read_sealed(path, "record of publications", _FORMAT, _REMEDY)
    except FileNotFoundError:
        return []
    publications: list[dict[str, str]] = document["publications"]
    return publications

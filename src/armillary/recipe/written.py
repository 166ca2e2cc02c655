"""Detects changes to the documents of a workspace: by a document's first line, or by the record beside it.

``recipe.yaml`` has the hash of its text in its first line. ``.written.json`` is sealed and holds the SHA-256 of the
files that every call writes again: reports, ``summary.json``, ``recipe.found.yaml`` and ``target.yaml``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from armillary.recipe.errors import ArmillaryError, UsageError
from armillary.recipe.sealed import DamagedFileError, read_sealed

RECORD = ".written.json"
RECORD_FORMAT = 1
RECORD_REMEDY = "run `armillary report` to rewrite it"

_MARK = re.compile(r"# The recipe of the results in this folder, kept by Armillary \(sha256 ([0-9a-f]{16})\)\.")


class DamagedDocumentError(DamagedFileError, UsageError):
    """A document that cannot be read and differs from what was written: damaged, or edited by hand."""


def mark(text: str) -> str:
    """The first line of a kept recipe whose other lines are ``text``."""
    return f"# The recipe of the results in this folder, kept by Armillary (sha256 {_hash(text)}).\n"


def kept_state(file: Path) -> Literal["kept", "edited"] | None:
    """``kept`` for an unchanged recipe of a workspace, ``edited`` for a changed one, None for any other file."""
    try:
        if not file.is_file():
            return None
        first, _, rest = file.read_bytes().decode(errors="replace").partition("\n")
    except OSError:
        return None
    found = _MARK.match(first)
    if found is None:
        return None
    return "kept" if found[1] == _hash(rest) else "edited"


def recorded(folder: Path) -> dict[str, str]:
    """SHA-256 by name of the files that the record in ``folder`` lists; empty if there is no record.

    Raises:
        DamagedFileError, ForeignFileError: as ``read_sealed``.
    """
    try:
        document: dict[str, Any] = read_sealed(
            folder / RECORD, "record of what was written", RECORD_FORMAT, RECORD_REMEDY
        )
    except FileNotFoundError:
        return {}
    files: dict[str, str] = document["files"]
    return files


def was_changed(file: Path) -> bool:
    """Whether ``file`` differs from its record; False without a record."""
    if kept_state(file) == "edited":
        return True
    try:
        digest = recorded(file.parent).get(file.name)
        return digest is not None and sha256(file.read_bytes()).hexdigest() != digest
    except (OSError, ArmillaryError):  # no file, or no record that can be used
        return False


@contextmanager
def blaming_changes(file: Path) -> Iterator[None]:
    """If reading ``file`` fails in this context, report that it was changed after it was written.

    Raises:
        DamagedDocumentError: in place of a UsageError.
    """
    try:
        yield
    except UsageError as error:
        if not was_changed(file):
            raise
        raise DamagedDocumentError(
            f"{file}: was damaged or edited after it was written; restore it from a copy, or fix this:\n{error}"
        ) from error


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]

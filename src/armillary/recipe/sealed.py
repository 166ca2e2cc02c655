"""JSON files that outlive the program: a format number, and a seal that detects a torn or edited file.

Reading such a file has three outcomes: it is good, it is damaged (``DamagedFileError`` names the file and the remedy),
or it is not for this program (``ForeignFileError``: a newer format, another program, another run). A foreign file is
never deleted and never treated as missing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from armillary.files import write_json
from armillary.recipe.errors import ArmillaryError, UsageError
from armillary.recipe.run import canonical_hash

_SEAL = "sha256"


class DamagedFileError(ArmillaryError):
    """A file of this program that is torn, empty or edited, so that its content cannot be trusted."""


class ForeignFileError(ArmillaryError):
    """A whole file that this program must not use: a newer format, another program's, or another run's."""


def write_sealed(path: Path, document: dict[str, Any]) -> None:
    """Write ``document``, which has an integer ``format``, as JSON with a hash over all of it under ``sha256``.

    Raises:
        ValueError: a value that JSON does not have (NaN, infinity).
    """
    write_json(path, sealed(document))


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """``document`` as ``write_sealed`` writes it."""
    # The hash covers the values that a reader gets: tuples are lists, keys are strings.
    plain = json.loads(json.dumps(document, ensure_ascii=False, allow_nan=False))
    return {**plain, _SEAL: canonical_hash(plain)}


def read_sealed(path: Path, what: str, newest: int, remedy: str, sealed_since: int = 1) -> dict[str, Any]:
    """The document in ``path`` without its seal.

    Args:
        what: name of the format in messages, such as ``corpus manifest``.
        newest: largest format number that this program reads.
        remedy: what to do about a damaged file, in the imperative.
        sealed_since: first format number that carries a seal; older documents are read without one.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: not UTF-8 JSON, no format number, or changed. The document raises it too, for a field that it
            lacks.
        ForeignFileError: the format is newer than ``newest``.
    """
    document = read_json(path, what, remedy)
    form = document.get("format")
    if not isinstance(form, int) or isinstance(form, bool) or form < 1:
        raise DamagedFileError(f"{path}: {what} has no format number (format: {form!r}); {remedy}")
    if form > newest:
        raise ForeignFileError(
            f"{path}: {what} of format {form}, but this version reads formats up to {newest}; use the version that "
            "wrote it. The file was not changed"
        )
    seal = document.pop(_SEAL, None)
    # A seal is always checked if present; otherwise an edited format number would disable the check.
    if (form >= sealed_since or seal is not None) and seal != canonical_hash(document):
        raise DamagedFileError(f"{path}: {what} does not match its checksum (truncated, or edited by hand); {remedy}")
    return _Document(document, f"{path}: is not a {what}: it has no field", remedy)


class _Document(dict[str, Any]):
    """A sealed document. A field that it lacks is a damaged file: a whole one of another kind lies in its place."""

    def __init__(self, fields: dict[str, Any], lacking: str, remedy: str) -> None:
        super().__init__(fields)
        self._lacking, self._remedy = lacking, remedy

    def __missing__(self, name: str) -> Any:
        raise DamagedFileError(f"{self._lacking} {name!r}; {self._remedy}")


def read_json(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object in ``path``, with any fields.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is not a JSON object in UTF-8, nested too deeply to be one of ours, or a folder.
    """
    try:
        document = json.loads(path.read_bytes())
    except IsADirectoryError as error:
        raise DamagedFileError(f"{path}: is a folder, but {what} is a file; move it away: {remedy}") from error
    except (ValueError, RecursionError) as error:  # both JSON and UTF-8 errors are ValueErrors
        raise DamagedFileError(f"{path}: {what} cannot be read ({error}); {remedy}") from error
    if not isinstance(document, dict):
        raise DamagedFileError(f"{path}: {what} is a JSON {type(document).__name__}, not an object; {remedy}")
    return document


def model_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder; empty if there is no such file.

    Raises:
        UsageError: it cannot be read or is no JSON object. The folder is the user's, so it is a wrong input.
    """
    remedy = "fetch the folder again"
    try:
        return read_json(path, "file of a model", remedy)
    except FileNotFoundError:
        return {}
    except DamagedFileError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error

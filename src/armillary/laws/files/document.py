"""Reading and writing law files.

A file of version 3 is a JSON object with these fields:

- ``format`` (``armillary-law``), ``version`` (3), ``program`` (the version of Armillary that wrote it) and
  ``laws_version`` (increased when the same table gives other fitted numbers);
- ``kind``: a name of ``registry.LAWS``;
- ``features``, ``targets``, ``size_column``, ``tokens_column``, ``sources``, ``columns`` and ``set_aside``: see
  ``LawFile``;
- ``params`` and ``fitted``: the result of the estimator's ``to_json``. Its ``PARAMS`` and ``FITTED`` list the fields;
- ``predictions``: predictions at points that the law chooses (``probe``);
- ``summary``: parameters, weights and held-out errors for the user; not read back;
- ``sha256``: of all of it, so that a torn or edited file is detected.

The same fit gives the same file, and the same file the same numbers on every machine. Nothing is unpickled. A loaded
law must reproduce its stored predictions, which also detects code of another version in which a field has another
meaning. Versions 1 and 2 are read through ``old``.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from armillary import __version__
from armillary.files import write_json
from armillary.laws.columns import ColumnReading
from armillary.laws.estimator import LAWS_VERSION, Array, Estimator
from armillary.laws.files import old
from armillary.laws.files.refit import refit_command
from armillary.laws.files.registry import FIRST_VERSION, LAWS
from armillary.laws.values import Array as ArrayField
from armillary.laws.values import Fields, Listed, Maybe, Names, Record, Text, ValueInFileError, Whole, read_fields
from armillary.recipe import DamagedFileError, ForeignFileError, UsageError

FORMAT = "armillary-law"
VERSION = 3

# Relative tolerance for stored predictions: the rounding of another machine.
_SAME = 1e-6

_PREDICTIONS = Listed(ArrayField("...", finite=False))

# Fields besides format, version, seal, summary, params and fitted.
_FIELDS: Fields = {
    "program": Maybe(Text()),
    "laws_version": Maybe(Whole()),
    "kind": Text(),
    "features": Names(),
    "targets": Names(),
    "size_column": Maybe(Text()),
    "tokens_column": Maybe(Text()),
    "sources": Listed(Record(dict, {"name": Text(), "sha256": Text(), "rows": Whole()})),
    "columns": Listed(Record(ColumnReading, {"column": Text(), "role": Text(), "why": Text()})),
    "predictions": Maybe(_PREDICTIONS),
}


class DamagedLawError(DamagedFileError, UsageError):
    """A law file that is torn, empty, edited or incomplete."""


class ForeignLawError(ForeignFileError, UsageError):
    """A file that is not a law file, or one of another version of the program."""


class OtherLawsWarning(UserWarning):
    """A law file from another version of the laws: usable, but its tables would now give other numbers."""


@dataclass(frozen=True)
class Source:
    """A table that a law was fitted to: its file's name, SHA-256 and number of rows."""

    name: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class LawFile:
    """A fitted law and how the columns of tables are named.

    Attributes:
        kind: a name of ``registry.LAWS``.
        law: the fitted estimator.
        features: names of the columns that the law takes, in its order.
        targets: names of the columns that it predicts.
        size_column: column of model sizes of a mixture law, if it has one.
        tokens_column: column of the tokens of each run of a mixture law, if it has one.
        sources: the tables it was fitted to.
        columns: the role of each of their columns.
        set_aside: entries and rows that were left out of the fit, with file, line, column, value and reason.
    """

    kind: str
    law: Any
    features: list[str]
    targets: list[str]
    size_column: str | None
    sources: list[Source]
    columns: list[ColumnReading] = field(default_factory=list)
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    tokens_column: str | None = None


def source_of(path: Path, rows: int) -> Source:
    """The record of a table at ``path``."""
    return Source(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), rows)


def write_law(path: Path, law: LawFile, summary: dict[str, Any]) -> None:
    """Write a law file; ``summary`` is for the user, with null for numbers that are not finite.

    Raises:
        UsageError: the law is not fitted, or has a parameter that a file cannot hold.
        TypeError: the law is not of the kind that ``law.kind`` names.
    """
    if type(law.law) is not LAWS.get(law.kind):
        raise TypeError(f"a law of kind '{law.kind}' is not a {type(law.law).__name__}")
    document = {
        "format": FORMAT,
        "version": VERSION,
        "program": __version__,
        "laws_version": LAWS_VERSION,
        "kind": law.kind,
        "features": law.features,
        "targets": law.targets,
        "size_column": law.size_column,
        "tokens_column": law.tokens_column,
        "sources": [asdict(source) for source in law.sources],
        "columns": [asdict(reading) for reading in law.columns],
        "set_aside": _without_nan(law.set_aside),
        "summary": _without_nan(summary),
        **law.law.to_json(),
        "predictions": _PREDICTIONS.write(_own_predictions(law.law), "predictions"),
    }
    document = json.loads(json.dumps(document, allow_nan=False))  # normalise like a reader: tuples become lists
    write_json(path, {**document, "sha256": _seal(document)})


def read_law(path: Path) -> LawFile:
    """Read a law file of version 1 to 3.

    Raises:
        UsageError: the file cannot be opened.
        DamagedLawError: it is torn, edited or incomplete.
        ForeignLawError: it is not a law file, or has another version; it is not changed.
    """
    remedy = "give a file that 'armillary fit' wrote"
    try:
        content = path.read_bytes()
        document = json.loads(content)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        if content and not content.lstrip().startswith(b"{"):  # for instance a table: never advise to overwrite it
            raise ForeignLawError(f"{path} is not a law file; {remedy}") from error
        raise DamagedLawError(f"{path} is truncated or not JSON ({error}); {_again(None, path)}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ForeignLawError(f"{path} is not a law file; {remedy}")
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= VERSION:
        raise ForeignLawError(
            f"{path} is a law file of version {version!r}, but this version reads up to {VERSION}; read it "
            f"with the version that wrote it, or {_again(document, path)}. The file was not changed"
        )
    try:
        if not (old.whole(document) if version < 3 else document.pop("sha256", None) == _seal(document)):
            raise DamagedLawError(f"{path} was damaged or edited after it was written; {_again(document, path)}")
        if version < 3:
            document = old.upgraded(document)
        return _opened(document)
    except _OtherCodeError as error:
        raise ForeignLawError(f"{path} was written by another version: {error}; {_again(document, path)}") from error
    except DamagedLawError:
        raise
    except ValueInFileError as error:
        # An intact file of another program has other fields; one of this program was edited and sealed again.
        if document.get("program") != __version__:
            written = f"Armillary {document['program']}" if document.get("program") else "an earlier Armillary"
            raise ForeignLawError(
                f"{path} was written by {written}, and Armillary {__version__} does not read it: {error}; "
                f"{_again(document, path)}"
            ) from error
        raise DamagedLawError(f"{path} is not a complete law: {error}; {_again(document, path)}") from error
    except Exception as error:  # any error that inconsistent values cause
        raise DamagedLawError(
            f"{path} is not a complete law ({type(error).__name__}: {error}); {_again(document, path)}"
        ) from error


def may_replace(path: Path) -> bool:
    """Whether a law may be written over ``path``: an empty file, or a law file that is not of a newer version."""
    content = path.read_bytes()
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return not content.strip() or f'"{FORMAT}"'.encode() in content
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return False
    version = document.get("version")
    return not isinstance(version, int) or version <= VERSION


class _OtherCodeError(Exception):
    """An intact file has another meaning in this version of the program than in the version that wrote it."""


def _again(document: object, path: Path) -> str:
    return f"fit the law again from its tables: {refit_command(document, path)}"


def _opened(document: dict[str, Any]) -> LawFile:
    """The law of a document of version 3, after checking that it reproduces its stored predictions.

    Raises:
        ValueInFileError: a field is missing, unknown, or not of its kind.
        _OtherCodeError: it was written by another version of the code.
        Exception: any, if fields are inconsistent.
    """
    named = {name: document[name] for name in _FIELDS if name in document}
    fields = read_fields(_FIELDS, named, "the file", {})
    kind, targets = fields["kind"], fields["targets"]
    if kind not in LAWS:
        raise _OtherCodeError(f"laws of kind '{kind}' are unknown; known are {', '.join(LAWS)}")
    fitted_by = fields["laws_version"]
    if (fitted_by or 0) < FIRST_VERSION.get(kind, 0):
        raise _OtherCodeError(
            f"it was fitted by version {fitted_by!r} of the laws, and the parameters of this kind have another meaning "
            f"since version {FIRST_VERSION[kind]}"
        )
    law = LAWS[kind].from_json(document)
    predictions = _own_predictions(law)
    if predictions[0].ndim > 1 and predictions[0].shape[1] != len(targets):
        raise ValueError(f"it predicts {predictions[0].shape[1]} losses but has {len(targets)} names")
    if not np.isfinite(predictions[0]).all():
        raise ValueError("its predictions are not finite")
    stored = fields["predictions"]
    if stored is not None and not _same(predictions, stored):
        raise _OtherCodeError(
            f"it was fitted by version {fitted_by!r} of the laws, and version {LAWS_VERSION} would predict different "
            "losses from it"
        )
    if fitted_by not in (None, LAWS_VERSION):
        warnings.warn(
            f"the law was fitted by version {fitted_by} of the laws and is used unchanged; version {LAWS_VERSION}, "
            "that of this program, would fit different numbers to the same tables",
            OtherLawsWarning,
            stacklevel=3,
        )
    aside = document.get("set_aside")
    if not isinstance(aside, list) or not all(isinstance(entry, dict) for entry in aside):
        raise ValueInFileError("set_aside is not a list of objects")
    return LawFile(
        kind,
        law,
        list(fields["features"]),
        list(targets),
        fields["size_column"],
        [Source(**source) for source in fields["sources"]],
        fields["columns"],
        aside,
        fields["tokens_column"],
    )


def _own_predictions(law: Estimator) -> list[Array]:
    """Predictions of a law at its probe points, and the other results that the verbs use, as arrays."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [np.asarray(part, dtype=float) for part in law.probe()]


def _same(predictions: list[Array], stored: list[Array]) -> bool:
    return len(predictions) == len(stored) and all(
        a.shape == b.shape and np.allclose(a, b, rtol=_SAME, atol=0, equal_nan=True)
        for a, b in zip(predictions, stored, strict=True)
    )


def _seal(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _without_nan(value: Any) -> Any:
    """``value`` with null for infinity and NaN."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    return [_without_nan(part) for part in value] if isinstance(value, list | tuple) else value

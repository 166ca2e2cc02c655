"""Law files: a fitted law as JSON, with the tables it was fitted to by their hashes.

A file holds everything that predictions need, to the last bit: the same file gives the same numbers on every machine,
and the same fit gives the same file. Trade-offs taken:

- Fitted estimators are written attribute by attribute, by one writer for all of them; ``schema`` lists the classes and
  their attributes. Nothing is unpickled: on reading, only listed classes come to life, with just these attributes.
- Arrays of more than a few numbers are base64 of their bytes: exact, small, and not meant for people. What people want
  to read (parameters, what was chosen, held-out errors) is under ``summary``.
- A checksum over all of it detects a file that was torn or edited by hand.
- A law that is read must repeat the predictions that were stored with it, so that code of another version in which an
  attribute means something else is noticed, too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from armillary.files import write_json
from armillary.laws.columns import ColumnReading
from armillary.laws.estimator import LAWS_VERSION, Array
from armillary.laws.schema import ATTRIBUTES, KINDS, NAMES, SINCE
from armillary.recipe import DamagedFileError, ForeignFileError, UsageError

FORMAT = "armillary-law"

# Version 2 holds the version of the laws and some predictions; files of version 1 are read without these.
VERSION = 2

# Arrays up to this size are lists of numbers, larger ones base64.
_READABLE = 16

# What a file's own predictions may differ by, relative: the rounding of another machine.
_SAME = 1e-6

_AGAIN = "fit the law again from its tables"


class DamagedLawError(DamagedFileError, UsageError):
    """A law file that is torn, empty, edited, or does not hold a whole law."""


class ForeignLawError(ForeignFileError, UsageError):
    """A file that is not a law file, or one of another version of the program."""


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
        kind: ``mixture``, ``scaling``, ``hyperparameters`` or ``anneal``.
        law: the fitted estimator.
        features: names of the columns that the law takes, in its order.
        targets: names of the columns that it predicts.
        size_column: column of model sizes of a mixture law, if it has one.
        tokens_column: column of the tokens of each run of a mixture law, if it has one.
        sources: the tables it was fitted to.
        columns: what each column of these was read as.
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
    """Write a law file; ``summary`` is for people and holds only JSON values."""
    held = {**_encoded(law.law), "laws_version": LAWS_VERSION, "tokens_column": law.tokens_column}
    if law.kind in KINDS:
        held["predictions"] = [_encoded(part) for part in _own_predictions(law.law)]
    body = {
        "summary": summary,
        "kind": law.kind,
        "features": law.features,
        "targets": law.targets,
        "size_column": law.size_column,
        "sources": [asdict(source) for source in law.sources],
        "law": held,
    }
    write_json(path, {"format": FORMAT, "version": VERSION, "sha256": _checksum(body), **body})


def read_law(path: Path) -> LawFile:
    """Read a law file.

    Raises:
        UsageError: the file cannot be opened.
        DamagedLawError: it was torn or edited, or does not hold a whole law.
        ForeignLawError: it is not a law file, or of another version of the program; it is left as it is.
    """
    remedy = "give a file that 'armillary fit' wrote"
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedLawError(f"{path} is torn or no JSON ({error}); {remedy}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ForeignLawError(f"{path} is no law file; {remedy}")
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= VERSION:
        raise ForeignLawError(
            f"{path} is of version {version!r} of law files, and this program reads up to version {VERSION}; read it "
            "with the program that wrote it, or fit the law again from its tables. The file is left as it is"
        )
    keys = ("summary", "kind", "features", "targets", "size_column", "sources", "law")
    body: dict[str, Any] = {key: document.get(key) for key in keys}
    try:
        whole = _checksum(body) == document.get("sha256") and document.keys() == {"format", "version", "sha256", *keys}
        if not whole:
            raise DamagedLawError(f"{path} was torn or edited after it was written; {_AGAIN}")
        law = _opened(body, version)
    except _AnotherVersionError as error:
        raise ForeignLawError(f"{path} is of another version of the program: {error}; {_AGAIN}") from error
    except DamagedLawError:
        raise
    except Exception as error:  # whatever a wrong attribute leads to
        raise DamagedLawError(
            f"{path} does not hold a whole law ({type(error).__name__}: {error}); {_AGAIN}"
        ) from error
    return law


class _AnotherVersionError(Exception):
    """What the file holds that this program does not, or the other way round."""


def _opened(body: dict[str, Any], version: int) -> LawFile:
    """The law of a file's body, once it is found to repeat its own predictions.

    Raises:
        _AnotherVersionError: it is of another version of the code.
        Exception: any, where an attribute is not what it must be.
    """
    held = body["law"]
    law = _decoded(held)
    kind, features, targets = body["kind"], body["features"], body["targets"]
    if kind not in KINDS:
        raise _AnotherVersionError(f"laws of kind {kind!r} are unknown")
    if type(law) is not KINDS[kind]:
        raise TypeError(f"a law of kind '{kind}' is a {type(law).__name__}")
    for names in (features, targets):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("its columns are not names")
    predictions = _own_predictions(law)
    if predictions[0].ndim > 1 and predictions[0].shape[1] != len(targets):
        raise ValueError(f"it predicts {predictions[0].shape[1]} losses and names {len(targets)}")
    if not np.isfinite(predictions[0]).all():
        raise ValueError("it predicts what is no number")
    if version > 1:
        stored = [_decoded(part) for part in held["predictions"]]
        same = all(
            a.shape == b.shape and np.allclose(a, b, rtol=_SAME, atol=0, equal_nan=True)
            for a, b in zip(predictions, stored, strict=True)
        )
        if not same:
            raise _AnotherVersionError(
                f"it was fitted by version {held.get('laws_version')!r} of the laws, and version {LAWS_VERSION} would "
                "predict other losses from it"
            )
    sources = [Source(**source) for source in body["sources"]]
    columns = [ColumnReading(**reading) for reading in body["summary"].get("columns", [])]
    aside = body["summary"].get("set_aside", [])
    return LawFile(
        kind, law, features, targets, body["size_column"], sources, columns, aside, held.get("tokens_column")
    )


def _own_predictions(law: Any) -> list[Array]:
    """What a law says at points of its own: predictions, and all else that the verbs ask of it, as arrays."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [np.asarray(part, dtype=float) for part in law.probe()]


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _encoded(value: Any) -> Any:
    """``value`` as JSON: what JSON has stands for itself, all else is an object with one key that names its kind."""
    match value:
        case None | bool() | int() | str():
            return value
        case np.generic():
            return _encoded(value.item())
        case float():
            return value if np.isfinite(value) else {"float": str(value)}
        case np.ndarray():
            readable = value.size <= _READABLE and bool(np.isfinite(value.astype(float)).all())
            data = value.ravel().tolist() if readable else base64.b64encode(value.tobytes()).decode()
            return {"array": {"dtype": value.dtype.str, "shape": list(value.shape), "data": data}}
        case list():
            return [_encoded(part) for part in value]
        case dict():
            return {"dict": [[_encoded(key), _encoded(part)] for key, part in value.items()]}
        case tuple() if type(value) is tuple:
            return {"tuple": [_encoded(part) for part in value]}
    kind = type(value)
    if kind not in ATTRIBUTES:
        raise TypeError(f"a law file cannot hold a {kind.__qualname__}")
    wanted, there = set(ATTRIBUTES[kind].split()), vars(value)
    if wanted != there.keys():
        raise TypeError(f"a {kind.__qualname__} has attributes {wanted ^ there.keys()} that schema.py does not list so")
    where = f"{kind.__module__.rpartition('.')[2]}:{kind.__qualname__}"
    return {"object": where, "attributes": {name: _encoded(part) for name, part in there.items()}}


def _decoded(value: Any) -> Any:
    match value:
        case {"float": text}:
            return float(text)
        case {"array": {"dtype": dtype, "shape": shape, "data": data}}:
            if np.dtype(dtype).kind not in "biuf":
                raise TypeError(f"an array of type {dtype}")
            readable = isinstance(data, list)
            flat = np.array(data, dtype) if readable else np.frombuffer(base64.b64decode(data, validate=True), dtype)
            return flat.reshape(shape).copy()
        case list():
            return [_decoded(part) for part in value]
        case {"dict": pairs}:
            return {_decoded(key): _decoded(part) for key, part in pairs}
        case {"tuple": parts}:
            return tuple(_decoded(part) for part in parts)
        case {"object": where, "attributes": attributes}:
            if where not in NAMES:
                raise _AnotherVersionError(f"it holds a '{where}', which is no law of this program")
            kind = NAMES[where]
            wanted = set(ATTRIBUTES[kind].split())
            parts = {**SINCE.get(kind, {}), **{name: _decoded(part) for name, part in attributes.items()}}
            if wanted != parts.keys():
                missing, more = sorted(wanted - parts.keys()), sorted(parts.keys() - wanted)
                said = [f"lacks {', '.join(missing)}"] if missing else []
                said += [f"has {', '.join(more)} besides"] if more else []
                raise _AnotherVersionError(f"its {kind.__qualname__} {' and '.join(said)}")
            made: Any = object.__new__(kind)
            for name, part in parts.items():
                object.__setattr__(made, name, part)
            return made
    return value

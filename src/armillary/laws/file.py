"""Law files: a fitted law as JSON, with the tables it was fitted to by their hashes.

A file holds everything that predictions need, to the last bit: the same file gives the same numbers on every machine,
and the same fit gives the same file. Trade-offs taken:

- Fitted estimators are written attribute by attribute, by one writer for all of them. Nothing is unpickled: on reading,
  only classes of the rooms of laws come to life, and only their attributes are set.
- Arrays of more than a few numbers are base64 of their bytes: exact, small, and not meant for people. What people want
  to read (parameters, what was chosen, held-out errors) is under ``summary``.
- A checksum over all of it refuses a file that was torn or edited by hand.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from armillary.files import write_json
from armillary.laws.columns import ColumnReading
from armillary.recipe import UsageError

FORMAT = "armillary-law"
VERSION = 1

# Arrays up to this size are lists of numbers, larger ones base64.
_READABLE = 16
_ROOM = __name__.rpartition(".")[0]


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


def source_of(path: Path, rows: int) -> Source:
    """The record of a table at ``path``."""
    return Source(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), rows)


def write_law(path: Path, law: LawFile, summary: dict[str, Any]) -> None:
    """Write a law file; ``summary`` is for people and holds only JSON values."""
    body = {
        "summary": summary,
        "kind": law.kind,
        "features": law.features,
        "targets": law.targets,
        "size_column": law.size_column,
        "sources": [asdict(source) for source in law.sources],
        "law": _encoded(law.law),
    }
    write_json(path, {"format": FORMAT, "version": VERSION, "sha256": _checksum(body), **body})


def read_law(path: Path) -> LawFile:
    """Read a law file.

    Raises:
        UsageError: the file is missing, no law file, of another version, torn or edited.
    """
    remedy = "give a file that 'armillary fit' wrote"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; {remedy}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is torn or no JSON ({error}); {remedy}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UsageError(f"{path} is no law file; {remedy}")
    if document.get("version") != VERSION:
        raise UsageError(
            f"{path} is of version {document.get('version')} of law files, this program reads version {VERSION}; "
            "fit the law again from its tables"
        )
    keys = ("summary", "kind", "features", "targets", "size_column", "sources", "law")
    body: dict[str, Any] = {key: document.get(key) for key in keys}
    if _checksum(body) != document.get("sha256"):
        raise UsageError(f"{path} was torn or edited after it was written; fit the law again from its tables")
    try:
        sources = [Source(**source) for source in body["sources"]]
        law = _decoded(body["law"])
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise UsageError(f"{path} does not hold a law ({error}); fit the law again from its tables") from error
    return LawFile(body["kind"], law, body["features"], body["targets"], body["size_column"], sources)


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
    if not kind.__module__.startswith(f"{_ROOM}."):
        raise TypeError(f"a law file cannot hold a {kind.__qualname__}")
    attributes = value._asdict() if isinstance(value, tuple) else vars(value)  # type: ignore[attr-defined]
    where = f"{kind.__module__.removeprefix(_ROOM + '.')}:{kind.__qualname__}"
    return {"object": where, "attributes": {name: _encoded(part) for name, part in attributes.items()}}


def _decoded(value: Any) -> Any:
    match value:
        case {"float": text}:
            return float(text)
        case {"array": {"dtype": dtype, "shape": shape, "data": data}}:
            flat = (
                np.array(data, dtype=dtype) if isinstance(data, list) else np.frombuffer(base64.b64decode(data), dtype)
            )
            return flat.reshape(shape).copy()
        case list():
            return [_decoded(part) for part in value]
        case {"dict": pairs}:
            return {_decoded(key): _decoded(part) for key, part in pairs}
        case {"tuple": parts}:
            return tuple(_decoded(part) for part in parts)
        case {"object": where, "attributes": attributes}:
            module, _, name = where.partition(":")
            try:
                kind = getattr(importlib.import_module(f"{_ROOM}.{module}"), name, None)
            except ImportError:
                kind = None
            if not isinstance(kind, type) or not kind.__module__.startswith(f"{_ROOM}."):
                raise UsageError(f"a law file names '{where}', which is no law of this program")
            parts = {name: _decoded(part) for name, part in attributes.items()}
            if issubclass(kind, tuple):
                return kind(*parts.values())
            made = object.__new__(kind)
            for name, part in parts.items():
                object.__setattr__(made, name, part)
            return made
    return value

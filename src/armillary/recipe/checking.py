"""Checks the values of a YAML file against a document type; one error lists all problems.

Pydantic stops at the first level with a problem: a wrong field prevents the checks over several fields. So each problem
is recorded, the wrong value is replaced by a valid one, and the document is checked again until no new problem appears.
Problems caused only by a replacement are not reported.
"""

from __future__ import annotations

import copy
import difflib
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from armillary.recipe.errors import FieldError, SeveralFieldsError, UsageError
from armillary.recipe.reader import Location, Problem, YamlFile, plain_type
from armillary.recipe.shapes import Document
from armillary.recipe.words import KINDS, in_words

D = TypeVar("D", bound=Document)

_PASSES = 20
_SHOWN = 50
# Replacement values for a field. The first one that the field accepts is used. The others reveal which problems are
# only consequences of the replacement.
_STAND_INS: tuple[Any, ...] = (
    *(1, 2, 8, 64, 1024, "1h", True, 0.25, [], [1, 2], {}),
    *(3, 4, 5, 6, 10, 12, 16, 24, 28, 32, 36, 40, 48, 80, 96, 128, 256, 512, 2048, 4096),
)


def check_document(file: YamlFile, kind: type[D]) -> D:
    """The document of ``kind`` in ``file``.

    Raises:
        UsageError: every problem, one line each with file, line, column and key.
    """
    value = file.value(kind)
    if not isinstance(value, dict):
        what = "is empty" if value is None else f"holds a {'list' if isinstance(value, list) else 'single value'}"
        keys = ", ".join(kind.model_fields)
        raise UsageError(f"{file.path}: {what}; the document is a mapping with the keys {keys}")
    found = list(file.problems)
    replaced: list[Location] = [_stands_at(problem) for problem in found]
    gone: set[int | str] = set()
    for location in replaced:
        _replace(value, kind, location)
        if not _is_there(value, location):
            gone.add(location[-1])
    for _ in range(_PASSES):
        try:
            document = kind.model_validate(copy.deepcopy(value))
        except ValidationError as error:
            # the check of the whole document runs once every part is valid, and reports all its problems
            whole = any(not one["loc"] for one in error.errors())
            new = [
                (loc, e)
                for loc, e in _errors(error, value)
                if not any(_related(loc, old) for old in replaced)
                and (not loc or loc[-1] not in gone)
                and (not replaced or _is_cause(kind, value, replaced, loc))
            ]
            new = _without_renamed(kind, value, new)
        else:
            if not found:
                return document
            break
        found += [Problem(loc, _said(kind, loc, e)) for loc, e in new]
        changed = [
            _renamed(file, value, kind, loc) or _replace(value, kind, loc)
            if e["type"] == "extra_forbidden"
            else _replace(value, kind, loc)
            for loc, e in new
        ]
        if whole or not any(changed):
            break
        replaced += [loc for loc, _ in new]
        # other parts may refer to a name that was removed from a mapping
        gone |= {loc[-1] for loc, e in new if e["type"] != "extra_forbidden" and not _is_there(value, loc)}
    lines = []
    for problem in sorted(found, key=lambda problem: file.place(problem.location)):
        line, column = file.place(problem.location)
        at = _dotted(_stands_at(problem))
        message = problem.message if not at or problem.message.startswith(_WITH_KEY) else f"{at}: {problem.message}"
        lines.append(f"{file.path}:{line}: {message}; column {column}")
    more = [f"{file.path}: and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    raise UsageError("\n".join([*lines[:_SHOWN], *more]))


_WITH_KEY = ("unknown key '", "the key '")


def nearest(name: str, known: list[str]) -> str:
    """The end of a message: the entry of ``known`` that is closest to ``name``, or all entries."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; nearest valid: '{match[0]}'" if match else f"; valid: {', '.join(known)}" if known else ""


def _dotted(location: Location) -> str:
    """``location`` joined by dots; a name that contains dots or spaces is quoted."""
    parts = [str(part) if len(str(part)) <= 60 else f"{str(part)[:57]}..." for part in location]
    return ".".join(part if part and "." not in part and part.isprintable() else repr(part) for part in parts)


def _stands_at(problem: Problem) -> Location:
    """The location of the problem in the values; the second of two equal keys has no separate location."""
    return problem.location[:-1] if problem.location[-1:] == ("<second>",) else problem.location


def _related(a: Location, b: Location) -> bool:
    """Whether one of two locations contains the other."""
    shorter = min(len(a), len(b))
    return a[:shorter] == b[:shorter]


def _is_cause(kind: type[Document], value: Any, replaced: list[Location], location: Location) -> bool:
    """Whether ``location`` is wrong for every replacement of the ``replaced`` values."""
    for choice in range(1, len(_STAND_INS)):
        other = copy.deepcopy(value)
        for place in replaced:
            _replace(other, kind, place, choice)
        try:
            kind.model_validate(copy.deepcopy(other))
        except ValidationError as error:
            wrong = [where for where, _ in _errors(error, other)]
            # a wrong replacement prevents the checks over several fields
            if location in wrong or any(_related(where, place) for where in wrong for place in replaced):
                continue
        return False
    return True


def _without_renamed(
    kind: type[Document], value: Any, errors: list[tuple[Location, Any]]
) -> list[tuple[Location, Any]]:
    """``errors`` without missing keys that are present under a misspelt name."""
    renamed = set()
    for location, error in errors:
        if error["type"] == "extra_forbidden":
            known = _known_name(_part(value, location[:-1]), kind, location)
            renamed |= {(*location[:-1], name) for name in known}
    return [(loc, error) for loc, error in errors if error["type"] != "missing" or loc not in renamed]


def _part(value: Any, location: Location) -> Any:
    for key in location:
        value = value[key]
    return value


def _known_name(part: Any, kind: Any, location: Location) -> list[str]:
    """The valid key closest to the unknown one at ``location`` of the document, if ``part`` lacks that key."""
    known = difflib.get_close_matches(str(location[-1]), _valid_keys(kind, location[:-1]), n=1, cutoff=0.5)
    return [name for name in known if name not in part]


def _errors(error: ValidationError, value: Any) -> list[tuple[Location, Any]]:
    """Each pydantic error, and each problem of a check over several fields, with its place in the document."""
    found: list[tuple[Location, Any]] = []
    for one in error.errors():
        cause = one.get("ctx", {}).get("error")
        if isinstance(cause, SeveralFieldsError):
            found += [((*one["loc"], *p.location), {"type": "check", "msg": str(p)}) for p in cause.problems]
        elif isinstance(cause, FieldError):
            found.append(((*one["loc"], *cause.location), one))
        else:
            found.append((_without_tags(one["loc"], value), one))
    # pydantic also reports a list with a wrong entry as too short
    return [
        (loc, one)
        for loc, one in found
        if one["type"] != "too_short" or not any(loc == other[: len(loc)] != other for other, _ in found)
    ]


def _without_tags(location: Location, value: Any) -> Location:
    """``location`` without the names of union members, which pydantic inserts between the keys."""
    kept: list[int | str] = []
    for i, key in enumerate(location):
        if isinstance(value, dict) and key not in value and value.get("kind") == key and i + 1 < len(location):
            continue
        kept.append(key)
        try:
            value = value[key]
        except (LookupError, TypeError):
            value = None
    return tuple(kept)


def _said(kind: type[Document], location: Location, error: Any) -> str:
    """The message of one error: what is wrong, and for an unknown key the nearest valid one."""
    where = _dotted(location)
    given = error.get("input")
    if error["type"] == "extra_forbidden":
        return f"unknown key '{where}'{nearest(str(location[-1]), _valid_keys(kind, location[:-1]))}"
    if error["type"] == "missing":
        return f"the key '{where}' is missing"
    if given is None and "input" in error and error["type"] != "value_error":
        return "has no value; give one, or remove the key"
    message = in_words(error)
    keys = _valid_keys(kind, location)
    if keys and error["type"] in KINDS:
        message += f"; valid keys: {', '.join(keys)}"
    shown = f" (given: {_cut(given)})" if isinstance(given, (str, int, float, bool)) else ""
    return f"{message}{shown}"


def _cut(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _field(kind: Any, key: int | str) -> FieldInfo | None:
    """The field ``key`` of a document of type ``kind``; None if it is not a document or has no such field."""
    kind = plain_type(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_fields.get(str(key))
    return None


def _below(kind: Any, key: int | str) -> Any:
    """The type of the value under ``key`` in a part of type ``kind``."""
    field = _field(kind, key)
    if field is not None:
        return field.annotation
    arguments = [part for part in getattr(plain_type(kind), "__args__", ()) if part is not Ellipsis]
    return arguments[-1] if arguments else None


def _valid_keys(kind: Any, location: Location) -> list[str]:
    """Keys of the part of a document of type ``kind`` that ``location`` leads to."""
    for key in location:
        kind = _below(kind, key)
    kind = plain_type(kind)
    found: dict[str, None] = {}
    for part in (kind, *getattr(kind, "__args__", ())):  # a document, or one of several
        if isinstance(part, type) and issubclass(part, BaseModel):
            found |= dict.fromkeys(part.model_fields)
    return list(found)


def _renamed(file: YamlFile, value: Any, kind: Any, location: Location) -> bool:
    """Rename an unknown key to the nearest valid one that is absent, so that the latter is not reported as missing."""
    value = _part(value, location[:-1])
    known = _known_name(value, kind, location)
    if not known:
        return False
    value[known[0]] = value.pop(str(location[-1]))
    end = len(location)
    below = {where[end:]: place for where, place in file.places.items() if where[:end] == location}
    file.places.update({(*location[:-1], known[0], *rest): place for rest, place in below.items()})
    return True


def _replace(value: Any, kind: Any, location: Location, choice: int = 0) -> bool:
    """Replace the wrong value at ``location`` by a valid one, or remove it.

    ``choice`` selects among possible replacements; a number beyond the last selects the last.
    """
    if not location:
        return False
    for key in location[:-1]:
        try:
            value = value[key]
        except (LookupError, TypeError):
            return False
        kind = _below(kind, key)
    key, field = location[-1], _field(kind, location[-1])
    stand_in = _stand_in(field.rebuild_annotation() if field is not None else _below(kind, key), choice)
    if isinstance(value, list) and isinstance(key, int) and key < len(value) and stand_in is not None:
        value[key] = stand_in
    elif not isinstance(value, dict):
        return False
    elif field is not None and stand_in is not None:
        value[str(key)] = stand_in
    elif str(key) in value:
        del value[str(key)]
    else:
        return False
    return True


def _is_there(value: Any, location: Location) -> bool:
    for key in location:
        try:
            value = value[key]
        except (LookupError, TypeError):
            return False
    return True


def _stand_in(kind: Any, choice: int = 0) -> Any:
    """A valid value for a field of type ``kind``, or None; ``choice`` as in ``_replace``."""
    if kind is None:
        return None
    plain = plain_type(kind)
    if isinstance(plain, type) and issubclass(plain, BaseModel):
        needed = {name: field for name, field in plain.model_fields.items() if field.is_required()}
        parts = {name: _stand_in(field.rebuild_annotation(), choice) for name, field in needed.items()}
        return None if None in parts.values() else parts
    adapter = TypeAdapter(kind)
    found = None
    for candidate in _STAND_INS:
        try:
            adapter.validate_python(candidate)
        except ValueError:
            continue
        found = candidate
        if choice == 0:
            break
        choice -= 1
    return found

"""Reads a YAML file by the types of its fields, with the line and column of every part.

The type of a scalar depends on its field, not on the spelling rules of YAML 1.1. For a name, ``no``, ``2023`` and
``1e3`` are text. For a number, ``1e6``, ``10_000`` and ``20M`` are accepted. ``010000``, ``0x10`` and ``1:30:00``,
which programs read in several ways, are refused with what to write instead. Keys are always text.

Anchors, aliases and merge keys are supported. A path that is not a regular file (a folder, a pipe), a file that is too
large for a recipe, and exponential growth through aliases are refused before they cost time or memory.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from armillary.recipe.errors import UsageError

Location = tuple[int | str, ...]

_MAX_BYTES = 256 * 1024
_MAX_NODES = 30_000  # in the file, and again after aliases are followed
_MAX_DEPTH = 60
_MAX_DIGITS = 64
_MAX_EXPONENT = 30

_NULL = {"", "~", "null", "Null", "NULL"}
_TRUE, _FALSE = {"true", "yes", "on", "y", "1"}, {"false", "no", "off", "n", "0"}
_CORE = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
_POWERS = {"": 0, "%": -2, "k": 3, "K": 3, "M": 6, "B": 9, "G": 9, "T": 12}  # of ten, by the suffix of a number
_NUMBER = re.compile(r"([-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*))(?:[eE]([-+]?\d+))?\s?([%kKMBGT]?)", re.ASCII)


@dataclass(frozen=True)
class Problem:
    """A problem at one location of a document."""

    location: Location
    message: str


class _TooMuchError(yaml.MarkedYAMLError):
    """Valid YAML, but too deep or too large to be a hand-written document."""


class _Loader(yaml.SafeLoader):
    """Composes nodes only; every plain scalar stays text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # the stub has an instance's
    depth = 0
    count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        self.count += 1
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        _refuse_too_much(self.depth, self.count, mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _refuse_too_much(depth: int, count: int, mark: Any) -> None:
    if depth > _MAX_DEPTH:
        raise _TooMuchError(problem=f"nested more than {_MAX_DEPTH} levels deep", problem_mark=mark)
    if count > _MAX_NODES:
        problem = f"has more than {_MAX_NODES:,} entries, including those of aliases"
        raise _TooMuchError(problem=problem, problem_mark=mark)


@dataclass
class YamlFile:
    """The nodes of a YAML file, their values for a kind of document, and the line and column of each."""

    path: Path
    root: yaml.Node | None
    problems: list[Problem] = field(default_factory=list)
    places: dict[Location, tuple[int, int]] = field(default_factory=dict)
    _nodes: int = 0
    _open: list[int] = field(default_factory=list)

    @property
    def keys(self) -> set[str]:
        """The keys of the top level."""
        pairs = self.root.value if isinstance(self.root, yaml.MappingNode) else ()
        return {key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)}

    def is_scalar(self, name: str) -> bool:
        """Whether the key ``name`` of the top level has a single value, not a mapping or a list."""
        pairs = self.root.value if isinstance(self.root, yaml.MappingNode) else ()
        return any(key.value == name and isinstance(value, yaml.ScalarNode) for key, value in pairs)

    def value(self, kind: type[BaseModel]) -> Any:
        """The document as a value to validate as ``kind``; unreadable values are recorded in ``problems``.

        Raises:
            UsageError: nested too deeply, or too large once aliases are followed.
        """
        try:
            return None if self.root is None else self._value(self.root, kind, ())
        except _TooMuchError as error:
            raise _not_yaml(self.path, error) from error

    def place(self, location: Location) -> tuple[int, int]:
        """Line and column (from 1) of the deepest part of ``location`` that is in the file."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.places:
                return self.places[location[:end]]
        return 1, 1

    def _value(self, node: yaml.Node, kind: Any, location: Location) -> Any:
        self._nodes += 1
        _refuse_too_much(len(self._open), self._nodes, node.start_mark)
        if id(node) in self._open:
            problem = "an alias refers to the anchor around it; remove it"
            raise _TooMuchError(problem=problem, problem_mark=node.start_mark)
        self.places.setdefault(location, (node.start_mark.line + 1, node.start_mark.column + 1))
        if node.tag not in _CORE:
            self.problems.append(Problem(location, f"the tag {node.tag} is not supported; remove it"))
            return None
        self._open.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, kind, location)
            if isinstance(node, yaml.SequenceNode):
                item = _item(kind)
                return [self._value(part, item, (*location, i)) for i, part in enumerate(node.value)]
            assert isinstance(node, yaml.ScalarNode)
            return self._scalar(node.value, node.style is None, _scalars(kind), location)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, kind: Any, location: Location) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                line, column = key.start_mark.line + 1, key.start_mark.column + 1
                message = f"a key must be text, not a {key.id} (line {line}, column {column}); write a name"
                self.problems.append(Problem(location, message))
                continue
            if key.value == "<<" and key.style is None:
                for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(part, yaml.MappingNode):
                        merged = {**self._value(part, kind, location), **merged}
                    else:
                        self.problems.append(Problem(location, "'<<' merges a mapping, such as '<<: *anchor'"))
                continue
            here = (*location, key.value)
            line, column = key.start_mark.line + 1, key.start_mark.column + 1
            if key.value in own:
                # at the second of the two
                self.places[*here, "<second>"] = line, column
                message = f"the key '{key.value}' appears twice; remove one"
                self.problems.append(Problem((*here, "<second>"), message))
                continue
            if isinstance(value, yaml.ScalarNode) and value.start_mark.line == key.start_mark.line:
                column = value.start_mark.column + 1
            self.places[here] = line, column
            own[key.value] = self._value(value, _entry(kind, key.value), here)
        return {**merged, **own}

    def _scalar(self, text: str, plain: bool, kinds: set[type], location: Location) -> Any:
        if plain and text in _NULL:
            return None
        if str in kinds:
            return text
        if bool in kinds:
            word = text.strip().lower()
            return True if word in _TRUE else False if word in _FALSE else text
        if int in kinds or float in kinds:
            value, trouble = number(text, whole=float not in kinds)
            if trouble:
                self.problems.append(Problem(location, f"{trouble} (given: {_cut(text)})"))
            return value
        return number(text, whole=False)[0] if plain else text


def read_yaml(path: Path) -> YamlFile:
    """Read the nodes of a YAML file.

    Raises:
        UsageError: no such file, not a file, too large, not UTF-8, or not YAML, with its line.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "Is a directory" if stat.S_ISDIR(status.st_mode) else "it is a pipe, socket or device"
            raise UsageError(f"{path}: cannot be read ({what}); give the path of a YAML file")
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read ({reason}); give the path of a YAML file") from error
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{path}: is larger than {_MAX_BYTES // 1024} KiB; give a YAML file")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}:{line}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    try:
        return YamlFile(path, yaml.compose(text, Loader=_Loader))
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UsageError(
            f"{path}:{line}: contains the character U+{ord(text[error.position]):04X}, which YAML does not allow; "
            "remove it, or save the file as UTF-8"
        ) from error
    except yaml.YAMLError as error:
        raise _not_yaml(path, error) from error


def _not_yaml(path: Path, error: yaml.YAMLError) -> UsageError:
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or error).replace("\n", " ")
    if "'\\t'" in problem:
        problem += "; indent with spaces, not with tabs"
    what = problem if isinstance(error, _TooMuchError) else f"not YAML: {problem}"
    if mark is None:
        return UsageError(f"{path}: {what}")
    return UsageError(f"{path}:{mark.line + 1}: {what}; column {mark.column + 1}")


def number(text: str, whole: bool) -> tuple[int | float | str, str | None]:
    """Parse ``text`` as a number; the second value is the reason why it is refused, or None.

    Text that does not look like a number is returned unchanged, without a reason. ``whole`` requires an integer.
    """
    plain = text.strip()
    if plain.lower().lstrip("+-") in (".inf", ".nan"):
        return float(plain.lower().replace(".", "")), None
    if re.fullmatch(r"[-+]?\d+(:\d+)+(\.\d*)?", plain, re.ASCII):
        return plain, "some programs read this as base 60; write a plain number, such as 5400"
    if re.fullmatch(r"[-+]?0[xob][0-9a-f_]+", plain, re.ASCII | re.IGNORECASE):
        return plain, "write the number with the digits 0 to 9 only"
    if re.fullmatch(r"[-+]?0[\d_]+", plain, re.ASCII):
        meant = plain.lstrip("+-0_") or "0"
        return plain, f"with a leading 0 some programs read this in base 8; write {meant}"
    if re.fullmatch(r"[-+]?\d{1,3}([, ]\d{3})+", plain, re.ASCII):
        return plain, f"write the number without separators, or as {re.sub('[, ]', '_', plain)}"
    match = _NUMBER.fullmatch(plain)
    if match is None:
        return text, None
    digits, exponent, suffix = match[1].replace("_", ""), int((match[2] or "0")[:6]), match[3]
    if len(plain) > _MAX_DIGITS or exponent > 308:
        return plain, "the number is too large"
    exact = Decimal(f"{digits}e{exponent + _POWERS[suffix]}")
    if not whole:
        return (int(exact) if _is_whole(exact) and not (match[2] or "." in digits) else float(exact)), None
    if abs(exact) > Decimal(10) ** _MAX_EXPONENT:
        return plain, "the number is too large"
    if suffix == "%" or exact != exact.to_integral_value():
        return plain, "must be a whole number"
    return int(exact), None


def _is_whole(value: Decimal) -> bool:
    return abs(value) < Decimal(10) ** _MAX_EXPONENT and value == value.to_integral_value()


def plain_type(kind: Any) -> Any:
    """A type without ``Annotated`` and ``| None``."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        parts = [part for part in get_args(kind) if part is not type(None)]
        return plain_type(parts[0]) if len(parts) == 1 else kind
    return kind


def _entry(kind: Any, key: str) -> Any:
    """The type of the value under ``key`` in a mapping of ``kind``; None if unknown."""
    kind = plain_type(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        known = kind.model_fields.get(key)
        return None if known is None else known.annotation
    if get_origin(kind) is dict:
        return get_args(kind)[1]
    return None


def _item(kind: Any) -> Any:
    """The type of the entries of a list of ``kind``; None if unknown."""
    kind = plain_type(kind)
    return get_args(kind)[0] if get_origin(kind) in (tuple, list) else None


def _scalars(kind: Any) -> set[type]:
    """The scalar types (text, bool, numbers) that ``kind`` allows; empty if unknown."""
    kind = plain_type(kind)
    if get_origin(kind) is Literal:
        return {type(value) for value in get_args(kind)}
    if get_origin(kind) in (Union, UnionType):
        return set().union(*(_scalars(part) for part in get_args(kind)))
    return {kind} if kind in (str, int, float, bool) else set()


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."

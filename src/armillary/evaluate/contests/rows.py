"""Reads files with one JSON object per line. Every error names file, line and field."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.recipe import UsageError

_NAMED = 10  # faults that one message lists


@dataclass(frozen=True)
class Row:
    """A JSON object in a file: the whole line, or an object nested in it (``within`` says where)."""

    path: Path
    line: int
    data: dict[str, Any]
    within: str = ""

    def wrong(self, field: str, what: str) -> UsageError:
        """The error for ``field``: its location and ``what`` is wrong."""
        return UsageError(f"{self.path}:{self.line}: {self.within}{field}: {what}")

    def value(self, field: str) -> Any:
        """The value of ``field``, which must be there."""
        if field not in self.data:
            raise self.wrong(field, f"is missing; this line has {_listed(self.data)}")
        return self.data[field]

    def text(self, field: str) -> str:
        """A string that is not empty."""
        value = self.value(field)
        if not isinstance(value, str) or not value:
            raise self.wrong(field, f"must be a non-empty text, given {_short(value)}")
        return value

    def whole(self, field: str) -> int:
        """A whole number."""
        value = self.value(field)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(field, f"must be a whole number, given {_short(value)}")
        return value

    def one_of(self, field: str, known: Collection[str]) -> str:
        """One of the ``known`` labels."""
        value = self.text(field)
        if value not in known:
            raise self.wrong(field, f"unknown label {_short(value)}{_nearest(value, known)}")
        return value

    def objects(self, field: str) -> list[Row]:
        """A list of objects, each as a separate row."""
        value = self.value(field)
        if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
            raise self.wrong(field, f"must be a list of objects, given {_short(value)}")
        return [Row(self.path, self.line, part, f"{self.within}{field}[{place}].") for place, part in enumerate(value)]


def read_rows(path: Path, use: Callable[[Row], None]) -> None:
    """Pass every row of ``path`` to ``use``, and report all faults together.

    Raises:
        UsageError: no such file, no rows, a line that is not a JSON object in UTF-8, or an error that ``use`` raised.
    """
    faults: list[str] = []
    empty = True
    for line, data in _lines(path):
        empty = False
        try:
            use(Row(path, line, _parsed(path, line, data)))
        except UsageError as error:
            faults.append(str(error))
    if empty:
        raise UsageError(f"{path}: the file is empty; write one JSON object per line")
    if faults:
        more = f"\n… and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise UsageError("\n".join(faults[:_NAMED]) + more)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for line, data in enumerate(file, 1):
                if data.strip():
                    yield line, data
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"{path}: {error.strerror}; give a file with one JSON object per line") from error


def _parsed(path: Path, line: int, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8-sig" if line == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}:{line}: not JSON in UTF-8 ({error}); each line is one JSON object") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}:{line}: a JSON {type(value).__name__}; each line is one JSON object")
    return value


def _nearest(value: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(value, known, 1)
    return f"; the nearest is {near[0]}" if near else f"; known are {_listed(known)}"


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_NAMED]) or "no fields"
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."

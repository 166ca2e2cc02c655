"""Items of post-training data, one JSON object per line: a conversation, its correct answer, and how to check it.

Fields of a line, in this order:

- ``id``: names the item; by default a hash of ``messages``, ``answer`` and ``check``;
- ``messages``: ``role`` and ``content`` of each turn. In a question, the last turn is the user's. With an assistant's
  turn at the end, the item can be used as training data;
- ``answer``: the correct answer in plain form, or null;
- ``check``: how to judge an answer: ``kind`` and the parameters of that verifier, or null;
- ``domain`` (math, code, logic, …), ``family`` (the generator or topic), ``level`` (difficulty), ``language``;
- ``origin``: the ``stage`` that made it, and its ``parents`` (ids of items); ``notes``: results of stages.

In lines written by users, only ``messages`` is required. Unknown fields follow the others and are kept. Other formats
are read by `records`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from armillary.generate import Message
from armillary.recipe import UsageError

_ROLES = ("system", "user", "assistant")
_KNOWN = ("id", "messages", "answer", "check", "domain", "family", "level", "language", "origin", "notes")
_REMEDY = 'write one object per line, such as {"messages": [{"role": "user", "content": "1+1=?"}]}'
# Longer than any conversation that a model can read, and short enough to fit in memory.
_LONGEST_LINE = 64 << 20


@dataclass(frozen=True)
class Item:
    """One item, with the fields of the module docstring. An empty ``id`` is computed; ``extra`` has unknown fields.

    Raises:
        UsageError: no messages, a wrong order of roles, or a ``check`` without a ``kind``.
    """

    messages: tuple[Message, ...]
    answer: str | None = None
    check: Mapping[str, Any] | None = None
    domain: str = ""
    family: str = ""
    level: int = 0
    language: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_order(self.messages)
        if self.check is not None and not isinstance(self.check.get("kind"), str):
            raise UsageError(f'check: must have a kind, such as {{"kind": "math"}}, given {dict(self.check)!r}')
        if not self.id:
            what = [[asdict(message) for message in self.messages], self.answer, self.check and dict(self.check)]
            object.__setattr__(self, "id", content_hash(what))

    @property
    def question(self) -> tuple[Message, ...]:
        """The messages up to the user's last turn: the prompt for a model."""
        return self.messages if self.messages[-1].role == "user" else self.messages[:-1]

    @property
    def text(self) -> str:
        """The last turn of the user."""
        return self.question[-1].content

    @property
    def reply(self) -> str | None:
        """The assistant's last turn; None in a question."""
        return self.messages[-1].content if self.messages[-1].role == "assistant" else None

    def with_reply(self, text: str | None) -> Item:
        """The same question with ``text`` as the assistant's last turn, or without one; the id changes."""
        last = () if text is None else (Message("assistant", text),)
        return replace(self, messages=(*self.question, *last), id="")

    def derived(self, stage: str, **changed: Any) -> Item:
        """A new item by ``stage`` with this one as its parent; ``changed`` holds the new fields."""
        origin = {"stage": stage, "parents": [self.id], **changed.pop("origin", {})}
        return replace(self, **changed, origin=origin, id="")

    def to_json(self) -> dict[str, Any]:
        """The item as plain data, in the order of the fields of a line."""
        return {
            "id": self.id,
            "messages": [{"role": message.role, "content": message.content} for message in self.messages],
            "answer": self.answer,
            "check": None if self.check is None else dict(self.check),
            "domain": self.domain,
            "family": self.family,
            "level": self.level,
            "language": self.language,
            "origin": dict(self.origin),
            "notes": dict(self.notes),
            **self.extra,
        }

    @classmethod
    def from_json(cls, row: Any) -> Item:
        """The item in ``row``.

        Raises:
            UsageError: a wrong field; the message names it, its value, and the remedy.
        """
        if not isinstance(row, dict):
            raise UsageError(f"a JSON {type(row).__name__}, not an object; {_REMEDY}")
        level = row.get("level", 0)
        if not isinstance(level, int) or isinstance(level, bool) or level < 0:
            raise UsageError(
                f"level: must be a whole number from 0 on, given {level!r:.200}; rename a field of other use"
            )
        name = row.get("id", "")
        return cls(
            messages=_messages(row),
            answer=_optional("answer", row.get("answer"), str, "text or null"),
            check=_optional("check", row.get("check"), dict, "an object with a kind, or null"),
            domain=_text("domain", row.get("domain", "")),
            family=_text("family", row.get("family", "")),
            level=level,
            language=_text("language", row.get("language", "")),
            origin=_optional("origin", row.get("origin"), dict, "an object") or {},
            notes=_optional("notes", row.get("notes"), dict, "an object") or {},
            id=str(name) if isinstance(name, int) and not isinstance(name, bool) else _text("id", name),
            extra={name: value for name, value in row.items() if name not in _KNOWN},
        )


def read_items(path: Path) -> Iterator[Item]:
    """Yield the items in a JSONL file; blank lines and a byte order mark are skipped.

    Raises:
        UsageError: the file cannot be read, or a row is wrong; names file, line, field and value.
    """
    for number, row in read_rows(path):
        try:
            yield Item.from_json(row)
        except UsageError as error:
            raise UsageError(f"{path}:{number}: {error}") from None


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield line number and JSON value of each line of a file from a user.

    NaN, infinities, duplicate fields and lone surrogates are refused, since JSON readers treat them differently.

    Raises:
        UsageError: the file cannot be read, or a line is not JSON; names file and line.
    """
    try:
        with open(path, "rb") as file:
            for number, line in _lines(path, file):
                yield number, parse_row(path, number, line)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a file of items, one JSON object per line") from None


def to_line(row: Mapping[str, Any]) -> bytes:
    """``row`` as one line of JSON.

    Raises:
        ValueError: a value that JSON cannot represent (NaN, infinity), or text without a UTF-8 form.
    """
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            raise UsageError(f"{path}:{number}: longer than {_LONGEST_LINE >> 20} MiB; one object per line")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line


def parse_row(path: Path, number: int, line: bytes) -> Any:
    """The JSON value of one line, as ``read_rows`` reads it."""
    try:
        row = json.loads(line, parse_constant=_no_constant, object_pairs_hook=_unique)
        # A lone surrogate can only come from an escape.
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()
        return row
    except UnicodeEncodeError:
        problem = "contains a lone surrogate (\\ud800 to \\udfff), which has no UTF-8 form"
    except (ValueError, RecursionError) as error:
        torn = "" if line.endswith(b"\n") else " (the last line, without a line end: torn?)"
        problem = f"not JSON{torn}: {error}"
    raise UsageError(f"{path}:{number}: {problem}; {_REMEDY}")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return row


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    value = row.get("messages")
    if not isinstance(value, list) or not value:
        nearest = difflib.get_close_matches("messages", [name for name in row if name != "messages"], 1)
        hint = f"; is {nearest[0]!r} meant?" if nearest and value is None else ""
        raise UsageError(f"messages: must be a list of objects with role and content, given {value!r:.200}{hint}")
    messages = []
    for place, message in enumerate(value):
        where = f"messages[{place}]"
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise UsageError(f"{where}: must be an object with role and content only, given {message!r:.200}")
        if message["role"] not in _ROLES:
            raise UsageError(f"{where}.role: must be one of {', '.join(_ROLES)}, given {message['role']!r:.200}")
        content = _text(f"{where}.content", message["content"])
        if not content.strip():
            raise UsageError(f"{where}.content: is empty; every turn needs text")
        messages.append(Message(message["role"], content))
    return tuple(messages)


def _check_order(messages: tuple[Message, ...]) -> None:
    """Check the roles: an optional system message at the start, then user and assistant in turns, the user first."""
    turns = [message.role for message in messages]
    start = 1 if turns[:1] == ["system"] else 0
    for place, role in enumerate(turns[start:]):
        wanted = "assistant" if place % 2 else "user"
        if role != wanted:
            raise UsageError(f"messages[{start + place}].role: must be {wanted} here, given {role!r}")
    if len(turns) == start:
        raise UsageError("messages: has no user turn")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name}: must be text, given {value!r:.200}")
    return value


def _optional(name: str, value: Any, kind: type, wanted: str) -> Any:
    if value is not None and not isinstance(value, kind):
        raise UsageError(f"{name}: must be {wanted}, given {value!r:.200}; rename a field of other use")
    return value


def content_hash(value: Any) -> str:
    """32 hexadecimal digits of the SHA-256 of plain data, for ids."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]

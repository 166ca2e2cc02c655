"""Rows of a file in any format of `formats`, for the stages that select, judge or change them.

A row is read in two ways. As a *record*, it has the texts of all its turns, and it can be copied unchanged with all its
fields. As an *item* (`items`), it is a question with a reply, an answer and a check. Fields such as ``answer`` and
``check`` may stand in a row of any format. A preference pair is the item of its prompt and chosen answer. Some
conversations are not items: those with tools, and those whose turns do not alternate. ``Record.refusal`` names the
reason, and a stage counts them under it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from armillary.generate import Message
from armillary.post.formats import AnswerPair, Turn, read_conversation, read_kinds, read_pair
from armillary.post.items import Item, content_hash
from armillary.recipe import UsageError

TOOLS = "tool calls"
ORDER = "order of turns"
REFUSALS = (TOOLS, ORDER)
# Fields that the turns of an item come from.
_SOURCES = {
    "messages": {"messages"},
    "alpaca": {"instruction", "input", "output", "system", "history"},
    "sharegpt": {"conversations", "system"},
    "telechat": {"dialog", "system"},
    "pairs": {"prompt", "chosen", "rejected"},
}
_HASHED = ("role", "content", "tool_calls", "tool_call_id")
_QUESTION = "?"  # the output of an Alpaca row that is only a question, while it is read


@dataclass(frozen=True)
class Record:
    """A row with its position and format, and its turns: of a pair, those of the prompt and the chosen answer."""

    where: str
    kind: str
    row: Mapping[str, Any]
    turns: tuple[Turn, ...]
    tools: bool = False
    rejected: tuple[Turn, ...] | None = None

    @cached_property
    def id(self) -> str:
        """The row's own id in the format ``messages``; else a hash of its turns, answer and check."""
        name = self.row.get("id") if self.kind == "messages" else None
        if isinstance(name, str | int) and name != "":
            return str(name)
        turns = [{name: turn[name] for name in turn if name in _HASHED} for turn in self.turns]
        others = [] if self.rejected is None else [[dict(turn) for turn in self.rejected]]
        return content_hash([turns, self.row.get("answer"), self.row.get("check"), *others])

    @property
    def texts(self) -> list[str]:
        """The texts of all turns, including the arguments of tool calls."""
        return [text for turn in (*self.turns, *(self.rejected or ())) for text in _texts(turn)]

    @property
    def refusal(self) -> str:
        """The reason why the row is not an item, one of ``REFUSALS``; "" if it is one."""
        if self.tools or any(turn["role"] == "tool" or turn.get("tool_calls") for turn in self.turns):
            return TOOLS
        roles = [turn["role"] for turn in self.turns if turn["role"] != "system"]
        alternate = all(role == ("assistant" if place % 2 else "user") for place, role in enumerate(roles))
        return "" if alternate else ORDER

    @property
    def reply(self) -> str | None:
        """The text of the assistant's last turn, also after tool calls; None if there is none."""
        last = self.turns[-1]
        return last["content"] if last["role"] == "assistant" and not last.get("tool_calls") else None

    @cached_property
    def item(self) -> Item:
        """The row as an item.

        Raises:
            UsageError: the row is not an item, or a field of items has a wrong value; names file, line and field.
        """
        if self.refusal:
            raise UsageError(f"{self.where}: has {self.refusal} that an item cannot have; leave the row out")
        return self._item([Message(turn["role"], turn["content"]) for turn in self.turns])

    @property
    def judged(self) -> Item:
        """The row as a question for a verifier; of a conversation with tools, only the last turn of the user."""
        if not self.refusal:
            return self.item
        last = [turn["content"] for turn in self.turns if turn["role"] == "user"][-1]
        return self._item([Message("user", last)])

    def _item(self, messages: Iterable[Message]) -> Item:
        consumed = _SOURCES[self.kind]
        fields = {name: value for name, value in self.row.items() if name not in consumed}
        if self.kind != "messages" and "id" in fields and isinstance(fields.setdefault("origin", {}), dict):
            fields["origin"] = {**fields["origin"], "id": fields.pop("id")}
        try:
            return Item.from_json({**fields, "messages": [asdict(message) for message in messages], "id": self.id})
        except UsageError as error:
            raise UsageError(f"{self.where}: {error}") from None


def read_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a file of conversations, questions or preference pairs, in any format.

    Raises:
        UsageError: the file cannot be read, its rows have an unknown format or different formats, or a row is wrong.
            The message names file, line, field and the remedy.
    """
    for where, kind, row in read_kinds(path):
        if kind == "pairs":
            pair: AnswerPair = read_pair(where, row)
            yield Record(where, kind, row, (*pair.prompt, *pair.chosen), rejected=pair.rejected)
            continue
        question = kind == "alpaca" and not str(row.get("output") or "").strip()
        found = read_conversation(where, kind, {**row, "output": _QUESTION} if question else row)
        yield Record(where, kind, row, found.messages[:-1] if question else found.messages, bool(found.tools))


def _texts(turn: Turn) -> Iterator[str]:
    if turn["content"]:
        yield turn["content"]
    for call in turn.get("tool_calls", ()):
        yield json.dumps(call["function"]["arguments"], ensure_ascii=False)

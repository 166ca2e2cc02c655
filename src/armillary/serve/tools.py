"""Tool calls in the text of an answer, as Hermes and Qwen write them.

The format is ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``. A call that is not such an object, or of a tool
that was not offered, stays text. White space around calls is removed.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Call:
    """A call of the tool ``name``; ``arguments`` is a JSON object as text."""

    name: str
    arguments: str


class ToolReader:
    """Splits streamed text into text and calls of the tools in ``names``."""

    def __init__(self, names: Collection[str]) -> None:
        self._names, self._held, self.calls = frozenset(names), "", 0
        self._after_call = False

    def feed(self, text: str) -> list[str | Call]:
        """The parts that ``text`` completes."""
        self._held += text
        found = list[str | Call]()
        while True:
            if self._after_call:
                self._held = self._held.lstrip()
                self._after_call = not self._held
            start = self._held.find(OPEN)
            if start < 0:
                keep = next((n for n in range(len(OPEN) - 1, 0, -1) if self._held.endswith(OPEN[:n])), 0)
                sure = self._held[: len(self._held) - keep].rstrip()
                found.append(sure)
                self._held = self._held[len(sure) :]
                break
            end = self._held.find(CLOSE, start)
            if end < 0:
                sure = self._held[:start].rstrip()
                found.append(sure)
                self._held = self._held[len(sure) :]
                break
            call = self._parse(self._held[start + len(OPEN) : end])
            if call is None:
                found.append(self._held[: end + len(CLOSE)])
            else:
                self.calls += 1
                found += [self._held[:start].rstrip(), call]
            self._held = self._held[end + len(CLOSE) :]
            self._after_call = call is not None
        return [part for part in found if part]

    def finish(self) -> str:
        """The rest of the text, at its end."""
        rest, self._held = self._held, ""
        return rest.rstrip() if self.calls else rest

    def _parse(self, text: str) -> Call | None:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(document, dict):
            return None
        name, arguments = document.get("name"), document.get("arguments", {})
        if name not in self._names or not isinstance(arguments, dict):
            return None
        return Call(name, json.dumps(arguments, ensure_ascii=False))


def check_template(source: str | None, special: bool) -> str | None:
    """The reason why a model with this chat template cannot call tools; None if it can.

    ``special``: whether the tokenizer removes the tool-call markers from text.
    """
    if source is None:
        return "this model has no chat template"
    if "tools" not in source:
        return "the chat template of this model does not support tools"
    if OPEN not in source:
        return f"the chat template of this model writes tool calls in a format other than {OPEN}{{…}}{CLOSE}"
    if special:
        return f"{OPEN} is a special token of this model, and answers contain no special tokens"
    return None


def for_template(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls of an earlier answer in the form that templates expect: arguments as an object.

    Raises:
        ValueError: arguments that are not a JSON object.
    """
    read = []
    for call in calls:
        function = dict(call["function"])
        arguments = function["arguments"]
        if isinstance(arguments, str):
            function["arguments"] = json.loads(arguments or "{}")
        if not isinstance(function["arguments"], dict):
            raise ValueError("arguments are not a JSON object")
        read.append({**call, "function": function})
    return read

"""Answers in the format of OpenAI's API, complete or streamed. Both are built from the same pieces, so they agree."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any

from armillary.serve.engine import Live, Piece, TokenScore
from armillary.serve.errors import ApiError
from armillary.serve.tools import Call, ToolReader

_LEAST = -9999.0  # JSON has no infinity


class Format(ABC):
    """The answer to one request; its id starts with ``prefix``."""

    prefix: str
    whole_object: str
    piece_object: str

    def __init__(self, model: str, live: Live, fingerprint: str) -> None:
        self._live = live
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._new_tokens = 0

    async def whole(self) -> dict[str, Any]:
        """The complete answer.

        Raises:
            ApiError: the request failed.
        """
        joined: dict[int, Piece] = {}
        async for pieces in self._live.pieces():
            for piece in pieces:
                joined[piece.choice] = joined[piece.choice] + piece if piece.choice in joined else piece
        choices = [self._choice(joined[number]) for number in sorted(joined)]
        self._new_tokens = sum(piece.tokens for piece in joined.values())
        return {**self._head, "object": self.whole_object, "choices": choices, "usage": self._usage()}

    async def events(self, with_usage: bool) -> AsyncIterator[bytes]:
        """The answer as server-sent events; an error is the last of them."""
        try:
            for choice in self._openings():
                yield self._event([choice])
            async for pieces in self._live.pieces():
                for piece in pieces:
                    self._new_tokens += piece.tokens
                    for choice in self._changes(piece):
                        yield self._event([choice])
        except ApiError as error:
            yield _line(error.to_json())
            return
        if with_usage:
            yield self._event([], self._usage())
        yield b"data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        event = {**self._head, "object": self.piece_object, "choices": choices}
        return _line(event if usage is None else {**event, "usage": usage})

    def _usage(self) -> dict[str, Any]:
        prompt = self._live.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._new_tokens,
            "total_tokens": prompt + self._new_tokens,
        }

    def _openings(self) -> list[dict[str, Any]]:
        """The first events of a stream."""
        return []

    @abstractmethod
    def _choice(self, piece: Piece) -> dict[str, Any]:
        """A complete choice."""

    @abstractmethod
    def _changes(self, piece: Piece) -> list[dict[str, Any]]:
        """The choices of the events for one piece."""


class CompletionFormat(Format):
    """The answers of ``/v1/completions``."""

    prefix, whole_object, piece_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, live: Live, fingerprint: str) -> None:
        super().__init__(model, live, fingerprint)
        self._offsets: dict[int, int] = {}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        return {
            "index": piece.choice,
            "text": piece.text,
            "logprobs": None if self._live.ask.top is None else self._scores(piece),
            "finish_reason": piece.finish,
        }

    def _changes(self, piece: Piece) -> list[dict[str, Any]]:
        return [self._choice(piece)]

    def _scores(self, piece: Piece) -> dict[str, Any]:
        offsets, offset = [], self._offsets.get(piece.choice, 0)
        for one in piece.scores:
            offsets.append(offset)
            offset += len(_text(one.token))
        self._offsets[piece.choice] = offset
        return {
            "tokens": [_text(one.token) for one in piece.scores],
            "token_logprobs": [_number(one.value) for one in piece.scores],
            "top_logprobs": [_likely(one) for one in piece.scores] if self._live.ask.top else None,
            "text_offset": offsets,
        }


class ChatFormat(Format):
    """The answers of ``/v1/chat/completions``; calls of the tools in ``names`` are extracted from the text."""

    prefix, whole_object, piece_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, live: Live, fingerprint: str, names: Sequence[str], only_one: bool) -> None:
        super().__init__(model, live, fingerprint)
        self._only_one = only_one
        self._readers = [ToolReader(names) if names else None for _ in range(live.choices)]

    def _openings(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [
            {"index": n, "delta": delta, "logprobs": None, "finish_reason": None} for n in range(self._live.choices)
        ]

    def _choice(self, piece: Piece) -> dict[str, Any]:
        parts = self._parts(piece)
        calls = [part for part in parts if isinstance(part, Call)]
        text = "".join(part for part in parts if isinstance(part, str))
        message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text, "refusal": None}
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        return {
            "index": piece.choice,
            "message": message,
            "logprobs": self._scores(piece),
            "finish_reason": self._finish(piece),
        }

    def _changes(self, piece: Piece) -> list[dict[str, Any]]:
        reader = self._readers[piece.choice]
        number = 0 if reader is None else reader.calls
        deltas = list[dict[str, Any]]()
        for part in self._parts(piece):
            if isinstance(part, str):
                deltas.append({"content": part})
            else:
                deltas.append({"tool_calls": [{"index": number, **_call(part)}]})
                number += 1
        if not deltas and (piece.scores or piece.finish is not None):
            deltas.append({})
        choices: list[dict[str, Any]] = [
            {"index": piece.choice, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas
        ]
        if choices:
            choices[0]["logprobs"] = self._scores(piece) if piece.scores else None
            choices[-1]["finish_reason"] = self._finish(piece)
        return choices

    def _parts(self, piece: Piece) -> list[str | Call]:
        """The text and the calls in a piece."""
        reader = self._readers[piece.choice]
        if reader is None:
            return [piece.text] if piece.text else []
        parts, complete = reader.feed(piece.text), list[str | Call]()
        if piece.finish is not None and (rest := reader.finish()):
            parts.append(rest)
        before = reader.calls - sum(isinstance(part, Call) for part in parts)
        for part in parts:
            if isinstance(part, Call):
                before += 1
                if self._only_one and before > 1:
                    continue
            complete.append(part)
        return complete

    def _finish(self, piece: Piece) -> str | None:
        reader = self._readers[piece.choice]
        called = reader is not None and reader.calls > 0 and piece.finish == "stop"
        return "tool_calls" if called else piece.finish

    def _scores(self, piece: Piece) -> dict[str, Any] | None:
        if self._live.ask.top is None:
            return None
        return {
            "content": [
                {**_scored(one.token, one.value), "top_logprobs": [_scored(*pair) for pair in one.top]}
                for one in piece.scores
            ],
            "refusal": None,
        }


def _call(call: Call) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _scored(token: bytes, value: float | None) -> dict[str, Any]:
    return {"token": _text(token), "logprob": _number(value), "bytes": list(token)}


def _likely(one: TokenScore) -> dict[str, float] | None:
    """The most likely tokens and the token itself; of tokens with equal text, only the most likely."""
    if one.value is None:
        return None
    found: dict[str, float] = {}
    for token, value in (*one.top, (one.token, one.value)):
        found.setdefault(_text(token), max(value, _LEAST))
    return found


def _text(token: bytes) -> str:
    """A token as text, or as bytes if it is part of a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _number(value: float | None) -> float | None:
    return None if value is None else max(value, _LEAST)


def _line(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

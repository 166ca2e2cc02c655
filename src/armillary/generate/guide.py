"""Keeps an answer inside a grammar: before each draw, the tokens that cannot continue it are excluded.

Grammars are JSON schemas and forced tool calls, compiled by the package ``llguidance``. Objects have one form, that of
``json.dumps``: a small model that may write any amount of white space often writes nothing else.

Trade-off: an answer that reaches its maximum of tokens ends in the middle of the grammar, as with other servers.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.generate.text import ModelText
from armillary.recipe import ArmillaryError, UsageError

_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def library() -> ModuleType:
    """The package ``llguidance``; raises UsageError with the command that installs it."""
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise UsageError("needs the package llguidance: pip install 'armillary[serve]'") from error


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of the JSON values of ``schema``."""
    found: str = library().LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_FORM)
    return found


def call_grammar(tools: Sequence[Mapping[str, Any]], marks: tuple[str, str]) -> str:
    """The grammar of one call of one of ``tools``, on a line between the two ``marks``."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": tool["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    schema = {"anyOf": calls, "x-guidance": _FORM}
    begin, end = (json.dumps(mark) for mark in (f"{marks[0]}\n", f"\n{marks[1]}"))
    found: str = library().LLMatcher.grammar_from_lark(f"start: {begin} call {end}\ncall: %json {json.dumps(schema)}")
    return found


class Guide:
    """The state of one answer inside its grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def copy(self) -> Guide:
        """The same state, for another answer."""
        return Guide(self._matcher.deep_copy())

    def allowed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """``logits`` [vocab_size] with minus infinity for tokens that cannot follow.

        Raises:
            ArmillaryError: the grammar became too complex, or allows no token.
        """
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        inside = np.unpackbits(mask, bitorder="little", count=len(logits)).astype(bool)
        if self._matcher.is_error() or not inside.any():
            raise ArmillaryError(f"the grammar of the answer allows no token ({self._matcher.get_error() or 'at all'})")
        return np.where(inside, logits, np.float32(-np.inf))

    def advance(self, token: int) -> bool:
        """Take the next token; returns whether the answer is complete, so that nothing can follow."""
        self._matcher.consume_token(token)
        stopped: bool = self._matcher.is_stopped()
        return stopped


class Guides:
    """Compiles grammars over the tokens of ``text``, for logits of ``size`` tokens."""

    def __init__(self, text: ModelText, size: int) -> None:
        self._text, self._size = text, size

    @functools.cached_property
    def _tokens(self) -> Any:
        tokens = library().TokenizerWrapper(_Tokens(self._text, self._size))
        return library().LLTokenizer(tokens, eos_token=[*self._text.ends] or None)

    def compile(self, grammar: str) -> Guide:
        """The state at the beginning of ``grammar``.

        Raises:
            UsageError: it is not a grammar, or has a feature that is not supported.
        """
        matcher = library().LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise UsageError(" ".join(str(matcher.get_error()).split())[:300])
        return Guide(matcher)


class _Tokens:
    """The vocabulary in the form that ``llguidance`` reads; the last token, which no model has, ends an answer of a
    model without end tokens."""

    def __init__(self, text: ModelText, size: int) -> None:
        self._text = text
        self.tokens = [*(text.spell(number) for number in range(size)), b""]
        self.special_token_ids = [number for number in text.specials if number < size]
        self.bos_token_id = None
        self.eos_token_id = size

    def __call__(self, text: bytes) -> list[int]:
        return self._text.encode(text.decode(errors="replace"), False)

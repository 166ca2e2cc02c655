"""The audit's extractors: the answer that a human reader would take, independent of lm_eval's patterns.

There is one extractor per kind of answer. If it differs from the task's extractor, one of the two is wrong, and the
audit lists the item. The rate of disagreement bounds the effect of extraction on the score.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

_NUMBER = re.compile(r"[-−]?\$?\d[\d,]*(?:\.\d+)?|[-−]?\$?\.\d+")
# "The answer is 5", "final answer: **5**", "#### 5", "答案是5", "答案：5".
_SAID = re.compile(r"(?:answer(?:\s+is|\s*:)|####|=\s*\\boxed|答案(?:是|为|：|:))\s*:?\s*(.+)", re.IGNORECASE)
_OPTION = re.compile(r"\([A-Z]\)")
_LETTER = re.compile(r"^\W*([A-Z])\b")
_WORDS = re.compile(r"\b(true|false|yes|no|valid|invalid|plausible|implausible)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Extractor:
    """How an answer is read from raw text, and when two answers are the same.

    Attributes:
        name: enters the hash of the settings.
        read: returns the answer in a text, or None; the correct answer is given only for its form.
        same: whether two answers, neither of them None, are the same.
    """

    name: str
    read: Callable[[str, Any], str | None]
    same: Callable[[str, str], bool]

    def agree(self, first: Any, second: str | None) -> bool:
        """Whether two extractors found the same answer; "[invalid]" is lm_eval's mark for no answer."""
        first = None if first in (None, "", "[invalid]", "[invalidanswer]") else str(first)
        if first is None or second is None:
            return first is second
        return self.same(first, second)


def _number(text: str, gold: Any) -> str | None:
    """The number after the last "answer is", else the last number."""
    matches = _SAID.findall(text)
    for place in [*reversed(matches), text]:
        found = _NUMBER.findall(place)
        if found:
            return _plain_number(found[0] if place is not text else found[-1])
    return None


def _plain_number(text: str) -> str:
    return text.replace("−", "-").replace("$", "").replace(",", "").rstrip(".")


def _same_number(first: str, second: str) -> bool:
    try:
        return Decimal(_plain_number(first.strip())) == Decimal(_plain_number(second.strip()))
    except InvalidOperation:
        return first.strip() == second.strip()


def _short(text: str, gold: Any) -> str | None:
    """An answer of BIG-Bench Hard in the form of the correct one: an option, a truth value, a number, or words."""
    gold = str(gold).strip()
    if _NUMBER.fullmatch(gold):
        return _number(text, gold)
    matches = _SAID.findall(text)
    last = matches[-1] if matches else ""
    for form, bare in ((_OPTION, _LETTER), (_WORDS, _WORDS)):
        if form.fullmatch(gold):
            # The first match after "the answer is"; otherwise the last one in the text.
            found = form.findall(last)[:1] or bare.findall(last)[:1] or form.findall(text)[-1:]
            return str(found[0]) if found else None
    words = (last or text.strip().split("\n")[-1]).strip().rstrip(".").strip("*\"'` ")
    return words or None


def _same_words(first: str, second: str) -> bool:
    def plain(text: str) -> str:
        return re.sub(r"[\s.*\"'`()]+", " ", text).strip().casefold()

    return plain(first) == plain(second)


def _math(text: str, gold: Any) -> str | None:
    """The content of the last ``\\boxed{}``, else the text after the last "answer is", else the last formula."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth, begin = 0, start + len("\\boxed")
        for place in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[begin + 1 : place].strip() or None
    if matches := _SAID.findall(text):
        return _formula(matches[-1]) or None
    formulas = re.findall(r"\$([^$]+)\$", text)
    return formulas[-1].strip() if formulas else None


def _formula(text: str) -> str:
    inside = re.search(r"\$([^$]+)\$", text)
    return (inside[1] if inside else re.split(r"\.\s|\.$|\n|I hope", text)[0]).strip()


def _same_formula(first: str, second: str) -> bool:
    def plain(text: str) -> str:
        text = re.sub(r"\\(?:left|right|,|;|!|\s)|\\text\{\s*(?:and)?\s*\}|[\s${}]|\\d?frac|\\%|%", "", text)
        return text.rstrip(".").casefold()

    return plain(first) == plain(second) or _same_number(first, second)


def _code(text: str, gold: Any) -> str | None:
    """The longest part of the text, or of its fenced blocks, that is a Python program."""
    blocks = re.findall(r"```(?:\w+)?\n(.*?)(?:```|\Z)", text, re.DOTALL) or [text]
    for block in sorted(blocks, key=len, reverse=True):
        lines = block.split("\n")
        for end in range(len(lines), 0, -1):
            program = "\n".join(lines[:end])
            if _parsed(program):
                return program
    return None


def _parsed(program: str) -> str | None:
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return ast.dump(tree) if tree.body else None


def _same_code(first: str, second: str) -> bool:
    return first.strip() == second.strip() or (_parsed(first) is not None and _parsed(first) == _parsed(second))


NUMBER = Extractor("last-number-1", _number, _same_number)
SHORT = Extractor("short-answer-1", _short, _same_words)
MATH = Extractor("boxed-or-said-1", _math, _same_formula)
CODE = Extractor("longest-program-1", _code, _same_code)

# By lm_eval's name of the data set. Choices by likelihood and IFEval have no answer text to extract.
SECOND: dict[str, Extractor] = {
    "openai/gsm8k": NUMBER,
    "SaylorTwift/bbh": SHORT,
    "HuggingFaceH4/MATH-500": MATH,
    "openai/openai_humaneval": CODE,
    "google-research-datasets/mbpp": CODE,
}

"""The ``tokenizer.json`` of a vocabulary: of SentencePiece's byte-pair encoding, and the parts that every one has.

A folder with a ``tokenizer.model`` alone, such as a release of TeleChat2, is read through it: ``tokenizers`` then gives
the tokens of SentencePiece for every text. Models that this does not hold for are refused by name
(``sentencepiece.py``).

Trade-off: control pieces in a text, such as ``<_user>``, are read as their tokens, as chat templates need it and as
``transformers`` does. SentencePiece alone would spell them out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from armillary.model.weights.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER,
    Vocabulary,
    begin_of,
    of_folder,
)
from armillary.recipe import UsageError

_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def tokenizer_text(folder: Path) -> str | None:
    """The text of the ``tokenizer.json`` in a folder, or of one made of its ``tokenizer.model``; None without both.

    Raises:
        UsageError: it cannot be read, or ``tokenizers`` would give other tokens than SentencePiece.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read as a tokenizer ({error}); fetch the folder again") from error
    return model_text(folder) if (folder / "tokenizer.model").is_file() else None


def read_tokenizer(path: Path, text: str) -> Tokenizer:
    """The tokenizer of the ``tokenizer.json`` with this ``text``; ``path`` is for messages.

    Raises:
        UsageError: it is not one.
    """
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises a plain Exception
        raise UsageError(f"{path}: its tokenizer cannot be read ({error}); fetch the model again") from error


def model_text(folder: Path) -> str:
    """The text of a ``tokenizer.json`` with the tokens of the ``tokenizer.model`` in ``folder``; raises UsageError."""
    path = folder / "tokenizer.model"
    vocabulary = of_folder(folder)
    try:
        return as_text(complete(sentencepiece_document(path, vocabulary), vocabulary, begin_of(folder, vocabulary)))
    except ValueError as error:
        raise UsageError(f"{path}: cannot be written as tokenizer.json ({error})") from error


def sentencepiece_document(path: Path, vocabulary: Vocabulary) -> dict[str, Any]:
    """The document of a byte-pair encoding by scores; ``path`` is for messages.

    Raises:
        UsageError: the order of merges is not known, because several pieces have one score.
        ValueError: pieces that contradict each other.
    """
    tokens, scores, kinds = vocabulary.pieces, vocabulary.scores, vocabulary.kinds
    whole = {token for token, kind in zip(tokens, kinds, strict=True) if kind == NORMAL}
    merges: list[list[str]] = []
    last: float | None = None
    for number in sorted(range(len(tokens)), key=lambda number: (-scores[number], number)):
        piece = tokens[number]
        if kinds[number] != NORMAL:
            continue
        pairs = [[piece[:at], piece[at:]] for at in range(1, len(piece))]
        pairs = [pair for pair in pairs if pair[0] in whole and pair[1] in whole]
        if pairs and scores[number] == last:
            raise UsageError(
                f"{path}: several pieces of its tokenizer have the score {last}, such as {piece!r}, so their order is "
                "not known"
            )
        if pairs:
            last = scores[number]
        merges += pairs
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None)
    prefix = vocabulary.space_prefix
    first = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        **empty_document(),
        "normalizer": {"type": "Sequence", "normalizers": [*first, _REPLACE]},
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            **pair_model(tokens, kinds, merges),
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def pair_model(tokens: Sequence[str], kinds: Sequence[int], merges: list[list[str]]) -> dict[str, Any]:
    """The ``model`` of a byte-pair encoding; raises ValueError for pieces that contradict each other."""
    # Special tokens are in the vocabulary too: a missing one would get the next free number, not its own.
    vocabulary = {token: number for number, token in enumerate(tokens) if kinds[number] != UNUSED}
    if len(vocabulary) != sum(kind != UNUSED for kind in kinds):
        raise ValueError("a token occurs twice")
    known = vocabulary.keys()
    if lacking := [pair for pair in merges if not {*pair, "".join(pair)} <= known]:
        raise ValueError(f"merge {' '.join(lacking[0])!r} of tokens that it lacks")
    if BYTE in kinds and kinds.count(BYTE) != 256:
        raise ValueError(f"{kinds.count(BYTE)} single-byte tokens, not 256")
    return {
        **{"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None},
        **{"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False},
        **{"vocab": vocabulary, "merges": merges},
    }


def complete(document: dict[str, Any], vocabulary: Vocabulary, begin: int | None) -> dict[str, Any]:
    """``document`` with the special tokens of ``vocabulary``; token ``begin`` starts every text."""
    tokens, kinds = vocabulary.pieces, vocabulary.kinds
    added = [
        {
            **{"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False},
            **{"normalized": False, "special": kinds[number] != USER},
        }
        for number, token in enumerate(tokens)
        if kinds[number] in (CONTROL, USER, UNKNOWN)
    ]
    return {
        **document,
        "added_tokens": added,
        "post_processor": None if begin is None else _begin(tokens[begin], begin),
    }


def empty_document() -> dict[str, Any]:
    """All keys of a ``tokenizer.json`` without content."""
    return {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None},
        **{"pre_tokenizer": None, "post_processor": None, "decoder": None},
    }


def _begin(token: str, number: int) -> dict[str, Any]:
    """The step that puts ``token`` before every text."""
    mark, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [mark, text],
        "pair": [mark, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def as_text(document: dict[str, Any]) -> str:
    """A document as it is written to a file."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

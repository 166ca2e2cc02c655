"""Vocabularies of SentencePiece with byte fallback, as Llama 2, Mistral 7B and TeleChat2 have.

For GGUF files: llama.cpp merges the neighbours whose joined piece has the highest score. This equals SentencePiece's
BPE, and the byte-pair encoding of a ``tokenizer.json`` whose merges are all the ways to split each piece, piece by
piece. Anything else would give other tokens without an error, so it is refused: Unigram models (llama.cpp has no byte
fallback for them), text that is normalized, and merges that lack a way to split a piece.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.recipe import UsageError, model_json

SPACE = "▁"
# The types of pieces, with the same numbers in SentencePiece and GGUF.
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
_BYTES = [f"<0x{i:02X}>" for i in range(256)]
_BPE = 2  # TrainerSpec.model_type
_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by number with score and type, and whether a text begins with an added space."""

    pieces: list[str]
    scores: list[float]
    kinds: list[int]
    space_prefix: bool


def of_document(path: Path, document: Mapping[str, Any], size: int) -> Vocabulary:
    """The vocabulary of a ``tokenizer.json`` with byte fallback, filled up to ``size`` pieces.

    Raises:
        UsageError: llama.cpp would split some text in another way; the message names the reason.
    """
    model = document["model"]
    vocabulary: dict[str, int] = dict(model["vocab"])
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    added = {token["content"]: (token["id"], bool(token["special"])) for token in document.get("added_tokens") or []}
    prefix = _prefix(document)
    reason = None
    if prefix is None:
        reason = f"its normalizer or pre_tokenizer differs from SentencePiece's ({_shown(document)})"
    elif model.get("dropout") or model.get("ignore_merges") or model.get("end_of_word_suffix"):
        reason = "it has dropout, ignore_merges or end_of_word_suffix"
    elif lacking := [name for name in _BYTES if name not in vocabulary]:
        reason = f"it lacks the piece {lacking[0]}"
    ranks: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, []).append(rank)
    reason = reason or _other_order(vocabulary, set(merges), ranks, added.keys() | set(_BYTES))
    if reason is not None:
        raise UsageError(f"{path}: llama.cpp would produce different tokens: {reason}")
    found = _empty(size, bool(prefix))
    for piece, number in vocabulary.items():
        kind = BYTE if piece in _BYTES else NORMAL
        _put(path, found, number, piece, -float(ranks[piece][0]) if piece in ranks else -float(len(merges)), kind)
    for piece, (number, special) in added.items():
        unknown = piece == model.get("unk_token")
        _put(path, found, number, piece, 0.0, UNKNOWN if unknown else CONTROL if special else USER)
    return found


def of_folder(folder: Path, size: int | None = None) -> Vocabulary:
    """The vocabulary of the ``tokenizer.model`` in a folder and the tokens that other files add, filled up to ``size``.

    ``added_tokens_decoder`` of ``tokenizer_config.json`` and ``added_tokens.json`` add tokens.

    Raises:
        UsageError: as ``of_model``, or an added token cannot be read or has no place in ``size`` pieces.
    """
    path = folder / "tokenizer.model"
    found, added = of_model(path, size), _added(folder)
    if size is None:
        missing = max((number + 1 - len(found.pieces) for number in added), default=0)
        more = _empty(missing, False, len(found.pieces))
        found.pieces.extend(more.pieces)
        found.scores.extend(more.scores)
        found.kinds.extend(more.kinds)
    for number, (token, special) in added.items():
        if number < len(found.kinds) and found.kinds[number] == UNKNOWN and found.pieces[number] == token:
            continue
        _put(path, found, number, token, 0.0, CONTROL if special else USER)
    return found


def begin_of(folder: Path, vocabulary: Vocabulary) -> int | None:
    """The token that ``tokenizer_config.json`` puts before every text; None if it puts none there.

    Raises:
        UsageError: it cannot be read, names a token that ``vocabulary`` lacks, or also puts one after every text.
    """
    config = tokenizer_config(folder)
    if config.get("add_eos_token"):
        raise UsageError(f"{folder / _CONFIG}: add_eos_token is true, which is not supported; set it to false")
    token = config.get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if not config.get("add_bos_token") or token is None:
        return None
    if token not in vocabulary.pieces:
        raise UsageError(f"{folder / _CONFIG}: bos_token is {token!r}, but the tokenizer has no such token")
    return vocabulary.pieces.index(token)


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """The ``tokenizer_config.json`` of a folder, empty without one; raises UsageError if it cannot be read."""
    return model_json(folder / _CONFIG)


def _added(folder: Path) -> dict[int, tuple[str, bool]]:
    """The tokens that the files beside a ``tokenizer.model`` add, and whether they are special, by number."""
    try:
        listed = model_json(folder / "added_tokens.json")
        found = {int(number): (str(token), False) for token, number in listed.items()}
        for number, about in (tokenizer_config(folder).get("added_tokens_decoder") or {}).items():
            found[int(number)] = str(about["content"]), bool(about.get("special"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder}: its added tokens cannot be read ({error!r}); fetch the folder again") from error
    if (least := min(found, default=0)) < 0:
        raise UsageError(f"{folder}: an added token has the number {least}; fetch the folder again")
    return found


def of_model(path: Path, size: int | None = None) -> Vocabulary:
    """The vocabulary of a ``tokenizer.model``, filled up to ``size`` pieces.

    Raises:
        UsageError: the file cannot be read, or as ``of_document``.
    """
    try:
        data = path.read_bytes()
        rows: list[dict[int, Any]] = []
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                rows.append(dict(_fields(value)))
            elif number in (2, 3) and isinstance(value, bytes):
                (trainer if number == 2 else normalizer).update(dict(_fields(value)))
        pieces = [row[1].decode("utf-8") for row in rows]
        scores = [struct.unpack("<f", row.get(2, bytes(4)))[0] for row in rows]
        kinds = [int(row.get(3, NORMAL)) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UsageError(f"{path}: cannot be read as a SentencePiece model ({error!r})") from error
    if trainer.get(3, 1) != _BPE:
        reason = "it is not a byte-pair encoding, and llama.cpp has no byte fallback for Unigram models"
    elif not trainer.get(35, 0) or not set(_BYTES) <= set(pieces):
        reason = "it has no byte fallback"
    elif normalizer.get(2) or normalizer.get(4, 1):
        reason = "it normalizes text or removes repeated spaces"
    else:
        found = _empty(len(pieces) if size is None else size, bool(normalizer.get(3, 1)))
        for number, (piece, score, kind) in enumerate(zip(pieces, scores, kinds, strict=True)):
            _put(path, found, number, piece, score, kind)
        return found
    raise UsageError(f"{path}: llama.cpp would produce different tokens: {reason}")


def _empty(size: int, space_prefix: bool, first: int = 0) -> Vocabulary:
    """``size`` unused pieces, with numbers from ``first``."""
    return Vocabulary([f"[PAD{first + i}]" for i in range(size)], [0.0] * size, [UNUSED] * size, space_prefix)


def _put(path: Path, found: Vocabulary, number: int, piece: str, score: float, kind: int) -> None:
    if number >= len(found.pieces):
        raise UsageError(
            f"{path}: has token {number}, but the model has only {len(found.pieces)} tokens; give the tokenizer of "
            "the model"
        )
    found.pieces[number], found.scores[number], found.kinds[number] = piece, score, kind


def _prefix(document: Mapping[str, Any]) -> bool | None:
    """Whether a text begins with an added space; None if it is prepared in another way than SentencePiece does."""
    normalizer, pre = document.get("normalizer"), document.get("pre_tokenizer")
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if pre is None and steps == [{"type": "Prepend", "prepend": SPACE}, replace]:
        return True
    if pre is None and steps == [replace]:
        return False
    if not steps and pre is not None and pre.get("type") == "Metaspace" and pre.get("replacement") == SPACE:
        # the other schemes add no space to a text that begins with one, and llama.cpp does
        return False if pre.get("prepend_scheme") == "never" and pre.get("split", True) is False else None
    return None


def _other_order(
    vocabulary: Mapping[str, int], merges: set[tuple[str, ...]], ranks: Mapping[str, list[int]], apart: set[str]
) -> str | None:
    """Why merging by the score of a piece differs from merging by the rank of a pair; None if it does not."""
    for piece in vocabulary:
        if len(piece) < 2 or piece in apart:
            continue
        for at in range(1, len(piece)):
            pair = piece[:at], piece[at:]
            if pair[0] in vocabulary and pair[1] in vocabulary and pair not in merges:
                return f"its merges lack {pair[0]!r} with {pair[1]!r}, which llama.cpp would join"
    last = -1
    for piece, found in sorted(ranks.items(), key=lambda row: row[1][0]):
        if found[0] < last:
            return f"its merges to {piece!r} are not together"
        last = found[-1]
    return None


def _shown(document: Mapping[str, Any]) -> str:
    return json.dumps([document.get("normalizer"), document.get("pre_tokenizer")], ensure_ascii=False)[:200]


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a protobuf message; 4 and 8 bytes of fixed size stay bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at] if at < len(data) else -1
            if byte < 0 or shift > 63:
                raise ValueError(f"a number is cut off at byte {at}")
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        key = varint()
        wire = key & 7
        if wire == 0:
            yield key >> 3, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"field of kind {wire} at byte {at}")
        length = {1: 8, 5: 4}.get(wire) or varint()
        if at + length > len(data):
            raise ValueError(f"field {key >> 3} is cut off at byte {at}")
        yield key >> 3, data[at : at + length]
        at += length

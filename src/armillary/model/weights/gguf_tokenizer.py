"""The tokenizer inside a GGUF file, as the files of a Hugging Face folder.

Supports the pre-tokenizers that ``gguf.py`` writes: four of byte-level encodings, and SentencePiece's byte-pair
encoding. For these, ``tokenizers`` gives the same tokens as llama.cpp for every text. Text is not normalized,
because llama.cpp does not normalize it either. Any other pre-tokenizer is refused by name, since a similar one
would silently give other tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armillary.model.weights.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER
from armillary.recipe import DamagedFileError, UsageError

_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_ROLES = ("bos", "eos", "unknown", "padding")
_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def tokenizer_files(
    path: Path, values: Mapping[str, Any], splits: Mapping[str, list[dict[str, Any]]]
) -> dict[str, str]:
    """The text of each file by its name.

    Args:
        path: the GGUF file, for messages.
        values: its fields under ``tokenizer``, such as ``ggml.tokens``.
        splits: the steps of ``pre_tokenizer`` for each of llama.cpp's names.

    Raises:
        UsageError: the file has no tokenizer, or one of an unsupported kind.
        DamagedFileError: its lists contradict each other, such as by different lengths.
    """
    kind = values.get("ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UsageError(f"{path}: its tokenizer is of the kind {kind!r}; supported are gpt2 and llama")
    try:
        tokens = [str(token) for token in values["ggml.tokens"]]
        kinds = [int(number) for number in values.get("ggml.token_type", [NORMAL] * len(tokens))]
        if len(kinds) != len(tokens):
            raise ValueError(f"{len(tokens)} tokens and {len(kinds)} types")
        special = {role: int(values[f"ggml.{role}_token_id"]) for role in _ROLES if f"ggml.{role}_token_id" in values}
        if outside := [(role, number) for role, number in special.items() if not 0 <= number < len(tokens)]:
            role, number = outside[0]
            raise ValueError(f"ggml.{role}_token_id is {number}, and there are {len(tokens)} tokens")
        if kind == "gpt2":
            document = _byte_level(path, values, tokens, kinds, splits)
        else:
            document = _sentencepiece(path, values, tokens, kinds)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path}: its tokenizer cannot be read ({error}); fetch it again") from error
    begins = bool(values.get("ggml.add_bos_token", kind == "llama")) and "bos" in special
    document["added_tokens"] = [
        {
            **{"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False},
            **{"normalized": False, "special": kinds[number] != USER},
        }
        for number, token in enumerate(tokens)
        if kinds[number] in (CONTROL, USER, UNKNOWN)
    ]
    document["post_processor"] = _begin(tokens[special["bos"]], special["bos"]) if begins else None
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": begins,
        **{_NAMES[role]: tokens[number] for role, number in special.items()},
    }
    found = {"tokenizer.json": _text(document)}
    template = values.get("chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
        found["chat_template.jinja"] = template
    return {**found, "tokenizer_config.json": _text(config)}


def _byte_level(
    path: Path,
    values: Mapping[str, Any],
    tokens: list[str],
    kinds: list[int],
    splits: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    name = values.get("ggml.pre", "default")
    if name not in splits:
        raise UsageError(f"{path}: its tokenizer splits text as {name!r}; supported are {', '.join(splits)}")
    merges = [str(merge).split(" ") for merge in values["ggml.merges"]]
    if wrong := [merge for merge in merges if len(merge) != 2]:
        raise ValueError(f"merge {' '.join(wrong[0])!r} has {len(wrong[0])} parts, not 2")
    model = _model(tokens, kinds, merges)
    return {
        **_empty(),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits[name]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {**model, "ignore_merges": name == "llama-bpe"},
    }


def _sentencepiece(path: Path, values: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    if values.get("ggml.remove_extra_whitespaces"):
        raise UsageError(f"{path}: its tokenizer removes repeated spaces, which is not supported")
    scores = [float(score) for score in values["ggml.scores"]]
    if len(scores) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens and {len(scores)} scores")
    prefix = bool(values.get("ggml.add_space_prefix", True))
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
    first = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        **_empty(),
        "normalizer": {"type": "Sequence", "normalizers": [*first, _REPLACE]},
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {**_model(tokens, kinds, merges), "unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
    }


def _model(tokens: list[str], kinds: list[int], merges: list[list[str]]) -> dict[str, Any]:
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


def _empty() -> dict[str, Any]:
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


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

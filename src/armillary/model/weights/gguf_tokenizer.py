"""The tokenizer inside a GGUF file, as the files of a Hugging Face folder.

Supports the pre-tokenizers that ``gguf.py`` writes: four of byte-level encodings, and SentencePiece's byte-pair
encoding. For these, ``tokenizers`` gives the same tokens as llama.cpp for every text. Text is not normalized,
because llama.cpp does not normalize it either. Any other pre-tokenizer is refused by name, since a similar one
would silently give other tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armillary.model.weights.sentencepiece import NORMAL, Vocabulary
from armillary.model.weights.tokenizer_json import (
    as_text,
    complete,
    empty_document,
    pair_model,
    sentencepiece_document,
)
from armillary.recipe import DamagedFileError, UsageError

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
    document = complete(document, Vocabulary(tokens, [], kinds, False), special["bos"] if begins else None)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": begins,
        **{_NAMES[role]: tokens[number] for role, number in special.items()},
    }
    found = {"tokenizer.json": as_text(document)}
    template = values.get("chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
        found["chat_template.jinja"] = template
    return {**found, "tokenizer_config.json": as_text(config)}


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
    model = pair_model(tokens, kinds, merges)
    return {
        **empty_document(),
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
    return sentencepiece_document(path, Vocabulary(tokens, scores, kinds, prefix))

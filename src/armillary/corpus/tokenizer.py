"""Byte-level BPE on the corpus, or a tokenizer given as ``tokenizer.json``; and how many bytes a token stands for.

Byte-level BPE (Radford et al. 2019, GPT-2) covers all 256 bytes, so decoding restores any text exactly. Training is
deterministic: so is the sample, and the library breaks ties between merges by the ids of the pair.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from armillary.recipe import UsageError

END_OF_TEXT = "<|endoftext|>"
# Names of ends without the signs around and between their words: <|end_of_text|>, </s>, <eos>, <|im_end|>, ...
END_NAMES = {
    "endoftext", "/s", "eos", "eot", "eod", "endofsentence", "endofdocument", "endofsequence",
    "imend", "eotid", "eomid", "endofturn", "endofmessage", "end",
}  # fmt: skip
_NOT_NAME = re.compile(r"[^a-z0-9/]")
SHOWN = 12  # special tokens listed in a message
BATCH = 64


def train_bpe(texts: Iterable[str], vocab_size: int) -> str:
    """``tokenizer.json`` of a byte-level BPE of at most ``vocab_size`` tokens, end of text among them.

    A small text may end with fewer: every pair must occur twice to be merged.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def read_tokenizer_file(path: Path, end: str | None = None) -> tuple[str, str]:
    """The text of a ``tokenizer.json``, and its token that ends a text.

    That token is ``end`` (the recipe's ``tokenizer.end``) if given; else the ``eos_token`` of ``tokenizer_config.json``
    or ``special_tokens_map.json`` beside the file; else the only id in ``eos_token_id`` of ``generation_config.json``
    or ``config.json``; else the only special token with the name of an end. It is always a special token: an ordinary
    one, such as ``</s>`` in Gemma's vocabulary, is what a text contains.

    Raises:
        UsageError: a file cannot be read, is not a tokenizer, or has no such token or several.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"tokenizer {path}: cannot be read ({error}); give the path of a tokenizer.json") from error
    try:
        tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise UsageError(f"tokenizer {path}: not a Hugging Face tokenizer.json ({error})") from error
    if end is None:
        declared = _end_in_configs(path, text)
        return text, find_end(text, declared[1], f"tokenizer {path}", declared[0]) if declared else find_end(
            text, None, f"tokenizer {path}"
        )
    return text, find_end(text, end, f"tokenizer {path}", "tokenizer.end")


def _end_in_configs(path: Path, text: str) -> tuple[str, str] | None:
    """The place in the files beside a tokenizer that names its end token, and the token; None without one."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _config(path.with_name(name)).get("eos_token")
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            return f"eos_token of {name}", content
    added = {token["id"]: token["content"] for token in json.loads(text).get("added_tokens", [])}
    for name in ("generation_config.json", "config.json"):
        ids = _config(path.with_name(name)).get("eos_token_id")
        if isinstance(ids, list) and len(ids) == 1:
            ids = ids[0]
        if isinstance(ids, int) and ids in added:
            return f"eos_token_id of {name}", str(added[ids])
    return None


def _config(path: Path) -> dict[str, Any]:
    """A configuration beside a tokenizer; empty if there is none.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error}); repair it, or remove it and name the end-of-text token with the key "
            "tokenizer.end"
        ) from error
    return config if isinstance(config, dict) else {}


def find_end(tokenizer_json: str, end: str | None, where: str, said_by: str = "") -> str:
    """The special token that ends a text: ``end``, or with None the only one with the name of an end.

    Raises:
        UsageError: ``end`` (which ``said_by`` names) is not a special token; none has such a name, or several have.
    """
    added = json.loads(tokenizer_json).get("added_tokens") or []
    special = [str(token["content"]) for token in added if token["special"]]
    ask = "name the end-of-text token with the key tokenizer.end"
    listed = (
        f"special tokens: {', '.join(special[:SHOWN])}{', ...' * (len(special) > SHOWN)}"
        if special
        else "it has no special token"
    )
    if end is not None:
        if end in special:
            return end
        kind = (
            "an ordinary token, which any text may contain"
            if any(t["content"] == end for t in added)
            else "not a token"
        )
        raise UsageError(
            f"{where}: {end!r} ({said_by}) is {kind}, but the end-of-text token must be a special token; {ask}; "
            f"{listed}"
        )
    ends = [token for token in special if _NOT_NAME.sub("", token.lower()) in END_NAMES]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UsageError(f"{where}: several special tokens could be the end-of-text token: {', '.join(ends)}; {ask}")
    raise UsageError(f"{where}: no special token has a known name for the end of a text; {ask}; {listed}")


class Encoder:
    """Turns documents into token ids, each document ended by the end-of-text token.

    ``end`` is that token; without it the tokenizer must have one special token with the name of an end.
    """

    def __init__(self, tokenizer_json: str, end: str | None = None) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "<|endoftext|>" in a document is plain text, not the end.
        self._tokenizer.encode_special_tokens = True
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.end = find_end(tokenizer_json, None, "tokenizer") if end is None else end
        self.end_id = vocabulary[self.end]
        # Ids may have gaps, so the largest decides.
        self.vocab_size = max(vocabulary.values()) + 1
        self.dtype: Literal["uint16", "uint32"] = "uint16" if self.vocab_size <= 1 << 16 else "uint32"
        self._byte_table = _byte_table(json.loads(tokenizer_json), vocabulary)

    def encode(self, texts: list[str]) -> Iterator[list[int]]:
        """For each document its token ids and the end-of-text id."""
        # In batches, because the library's encodings take some hundred bytes per token.
        for start in range(0, len(texts), BATCH):
            for encoding in self._tokenizer.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False):
                yield [*encoding.ids, self.end_id]

    def encode_with_bytes(self, text: str) -> tuple[list[int], NDArray[np.uint32]]:
        """The ids of one document, and for each the number of UTF-8 bytes of ``text`` it stands for; the sum is exact.

        The tokens of a byte-level tokenizer spell their bytes. If these do not add up to the text (another kind of
        tokenizer, or one that normalises characters), a token gets the bytes from its start in the text to the start of
        the next token. End of text gets 0.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        sizes = self._byte_table[ids] if self._byte_table is not None else np.zeros(len(ids), dtype=np.uint32)
        if ids and sizes.sum() != len(text.encode()):
            before = np.zeros(len(text) + 1, dtype=np.int64)
            np.cumsum([len(character.encode()) for character in text], out=before[1:])
            starts = np.maximum.accumulate(before[[0, *(start for start, _ in encoding.offsets[1:])]])
            sizes = np.diff(starts, append=before[-1]).astype(np.uint32)
        return [*ids, self.end_id], np.append(sizes, np.uint32(0))


def _byte_table(definition: dict[str, Any], vocabulary: dict[str, int]) -> NDArray[np.uint32] | None:
    """Bytes per token id of a byte-level tokenizer; None where tokens do not spell bytes."""
    decoder = definition.get("decoder") or {}
    if decoder.get("type") != "ByteLevel":
        return None
    table = np.zeros(max(vocabulary.values()) + 1, dtype=np.uint32)
    added = {token["content"]: token for token in definition.get("added_tokens", [])}
    for token, index in vocabulary.items():
        # In the byte-level alphabet one character stands for one byte; added tokens are written as they are.
        if token not in added:
            table[index] = len(token)
        elif not added[token]["special"]:
            table[index] = len(token.encode())
    return table

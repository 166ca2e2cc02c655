"""Byte-level BPE on the corpus, or a tokenizer given as ``tokenizer.json``; and how many bytes a token stands for.

Byte-level BPE (Radford et al. 2019, GPT-2) knows all 256 bytes, so any text comes back exactly. Training is
deterministic: the sample is, and the library breaks ties between merges by the ids of the pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from armillary.recipe import UsageError

END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|im_end|>")
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


def read_tokenizer_file(path: Path) -> str:
    """The text of a ``tokenizer.json``.

    Raises:
        UsageError: it cannot be read, is no tokenizer, or has no token that ends a text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"tokenizer {path}: cannot be read ({error}); give the path of a tokenizer.json") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise UsageError(f"tokenizer {path}: not a Hugging Face tokenizer.json ({error})") from error
    if not any(tokenizer.token_to_id(token) is not None for token in KNOWN_ENDS):
        raise UsageError(f"tokenizer {path}: no token that ends a text; it needs one of {', '.join(KNOWN_ENDS)}")
    return text


class Encoder:
    """Turns documents into token ids, each document ended by the end-of-text token."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A document that speaks of "<|endoftext|>" means the words, not the end.
        self._tokenizer.encode_special_tokens = True
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.end = next(token for token in KNOWN_ENDS if token in vocabulary)
        self.end_id = vocabulary[self.end]
        # Ids may have gaps, so the largest decides.
        self.vocab_size = max(vocabulary.values()) + 1
        self.dtype = "uint16" if self.vocab_size <= 1 << 16 else "uint32"
        self._byte_table = _byte_table(json.loads(tokenizer_json), vocabulary)

    def encode(self, texts: list[str]) -> Iterator[list[int]]:
        """For each document its token ids and the end-of-text id."""
        # In batches, because the library's encodings take some hundred bytes per token.
        for start in range(0, len(texts), BATCH):
            for encoding in self._tokenizer.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False):
                yield [*encoding.ids, self.end_id]

    def encode_with_bytes(self, text: str) -> tuple[list[int], NDArray[np.uint32]]:
        """Of one document the same ids, and for each how many UTF-8 bytes of ``text`` it stands for; they sum to all.

        The tokens of a byte-level tokenizer spell their bytes. Where they do not add up to the text (another kind of
        tokenizer, or one that changes characters first) a token gets the bytes from where in the text it begins to
        where the next one does. End of text gets 0.
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

"""The corpus on disk: token shards, their manifest, and the views that a run needs.

A corpus is a folder named by its content hash::

    manifest.json            what every domain is, how much of it there is, sha256 of every file
    tokenizer.json           Hugging Face format
    train/DOMAIN.bin         token ids of all training documents, raw little-endian uint16 or uint32
    validation/DOMAIN.bin    the same for validation
    validation/DOMAIN.bytes  uint32 per validation token: how many bytes of the text it stands for

Shards are memory-mapped, so that many runs on one machine share one copy. Nothing in the folder is executable or
unpickled. Opening compares every file with its checksum in the manifest, once per copy (``verify.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
from numpy.typing import NDArray

from armillary.corpus.manifest import Manifest, read_manifest, shard_paths
from armillary.corpus.permutation import keyed_hash, permute
from armillary.corpus.stamp import check_files
from armillary.recipe import UsageError


@dataclass(frozen=True)
class ValidationSet:
    """Windows of validation text: ``tokens`` int64 [n, context_length + 1]; ``bytes`` of the text of tokens[:, 1:]."""

    tokens: NDArray[np.int64]
    bytes: int


def window_count(tokens: int, context_length: int) -> int:
    """Windows of ``context_length + 1`` tokens that cover ``tokens`` tokens, each overlapping the last by one.

    Every token but the first is predicted; the last window is shifted back to end with the text.
    """
    return -(-(tokens - 1) // context_length) if tokens > context_length else 0


class Corpus:
    """An opened corpus. ``Corpus.open(path)`` is the way to get one."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.hash = manifest.hash
        self.domains: tuple[str, ...] = tuple(manifest.domains)
        self.training_domains: tuple[str, ...] = tuple(n for n, d in manifest.domains.items() if d.train)
        self.vocab_size = manifest.vocab_size
        self.tokenizer_file = path / manifest.tokenizer.path

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a corpus folder, and compare its files with the manifest if this copy has not been compared before.

        Raises:
            DamagedFileError: the manifest is missing or damaged, or a file is missing or changed.
            ForeignFileError: a corpus of a newer format.
        """
        manifest = read_manifest(path)
        check_files(path, manifest)
        return cls(path, manifest)

    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer, set to read the names of special tokens in a text as plain text."""
        tokenizer = tokenizers.Tokenizer.from_file(str(self.tokenizer_file))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def train_tokens(self, domain: str) -> NDArray[Any]:
        """All training tokens of a domain, 1-D and memory-mapped.

        Raises:
            UsageError: the corpus has no such domain, or only examines it.
        """
        if domain not in self.training_domains:
            raise UsageError(
                f"corpus {self.hash}: no training text for '{domain}'; domains with training text: "
                f"{', '.join(self.training_domains)}"
            )
        return self._map(shard_paths(domain, train=True)["train"], self.manifest.dtype)

    def windows(self, domain: str, context_length: int) -> int:
        """How many training windows of ``context_length + 1`` tokens a domain has.

        Raises:
            UsageError: the domain is shorter than one window.
        """
        tokens = len(self.train_tokens(domain))
        return self._enough(domain, "training", tokens, context_length)

    def natural_mixture(self) -> dict[str, float]:
        """Share of the training tokens that each training domain has."""
        tokens = {name: self.manifest.domains[name].train_tokens for name in self.training_domains}
        total = sum(tokens.values())
        return {name: count / total for name, count in tokens.items()}

    def validation_tokens(self, domain: str) -> NDArray[Any]:
        """All validation tokens of a domain, 1-D and memory-mapped.

        Raises:
            UsageError: the corpus has no such domain.
        """
        if domain not in self.domains:
            raise UsageError(f"corpus {self.hash}: no domain '{domain}'; it has {', '.join(self.domains)}")
        return self._map(shard_paths(domain, train=False)["validation"], self.manifest.dtype)

    def validation(self, domain: str, context_length: int, windows: int) -> ValidationSet:
        """``windows`` validation windows of a domain (or all, if it has fewer).

        They are the first of a shuffle that depends only on the domain's name and the context length, so that even a
        few are a fair sample of all.

        Raises:
            UsageError: no such domain, or it has less validation text than one window.
        """
        tokens = self.validation_tokens(domain)
        sizes = self._map(shard_paths(domain, train=False)["bytes"], "uint32")
        total = self._enough(domain, "validation", len(tokens), context_length)
        n = min(windows, total)
        key = np.full(n, keyed_hash("validation", domain, context_length), dtype=np.uint64)
        picked = permute(np.arange(n), np.full(n, total), key)
        starts = np.minimum(picked * context_length, len(tokens) - context_length - 1)
        index = starts[:, None] + np.arange(context_length + 1)
        return ValidationSet(tokens=tokens[index].astype(np.int64), bytes=int(sizes[index[:, 1:]].sum()))

    def _enough(self, domain: str, split: str, tokens: int, context_length: int) -> int:
        count = window_count(tokens, context_length)
        if count == 0:
            remedy = "" if split == "training" else " (or raise corpus.validation_share)"
            raise UsageError(
                f"domain '{domain}': {tokens} {split} tokens are fewer than one window of context_length + 1 = "
                f"{context_length + 1}; give it more text, or train with a context_length below {tokens}{remedy}"
            )
        return count

    def _map(self, name: str, dtype: str) -> NDArray[Any]:
        return np.memmap(self.path / name, dtype=np.dtype(dtype).newbyteorder("<"), mode="r")

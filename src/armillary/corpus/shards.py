"""The corpus as it lies on disk: token shards, their manifest, and the views a run needs.

A corpus is a folder named by its content hash::

    manifest.json            what every domain is, how much of it there is, sha256 of every file
    tokenizer.json           Hugging Face format
    train/DOMAIN.bin         token ids of all training documents, raw little-endian uint16 or uint32
    validation/DOMAIN.bin    the same for validation
    validation/DOMAIN.bytes  uint32 per validation token: how many bytes of the text it stands for

Shards are memory-mapped, so that many runs on one machine share one copy. Nothing in the folder is executable or
unpickled. Opening checks format and sizes only: the sha256 of large shards would cost more than a small run; they are
in the manifest for whoever wants to check a copy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import tokenizers
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from armillary.corpus.permutation import keyed_hash, permute
from armillary.recipe import ArmillaryError, UsageError
from armillary.recipe import Document as RecipePart

FORMAT = 1


class ShardFile(RecipePart):
    """A file of the corpus: path relative to its folder, size in bytes, SHA-256."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str


class DomainManifest(RecipePart):
    """One domain: where it came from and what became of it.

    ``documents`` counts what was read, after cutting; each is then in training, in validation, ``set_aside`` (held
    out, but beyond what validation keeps) or one of ``duplicates`` (dropped). ``*_bytes`` are UTF-8 bytes of text.
    ``problems`` lists at most the first 100 of ``problem_count``, each as "file:line: what".
    """

    source: str
    licence: str | None
    train: bool
    documents: int
    cut: int
    duplicates: int
    set_aside: int
    train_documents: int
    train_tokens: int
    train_bytes: int
    validation_documents: int
    validation_tokens: int
    validation_bytes: int
    files: tuple[ShardFile, ...]
    problem_count: int
    problems: tuple[str, ...]


class Manifest(RecipePart):
    """What a corpus folder holds; ``hash`` is made of the content only, not of where the text came from."""

    format: int = FORMAT
    hash: str
    dtype: str
    vocab_size: int
    end_of_text: str
    end_of_text_id: int
    validation_share: float
    validation_chars: int
    max_document_chars: int
    tokenizer: ShardFile
    domains: dict[str, DomainManifest]


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


def shard_name(domain: str) -> str:
    """File name of a domain: its own name, with what a path cannot hold percent-encoded."""
    return quote(domain, safe="")


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
        """Open a corpus folder.

        Raises:
            ArmillaryError: no manifest, one of another format, or a file that is missing or has changed its size.
        """
        file = path / "manifest.json"
        remedy = "delete the folder and build the corpus again"
        try:
            fields: Any = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ArmillaryError(f"{path}: not a corpus: it has no manifest.json") from error
        except (OSError, ValueError) as error:
            raise ArmillaryError(f"{file}: cannot be read ({error}); {remedy}") from error
        found = fields.get("format") if isinstance(fields, dict) else None
        if found != FORMAT:
            raise ArmillaryError(f"{file}: format {found!r}, this version reads {FORMAT}; {remedy}")
        try:
            manifest = Manifest.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ArmillaryError(f"{file}: {where}: {first['msg']}; {remedy}") from error
        for shard in [manifest.tokenizer, *(f for d in manifest.domains.values() for f in d.files)]:
            try:
                size = (path / shard.path).stat().st_size
            except OSError as error:
                raise ArmillaryError(f"{path / shard.path}: missing ({error.strerror}); {remedy}") from error
            if size != shard.bytes:
                raise ArmillaryError(
                    f"{path / shard.path}: has {size} bytes, the manifest says {shard.bytes}; {remedy}"
                )
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
                f"corpus {self.hash}: no training text for '{domain}'; there is for {', '.join(self.training_domains)}"
            )
        return self._map(f"train/{shard_name(domain)}.bin", self.manifest.dtype)

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

    def validation(self, domain: str, context_length: int, windows: int) -> ValidationSet:
        """``windows`` validation windows of a domain (or all, if it has fewer).

        They are the first of a shuffle that depends only on the domain's name and the context length, so that few of
        them are a fair sample of all.

        Raises:
            UsageError: no such domain, or it has less validation text than one window.
        """
        if domain not in self.domains:
            raise UsageError(f"corpus {self.hash}: no domain '{domain}'; there are {', '.join(self.domains)}")
        tokens = self._map(f"validation/{shard_name(domain)}.bin", self.manifest.dtype)
        sizes = self._map(f"validation/{shard_name(domain)}.bytes", "uint32")
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

"""The two kinds of tasks of a build: reading a group of files into pieces, and encoding a piece.

A piece is a parquet file of about 4 MB of text, with columns ``hash``, ``chars``, ``bytes``, ``document`` and ``text``
and a row per part of a document. An npz file beside it has the hash and signature of each whole document. A task writes
its files atomically and its ``output`` last. The output holds the checksums of the others, so a later build does not
use files that were damaged in between.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armillary.corpus.documents import HASH_BYTES, cut, document_hash
from armillary.corpus.find import SourceFile
from armillary.corpus.near import signatures
from armillary.corpus.problems import Problem, ProblemList
from armillary.corpus.sources import Continuation, read_documents
from armillary.corpus.split import TRAIN, VALIDATION
from armillary.corpus.tokenizer import Encoder
from armillary.files import write_file
from armillary.recipe import ArmillaryError, read_sealed, write_sealed

GROUP_BYTES = 8 << 20
PIECE_CHARS = 4 << 20
SUMMARY_FORMAT = 1


@dataclass(frozen=True)
class ReadTask:
    """Read a group of files; ``output`` is a sealed JSON file: the checksums of the pieces, and the problems."""

    files: tuple[SourceFile, ...]
    text_field: str
    max_chars: int
    output: Path

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def piece(self, index: int) -> Path:
        """The path of the piece with this number."""
        return self.output.with_name(f"{self.output.stem}-{index:06d}.parquet")

    def summary(self) -> dict[str, Any]:
        """The content of the finished task's ``output``.

        Raises:
            FileNotFoundError: it is not finished.
            ArmillaryError: the file is damaged.
        """
        return read_sealed(self.output, "part of a build", SUMMARY_FORMAT, "delete it and build again")

    def done(self) -> bool:
        """Whether an earlier build finished the task, its files are intact, and all its sources were readable."""
        try:
            summary = self.summary()
            return not summary["unreadable"] and all(
                _sha256(path) == expected
                for index, sums in enumerate(summary["pieces"])
                for path, expected in zip(_files_of(self.piece(index)), sums, strict=True)
            )
        except (OSError, ArmillaryError):
            return False


@dataclass(frozen=True)
class EncodeTask:
    """Encode a piece, whose parts have these ``fates``; ``output`` is npz: train, validation, bytes."""

    piece: Path
    fates: bytes
    tokenizer: Path
    output: Path
    size: int

    def done(self) -> bool:
        """Whether an earlier build has left the output, and it is intact."""
        try:
            with zipfile.ZipFile(self.output) as archive:
                return archive.testzip() is None
        except (OSError, zipfile.BadZipFile):
            return False


def group_files(files: Sequence[SourceFile]) -> Iterator[tuple[SourceFile, ...]]:
    """Consecutive files of together about ``GROUP_BYTES``."""
    group: list[SourceFile] = []
    size = 0
    for file in files:
        if group and size + file.size > GROUP_BYTES:
            yield tuple(group)
            group, size = [], 0
        group.append(file)
        size += file.size
    yield tuple(group)


def read_group(task: ReadTask) -> None:
    """Read the files of a task, cut their documents, write them as pieces."""
    problems = ProblemList()
    unreadable: list[str] = []
    pieces: list[tuple[str, str]] = []
    documents: list[str] = []
    chars = cut_documents = 0
    for file in task.files:
        for found in read_documents(file, task.text_field):
            if isinstance(found, Problem):
                problems.add(found)
                if found.passing:
                    unreadable.append(quote(os.fsencode(file.path)))  # a name need not be UTF-8
                continue
            documents.append(found)
            chars += len(found)
            cut_documents += len(found) > task.max_chars
            if chars >= PIECE_CHARS:
                pieces.append(_write_piece(task.piece(len(pieces)), documents, task.max_chars))
                documents, chars = [], 0
    if documents:
        pieces.append(_write_piece(task.piece(len(pieces)), documents, task.max_chars))
    summary = {
        "format": SUMMARY_FORMAT,
        "pieces": pieces,
        "cut": cut_documents,
        "problems": list(problems.kinds.items()),
        "unreadable": unreadable,
    }
    write_sealed(task.output, summary)


def documents_file(piece: Path) -> Path:
    """The file beside a piece with ``hash`` (bytes [n, 16]), ``signature`` and ``continues`` of its documents."""
    return piece.with_suffix(".npz")


def _files_of(piece: Path) -> tuple[Path, Path]:
    return piece, documents_file(piece)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_piece(path: Path, documents: list[str], max_chars: int) -> tuple[str, str]:
    """Write a piece and the file of its documents; their checksums."""
    # A cut may leave a part of white space only, which is not a part.
    rows = [(i, part) for i, text in enumerate(documents) for part in cut(text, max_chars) if part.strip()]
    hashes = [document_hash(text) for text in documents]
    whole = [len(text) <= max_chars for text in documents]
    table = pa.table(
        {
            "hash": pa.array(
                [hashes[i] if whole[i] else document_hash(part) for i, part in rows], pa.binary(HASH_BYTES)
            ),
            "chars": pa.array([len(part) for _, part in rows], pa.int64()),
            "bytes": pa.array([len(part.encode()) for _, part in rows], pa.int64()),
            "document": pa.array([i for i, _ in rows], pa.int64()),
            "text": pa.array([part for _, part in rows], pa.large_string()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    about = io.BytesIO()
    np.savez(
        about,
        hash=np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, HASH_BYTES),
        signature=signatures(documents),
        continues=np.array([isinstance(text, Continuation) for text in documents]),
    )
    checksums = []
    for file, data in zip(_files_of(path), (buffer, about), strict=True):
        write_file(file, data.getvalue())
        checksums.append(hashlib.sha256(data.getvalue()).hexdigest())
    return checksums[0], checksums[1]


def write_tokenizer(path: Path, tokenizer_json: str, end: str) -> None:
    """Write the tokenizer that the pieces of a build are encoded with, sealed."""
    write_sealed(path, {"format": SUMMARY_FORMAT, "tokenizer": tokenizer_json, "end": end})


def read_tokenizer(path: Path) -> tuple[str, str]:
    """The tokenizer of an unfinished build, and its token that ends a text.

    Raises:
        FileNotFoundError: it has none yet.
        ArmillaryError: the file is damaged.
    """
    fields = read_sealed(path, "tokenizer of a build", SUMMARY_FORMAT, "delete it and build again")
    return fields["tokenizer"], fields["end"]


def encode_piece(task: EncodeTask) -> None:
    """Encode the training and validation parts of a piece, each in their order."""
    encoder = Encoder(*read_tokenizer(task.tokenizer))
    fates = np.frombuffer(task.fates, dtype=np.uint8)
    texts = pq.read_table(task.piece, columns=["text"])["text"]
    train = [i for ids in encoder.encode(texts.filter(pa.array(fates == TRAIN)).to_pylist()) for i in ids]
    validation: list[int] = []
    sizes = [np.empty(0, dtype=np.uint32)]
    for text in texts.filter(pa.array(fates == VALIDATION)).to_pylist():
        ids, spelled = encoder.encode_with_bytes(text)
        validation += ids
        sizes.append(spelled)
    buffer = io.BytesIO()
    dtype = np.dtype(encoder.dtype).newbyteorder("<")
    np.savez(
        buffer,
        train=np.array(train, dtype=dtype),
        validation=np.array(validation, dtype=dtype),
        bytes=np.concatenate(sizes).astype("<u4"),
    )
    write_file(task.output, buffer.getvalue())

"""The two kinds of work a build is cut into: reading a group of files into pieces, and encoding a piece.

A piece is a parquet file of about 4 MB of text with columns ``hash``, ``chars``, ``bytes`` and ``text``, a row per
document. Each task writes its files whole or not at all, the one it is known by last.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armillary.corpus.documents import HASH_BYTES, cut, document_hash
from armillary.corpus.sources import Problem, SourceFile, read_documents
from armillary.corpus.split import TRAIN, VALIDATION
from armillary.corpus.tokenizer import Encoder
from armillary.files import write_file

GROUP_BYTES = 8 << 20
PIECE_CHARS = 4 << 20
PROBLEMS_KEPT = 100


@dataclass(frozen=True)
class ReadTask:
    """Read a group of files; ``output`` is a JSON file that counts pieces, cut documents and problems."""

    files: tuple[SourceFile, ...]
    text_field: str
    max_chars: int
    output: Path

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def piece(self, index: int) -> Path:
        """Where the piece of that number is."""
        return self.output.with_name(f"{self.output.stem}-{index:06d}.parquet")


@dataclass(frozen=True)
class EncodeTask:
    """Encode a piece, of whose documents ``fates`` tells the fate; ``output`` is npz: train, validation, bytes."""

    piece: Path
    fates: bytes
    tokenizer: Path
    output: Path
    size: int


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
    problems: list[str] = []
    problem_count = cut_documents = pieces = chars = 0
    texts: list[str] = []
    for file in task.files:
        for found in read_documents(file, task.text_field):
            if isinstance(found, Problem):
                problem_count += 1
                problems += [found.message] if len(problems) < PROBLEMS_KEPT else []
                continue
            # A cut may leave a part of white space only, which is no document.
            parts = [part for part in cut(found, task.max_chars) if part.strip()]
            cut_documents += len(parts) > 1
            texts += parts
            chars += len(found)
            if chars >= PIECE_CHARS:
                _write_piece(task.piece(pieces), texts)
                pieces += 1
                texts, chars = [], 0
    if texts:
        _write_piece(task.piece(pieces), texts)
        pieces += 1
    summary = {"pieces": pieces, "cut": cut_documents, "problem_count": problem_count, "problems": problems}
    write_file(task.output, json.dumps(summary).encode())


def _write_piece(path: Path, texts: list[str]) -> None:
    table = pa.table(
        {
            "hash": pa.array([document_hash(text) for text in texts], pa.binary(HASH_BYTES)),
            "chars": pa.array([len(text) for text in texts], pa.int64()),
            "bytes": pa.array([len(text.encode()) for text in texts], pa.int64()),
            "text": pa.array(texts, pa.large_string()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_file(path, buffer.getvalue())


def encode_piece(task: EncodeTask) -> None:
    """Encode the training and validation documents of a piece, each in their order."""
    encoder = Encoder(task.tokenizer.read_text(encoding="utf-8"))
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

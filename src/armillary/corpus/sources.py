"""The documents in a source file.

By the file's ending:

- ``.txt``, ``.md``, ``.py``: one document;
- ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``: one document per line, in the domain's ``text_field``;
- ``.parquet``: one document per row, in the column ``text_field``.

Unusable parts are yielded as ``Problem`` objects with file and line, between the documents. Damage costs only the
damaged lines. Trade-off: a text file above 64 MiB is read in blocks of that size that end with a line, so that it need
not fit in memory. Each block after the first is a ``Continuation`` of the document before it.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from armillary.corpus.demo import DEMO_DOMAINS
from armillary.corpus.find import SourceFile
from armillary.corpus.problems import Problem, shown
from armillary.corpus.streams import Lost, decoded, lines
from armillary.recipe import ArmillaryError, UsageError, counted

TEXT_BLOCK = 64 << 20
LONG_LINE = 4096  # bytes; of a longer line only the bytes that are not UTF-8 are left out
OTHER_ENCODING = 10  # a text with at least this many lines, and most lines, not in UTF-8 has another encoding
SURROGATE = re.compile("[\ud800-\udfff]")
SAVE_AS = "; save the text as UTF-8"


class Continuation(str):
    """Text that continues the document before it."""

    __slots__ = ()


Found = Problem | tuple[str, Any]  # what cannot be used, or the place of a document and its text


def read_documents(file: SourceFile, text_field: str) -> Iterator[str | Problem]:
    """The documents of a file in order, and its problems.

    Raises:
        ArmillaryError: a remote file cannot be read now (a network error).
    """
    documents: Iterator[Found]
    where = f"{shown(file.path)}:1"
    try:
        if file.reader.startswith("demo:"):
            documents = _demo(file)
        elif file.reader == "text":
            documents = _text(file)
        elif file.reader == "jsonl":
            documents = _jsonl(file, text_field)
        else:
            documents = _parquet(file, text_field)
        for found in documents:
            yield found if isinstance(found, Problem) else _document(*found, text_field)
    except (FileNotFoundError, PermissionError) as error:
        yield Problem(where, "cannot be read", f" ({error.strerror or error})", passing=True)
    except ArmillaryError:
        raise
    except Exception as error:
        if "://" in file.path:  # each remote file system has its own exceptions, not only OSError
            raise ArmillaryError(
                f"{file.path}: cannot be read ({error}); what was read so far is kept; try again"
            ) from error
        if not isinstance(error, OSError):
            raise
        yield Problem(where, "cannot be read", f" ({error.strerror or error})", passing=True)


def _document(where: str, text: Any, text_field: str) -> str | Problem:
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        return Problem(where, f"the field '{text_field}' is {kind}, not text")
    if not text.strip():
        return Problem(where, "empty")
    if SURROGATE.search(text):
        return Problem(where, "a lone surrogate, which is not valid Unicode")
    clean = text.replace("\r\n", "\n")
    return Continuation(clean) if isinstance(text, Continuation) else clean


def _open(path: str) -> IO[bytes]:
    if "://" in path:
        filesystem, inner = fsspec.url_to_fs(path)
        opened: IO[bytes] = filesystem.open(inner, "rb")
        return opened
    return open(path, "rb")


def _demo(file: SourceFile) -> Iterator[Found]:
    domain = DEMO_DOMAINS[file.reader.removeprefix("demo:")]
    try:
        for text in domain.read(Path(file.path)):
            yield file.path, text
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"source {file.reader}: {file.path} differs from the tested version of {domain.package} ({error!r}); "
            f"{domain.remedy}"
        ) from error


def _text(file: SourceFile) -> Iterator[Found]:
    path, line, first = shown(file.path), 1, True
    with _open(file.path) as stream:
        for block in _blocks(decoded(stream)):
            if isinstance(block, Lost):
                yield _damage(path, line, block)
                continue
            try:
                text = block.decode()
            except UnicodeDecodeError as error:
                text, problem = _without_bad_lines(path, line, block, error)
                yield problem
            line += block.count(b"\n")
            if text:
                yield f"{path}:1", text if first else Continuation(text)
                first = False
        # Packages mark their folders with an empty file.
        if file.size == 0 and not path.endswith("__init__.py"):
            yield Problem(f"{path}:1", "the file is empty")


def _blocks(chunks: Iterator[bytes | Lost]) -> Iterator[bytes | Lost]:
    """Blocks of about ``TEXT_BLOCK`` bytes that end with a line, the last one with the file."""
    held = b""
    for chunk in chunks:
        if isinstance(chunk, Lost):
            yield chunk
            continue
        held += chunk
        while len(held) > TEXT_BLOCK and (end := held.find(b"\n", TEXT_BLOCK - 1) + 1):
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def _without_bad_lines(path: str, number: int, block: bytes, error: UnicodeDecodeError) -> tuple[str, Problem]:
    """The UTF-8 lines of a block; nothing if most lines are not UTF-8, because the file has another encoding then."""
    good: list[str] = []
    bad_lines, lost = 0, 0
    rows = re.findall(rb"[^\n]*\n|[^\n]+", block)
    for row in rows:
        try:
            good.append(row.decode())
        except UnicodeDecodeError:
            bad_lines += 1
            text = row.decode(errors="ignore") if len(row) > LONG_LINE else ""
            good.append(text)
            lost += len(row) - len(text.encode())
    at = number + block.count(b"\n", 0, error.start)
    where, byte = f"{path}:{at}", f"byte 0x{block[error.start]:02x}"
    if bad_lines >= OTHER_ENCODING and lost > len(block) / 2:
        detail = f" ({byte}), nor are {bad_lines} of the {len(rows)} lines{SAVE_AS}"
        return "", Problem(where, "not UTF-8", detail, count=len(rows))
    detail = f" ({byte}); {counted(bad_lines, 'line')} with {counted(lost, 'byte')} skipped{SAVE_AS}"
    return "".join(good), Problem(where, "not UTF-8", detail, count=bad_lines)


def _damage(path: str, line: int, lost: Lost) -> Problem:
    rest = f"{lost.bytes:,} bytes of the file are lost" if lost.bytes else "the rest of the file is lost"
    return Problem(
        f"{path}:{line}", "compressed data is damaged", f" ({lost.what}); {rest}, the lines before it are read"
    )


def _jsonl(file: SourceFile, text_field: str) -> Iterator[Found]:
    path, number, seen = shown(file.path), 0, False
    with _open(file.path) as stream:
        for line in lines(decoded(stream)):
            if isinstance(line, Lost):
                seen = True
                yield _damage(path, number + 1, line)
                continue
            number += 1
            where = f"{path}:{number}"
            try:
                text = line.decode()
                if not text.strip():
                    continue
                seen = True
                row = json.loads(text)
            except UnicodeDecodeError as error:
                seen = True
                yield Problem(where, "not UTF-8", f" (byte 0x{line[error.start]:02x}){SAVE_AS}")
            except (ValueError, RecursionError):
                yield from _odd_line(where, text.strip(), text_field)
            else:
                yield from _rows(where, row, text_field)
    if not seen:
        yield Problem(f"{path}:1", "the file is empty")


def _odd_line(where: str, text: str, text_field: str) -> Iterator[Found]:
    """A line that is not one JSON value: several values, a line of a JSON array, or a number that Python refuses."""
    decoder = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < 1000 else math.inf)
    if text in ("[", "]", "],", ","):
        return
    while text:
        try:
            row, end = decoder.raw_decode(text)
        except (ValueError, RecursionError) as error:
            yield Problem(where, "not JSON", f" ({error}); each line is one JSON object")
            return
        yield from _rows(where, row, text_field)
        text = text[end:].lstrip(" \t\r,")


def _rows(where: str, row: Any, text_field: str) -> Iterator[Found]:
    if isinstance(row, list) and row and all(isinstance(item, dict) for item in row):  # a file that is one array
        yield from (_field(where, item, text_field) for item in row)
    else:
        yield _field(where, row, text_field)


def _field(where: str, row: Any, text_field: str) -> Found:
    if not isinstance(row, dict):
        return Problem(where, f"a {type(row).__name__}, not a JSON object with the field '{text_field}'")
    if text_field not in row:
        return Problem(where, f"no field '{text_field}'", f"; {_has(list(row), text_field)}")
    return where, row[text_field]


def _has(fields: list[str], wanted: str) -> str:
    strings = [str(field) for field in fields]
    match = difflib.get_close_matches(wanted, strings, n=1, cutoff=0.5) or strings[:5]
    return f"it has {', '.join(match) or 'none'}; set the domain's text_field"


def _parquet(file: SourceFile, text_field: str) -> Iterator[Found]:
    path = shown(file.path)
    # Arrow reports damaged data as an OSError without a number, as an ArrowException, or as text that is not UTF-8.
    try:
        with _open(file.path) as raw, pq.ParquetFile(raw, page_checksum_verification=True) as table:
            if text_field not in table.schema_arrow.names:
                fields = _has(table.schema_arrow.names, text_field)
                yield Problem(f"{path}:1", f"no column '{text_field}'", f"; {fields}")
                return
            if table.metadata.num_rows == 0:
                yield Problem(f"{path}:1", "the file has no rows")
            start = 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                yield from _row_group(path, table, group, start, rows, text_field)
                start += rows
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield Problem(f"{path}:1", "not a complete Parquet file", f" ({error})")


def _row_group(path: str, table: pq.ParquetFile, group: int, start: int, rows: int, text_field: str) -> Iterator[Found]:
    """Rows ``start`` to ``start + rows`` of the file; damage costs the rest of its group."""
    read = 0
    try:
        for batch in table.iter_batches(batch_size=1024, row_groups=[group], columns=[text_field]):
            for value in batch.column(0):
                read += 1
                where = f"{path}:{start + read}"
                try:
                    text = value.as_py()
                    yield where, text.decode() if isinstance(text, bytes) else text
                except UnicodeDecodeError as error:
                    yield Problem(where, "not UTF-8", f" (byte 0x{error.object[error.start]:02x}){SAVE_AS}")
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        lost = max(rows - read, 1)
        detail = f": {error}; {lost:,} rows are lost; the other row groups are read"
        yield Problem(f"{path}:{start + read + 1}", "damaged", detail, count=lost)

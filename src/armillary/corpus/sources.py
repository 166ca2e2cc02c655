"""Where text comes from: files of a domain, and the documents in them.

A source is a file, a folder, a URL that fsspec knows (``s3://``, ``gs://``, ... where its driver is installed) or
``demo:NAME``. By the file's ending:

- ``.txt``, ``.md``, ``.py``: one document;
- ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``: one document per line, in the domain's ``text_field``;
- ``.parquet``: one document per row, in the column ``text_field``.

What cannot be used (not UTF-8, not JSON, no such field, empty) is yielded as a ``Problem`` with file and line, beside
the documents that can. Trade-off: a text file above 64 MiB is taken in blocks of that size that end with a
line, so that it need not fit in memory; what is wrong in one block costs that block only.
"""

from __future__ import annotations

import difflib
import gzip
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from armillary.corpus.demo import DEMO_DOMAINS, demo_files
from armillary.recipe import ArmillaryError, DomainSpec, UsageError

READERS = {
    ".txt": "text",
    ".md": "text",
    ".py": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".parquet": "parquet",
}
TEXT_BLOCK = 64 << 20
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class SourceFile:
    """One file: absolute path or URL, size in bytes, what changes when it changes, and how to read it."""

    path: str
    size: int
    version: str
    reader: str


@dataclass(frozen=True)
class Problem:
    """Something that could not be used: "file:line: what"."""

    message: str


def find_files(domain: str, spec: DomainSpec) -> tuple[list[SourceFile], list[Problem]]:
    """The files of a domain, sorted by path; a ``Problem`` if a folder also holds files of kinds that are not read.

    Raises:
        UsageError: the source does not exist, or holds no file of a known kind; an unknown or uninstalled demo domain.
    """
    if spec.source.startswith("demo:"):
        paths = demo_files(spec.source.removeprefix("demo:"))
        return [_local(path, spec.source) for path in paths], []
    where = f"domain '{domain}': source {spec.source}"
    try:
        if "://" in spec.source:
            filesystem, root = fsspec.url_to_fs(spec.source)
        else:
            filesystem, root = LocalFileSystem(), os.path.abspath(Path(spec.source).expanduser())  # noqa: PTH100
        found: dict[str, dict[str, Any]] = filesystem.find(root, detail=True)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error
    except OSError as error:
        raise ArmillaryError(f"{where}: cannot be listed ({error}); try again when it can be reached") from error
    if not found:
        raise UsageError(f"{where}: {_why_nothing(filesystem, root)}")
    files, passed_over = [], Counter[str]()
    for path, info in sorted(found.items()):
        name = path.rsplit("/", 1)[-1]
        suffix = next((s for s in sorted(READERS, key=len, reverse=True) if name.lower().endswith(s)), None)
        if suffix is None:
            # Names that start with a dot or an underscore are how tools mark files that are not data.
            if not name.startswith((".", "_")):
                passed_over[Path(name).suffix or name] += 1
        elif isinstance(filesystem, LocalFileSystem):
            files.append(_local(Path(path), READERS[suffix]))
        else:
            url = filesystem.unstrip_protocol(path)
            files.append(SourceFile(url, int(info["size"] or 0), filesystem.ukey(path), READERS[suffix]))
    if not files:
        raise UsageError(f"{where}: no file of a known kind; these are read: {', '.join(READERS)}")
    if not passed_over:
        return files, []
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(passed_over.items()))
    return files, [Problem(f"{spec.source}: passed over files of other kinds ({kinds}); read: {', '.join(READERS)}")]


def _local(path: Path, reader: str) -> SourceFile:
    stat = path.stat()
    return SourceFile(str(path), stat.st_size, str(stat.st_mtime_ns), reader)


def _why_nothing(filesystem: Any, root: str) -> str:
    """What is wrong with a source under which no file was found."""
    if filesystem.isdir(root):
        return f"the folder is empty; these are read: {', '.join(READERS)}"
    parent, _, name = root.rstrip("/").rpartition("/")
    try:
        siblings = [str(path).rstrip("/").rpartition("/")[2] for path in filesystem.ls(parent or "/", detail=False)]
    except OSError:
        return f"does not exist, nor does its folder {parent}; give the path of a file or a folder"
    match = difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)
    hint = f"did you mean '{match[0]}'?" if match else f"{parent} holds {', '.join(sorted(siblings)[:10]) or 'nothing'}"
    return f"does not exist; {hint}"


def read_documents(file: SourceFile, text_field: str) -> Iterator[str | Problem]:
    """The documents of a file in order, and what could not be used.

    Raises:
        ArmillaryError: the file cannot be read at all right now (a network or disk error).
    """
    documents: Iterator[tuple[str, Any] | Problem]
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
            if isinstance(found, Problem):
                yield found
                continue
            where, text = found
            if not isinstance(text, str):
                kind = "null" if text is None else type(text).__name__
                yield Problem(f"{where}: the field '{text_field}' holds {kind} and not text")
            elif not text.strip():
                yield Problem(f"{where}: empty")
            elif SURROGATE.search(text):
                yield Problem(f"{where}: half a surrogate pair, which is not Unicode text")
            else:
                yield text.replace("\r\n", "\n")
    except (FileNotFoundError, PermissionError) as error:
        yield Problem(f"{file.path}:1: cannot be read ({error.strerror})")
    except OSError as error:
        raise ArmillaryError(
            f"{file.path}: cannot be read ({error}); what was read before is kept, try again"
        ) from error


def _open(path: str) -> IO[bytes]:
    if "://" in path:
        filesystem, inner = fsspec.url_to_fs(path)
        opened: IO[bytes] = filesystem.open(inner, "rb")
        return opened
    return open(path, "rb")


def _demo(file: SourceFile) -> Iterator[tuple[str, Any] | Problem]:
    domain = DEMO_DOMAINS[file.reader.removeprefix("demo:")]
    try:
        for text in domain.read(Path(file.path)):
            yield file.path, text
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"source {file.reader}: {file.path} is not as in the tested version of {domain.package} ({error!r}); "
            f"{domain.remedy}"
        ) from error


def _text(file: SourceFile) -> Iterator[tuple[str, Any] | Problem]:
    line = 1
    with _open(file.path) as stream:
        while block := stream.read(TEXT_BLOCK):
            block += stream.readline()
            where = f"{file.path}:{line}"
            try:
                yield where, block.removeprefix(b"\xef\xbb\xbf").decode()
            except UnicodeDecodeError as error:
                yield Problem(_not_utf8(file.path, line + error.object.count(b"\n", 0, error.start), error))
            line += block.count(b"\n")
        if file.size == 0:
            yield Problem(f"{file.path}:1: the file is empty")


def _jsonl(file: SourceFile, text_field: str) -> Iterator[tuple[str, Any] | Problem]:
    number, seen = 0, False
    try:
        with _open(file.path) as raw:
            stream: Any = raw
            if file.path.lower().endswith(".gz"):
                stream = gzip.GzipFile(fileobj=raw)
            elif file.path.lower().endswith(".zst"):
                stream = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"))
            for number, line in enumerate(stream, start=1):
                where = f"{file.path}:{number}"
                try:
                    text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).decode()
                    if not text.strip():
                        continue
                    seen = True
                    row = json.loads(text)
                except UnicodeDecodeError as error:
                    yield Problem(_not_utf8(file.path, number, error))
                except (ValueError, RecursionError) as error:
                    yield Problem(f"{where}: not JSON ({error}); each line is one JSON object")
                else:
                    yield _field(where, row, text_field)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield Problem(f"{file.path}:{number + 1}: compressed data is damaged ({error}); lines before this one are used")
    except OSError as error:
        if error.errno is not None:
            raise
        # Arrow reports damaged zstd data as an OSError without a number.
        yield Problem(f"{file.path}:{number + 1}: compressed data is damaged ({error}); lines before this one are used")
    else:
        if not seen:
            yield Problem(f"{file.path}:1: the file is empty")


def _field(where: str, row: Any, text_field: str) -> tuple[str, Any] | Problem:
    if not isinstance(row, dict):
        return Problem(f"{where}: a {type(row).__name__} and not a JSON object with the field '{text_field}'")
    if text_field not in row:
        return Problem(f"{where}: no field '{text_field}'; {_has(list(row), text_field)}")
    return where, row[text_field]


def _has(fields: list[str], wanted: str) -> str:
    strings = [str(field) for field in fields]
    match = difflib.get_close_matches(wanted, strings, n=1, cutoff=0.5) or strings[:5]
    return f"it has {', '.join(match) or 'none'}; set the domain's text_field"


def _parquet(file: SourceFile, text_field: str) -> Iterator[tuple[str, Any] | Problem]:
    try:
        with _open(file.path) as raw, pq.ParquetFile(raw) as table:
            if text_field not in table.schema_arrow.names:
                yield Problem(f"{file.path}:1: no column '{text_field}'; {_has(table.schema_arrow.names, text_field)}")
                return
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
                for value in batch.column(0):
                    number += 1
                    try:
                        yield f"{file.path}:{number}", value.as_py()
                    except UnicodeDecodeError as error:
                        yield Problem(_not_utf8(file.path, number, error))
            if number == 0:
                yield Problem(f"{file.path}:1: the file has no rows")
    except pa.ArrowException as error:
        yield Problem(f"{file.path}:1: not a whole parquet file ({error})")
    except OSError as error:
        if error.errno is not None:
            raise
        yield Problem(f"{file.path}:1: not a whole parquet file ({error})")


def _not_utf8(path: str, line: int, error: UnicodeDecodeError) -> str:
    return f"{path}:{line}: not UTF-8 (byte 0x{error.object[error.start]:02x}); save the text as UTF-8"

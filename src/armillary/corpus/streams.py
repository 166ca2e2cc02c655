"""Bytes of a source file, decompressed and as UTF-8; recovers as much as possible of a damaged file.

Compression and encoding are recognised by the first bytes, not by the name: gzip (several members, padding between
them), zstandard (several frames, skippable frames, windows up to 2 GiB), UTF-16 and UTF-32 with or without a byte order
mark, UTF-8. Where compressed data is damaged, what came out before is used, and reading resumes at the next member or
frame whose header is whole. A lost part is yielded as ``Lost`` between the bytes.
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import IO, Any

import zstandard

CHUNK = 1 << 20
GZIP, ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
SKIPPABLE = {bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16)}
FEED = {GZIP: 1 << 16, ZSTD: 512}  # zstandard yields nothing of a call that fails, so calls are small


@dataclass(frozen=True)
class Lost:
    """Damage: what is wrong, and the number of unusable bytes of the file."""

    what: str
    bytes: int


def decoded(stream: IO[bytes]) -> Iterator[bytes | Lost]:
    """The content of a file as UTF-8 bytes in chunks, without a byte order mark."""
    head = stream.read(4)
    if head.startswith(GZIP):
        yield from _as_utf8(_decompressed(head, stream, GZIP))
    elif head.startswith(ZSTD) or head in SKIPPABLE:
        yield from _as_utf8(_decompressed(head, stream, ZSTD))
    else:
        yield from _as_utf8(_chunks(head, stream))


def lines(chunks: Iterator[bytes | Lost]) -> Iterator[bytes | Lost]:
    """Lines with their line feeds. A line that damage breaks off is lost with it."""
    pending: list[bytes] = []
    for chunk in chunks:
        if isinstance(chunk, Lost):
            pending = []
            yield chunk
            continue
        first, *rest = chunk.split(b"\n")
        pending.append(first)
        for following in rest:
            yield b"".join(pending) + b"\n"
            pending = [following]
    if last := b"".join(pending):
        yield last


def _chunks(head: bytes, stream: IO[bytes]) -> Iterator[bytes]:
    while head:
        yield head
        head = stream.read(CHUNK)


def _decompressed(head: bytes, stream: IO[bytes], magic: bytes) -> Iterator[bytes | Lost]:
    """Member after member; ``data`` is what has been read of the file and not decompressed yet."""
    data = head
    while True:
        if magic == GZIP:
            data = data.lstrip(b"\0")  # tar and tapes pad a member with zeros
        if len(data) < 4 and (more := stream.read(CHUNK)):
            data += more
            continue
        if not data:
            return
        if magic == ZSTD and data[:4] in SKIPPABLE:
            data = _skip_frame(data, stream)
            continue
        what = "other data between or after its members"
        if data.startswith(magic):
            what, data = yield from _member(data, stream, magic)
            if not what:
                continue
        lost, data = _next_member(data, stream, magic)
        yield Lost(what, lost)


def _member(data: bytes, stream: IO[bytes], magic: bytes) -> Generator[bytes | Lost, None, tuple[str, bytes]]:
    """Yield the content of one member; return what is wrong with it (or nothing) and the bytes after it."""
    decoder: Any
    if magic == GZIP:
        decoder = zlib.decompressobj(31)
    else:
        decoder = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    start = 0
    while True:
        piece = data[start : start + FEED[magic]]
        if not piece:
            data, start = stream.read(CHUNK), 0
            if not data:
                return "the file is truncated", b""
            continue
        before: Any = decoder.copy() if magic == GZIP else None
        try:
            out = decoder.decompress(piece)
        except (zlib.error, zstandard.ZstdError, MemoryError) as error:
            # Byte by byte up to the one at fault. The next member can begin in any byte after the first.
            at = start
            for at in range(start, start + len(piece) if before else 0):
                try:
                    yield before.decompress(data[at : at + 1])
                except zlib.error:
                    break
            return str(error) or "out of memory", data[max(at, 1) :]
        yield out
        start += len(piece)
        if decoder.eof:
            return "", decoder.unused_data + data[start:]


def _skip_frame(data: bytes, stream: IO[bytes]) -> bytes:
    while len(data) < 8 and (more := stream.read(CHUNK)):
        data += more
    left = 8 + int.from_bytes(data[4:8], "little") - len(data)
    while left > 0 and (data := stream.read(min(left, CHUNK))):
        left -= len(data)
        if left == 0:
            return b""
    return data[left:] if left < 0 else b""


def _next_member(data: bytes, stream: IO[bytes], magic: bytes) -> tuple[int, bytes]:
    """How many bytes were passed over, and the data from the next header on (none at the end of the file)."""
    lost = 0
    while (found := data.find(magic)) < 0:
        tail = data[-3:]
        if not (more := stream.read(CHUNK)):
            return lost + len(data), b""
        lost += len(data) - len(tail)
        data = tail + more
    return lost + found, data[found:]


def _as_utf8(chunks: Iterator[bytes | Lost]) -> Iterator[bytes | Lost]:
    head = b""
    for chunk in chunks:
        if isinstance(chunk, Lost):
            yield chunk
        elif len(head := head + chunk) >= 4:
            break
    encoding = _encoding(head)
    if encoding is None:
        yield head.removeprefix(codecs.BOM_UTF8)
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    yield decoder.decode(head).removeprefix("\ufeff").encode()
    for chunk in chunks:
        yield chunk if isinstance(chunk, Lost) else decoder.decode(chunk).encode()
    yield decoder.decode(b"", True).encode()


def _encoding(head: bytes) -> str | None:
    """UTF-16 and UTF-32, by byte order mark or by the zeros in the first characters of European text."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = "".join("0" if byte == 0 else "x" for byte in head[:4])
    return {"x0x0": "utf-16-le", "0x0x": "utf-16-be"}.get(zeros)

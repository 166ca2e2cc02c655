"""From texts to documents: cutting long texts, and the hash that decides duplicates and the split."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator

HASH_BYTES = 16


def cut(text: str, limit: int) -> Iterator[str]:
    """Split ``text`` into parts of at most ``limit`` characters.

    A part ends at a line end in the second half of the limit, if there is one, else at the limit.
    """
    start = 0
    while len(text) - start > limit:
        end = text.rfind("\n", start + limit // 2, start + limit) + 1 or start + limit
        yield text[start:end]
        start = end
    yield text[start:]


def document_hash(text: str) -> bytes:
    """BLAKE2b (16 bytes) of the text in Unicode NFC, with white space collapsed and stripped at the ends.

    Two documents that differ only in line breaks, indentation or the encoding of accents have the same hash.
    """
    normalised = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(normalised.encode(), digest_size=HASH_BYTES).digest()

"""Near duplicates: documents that share most of their shingles, found by MinHash and banding.

A document in Unicode NFC and lower case is a sequence of *units*: a run of letters and digits, or, in scripts that put
no spaces between words (Chinese, Japanese, Thai, ...), each character with the one after it. Three consecutive units
are a shingle: three words, or four Chinese characters. A *signature* holds the smallest hash of the shingles in each of
128 bins (one-permutation hashing: Li, Owen, Zhang 2012, arXiv 1208.1259), so every shingle is hashed once. The share of
equal bins estimates the Jaccard similarity with a standard error of at most 0.044.

Candidates are documents that agree in one of 32 bands of four bins. Empty bins of short documents borrow from the next
full one (Shrivastava and Li 2014, arXiv 1406.4784). Two documents of similarity 0.5 become candidates with probability
0.87, of 0.6 with 0.99. In each band, a candidate is compared with the first document of its group and with the one
before it, in the order of their hashes. From an estimated similarity of 0.5 on, the two are near duplicates. Clusters
are the connected components of these pairs.

The result depends only on the set of documents, not on their order or the number of processes. Memory is about 150
bytes per document; the signatures, 256 bytes each, stay on disk.

Not found: a short document quoted in a long one, whose similarity is small, and documents of fewer than three units.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BINS = 128
BANDS, ROWS = 32, 4
BANDS_AT_ONCE = 8
THRESHOLD = 0.5
SHINGLE = 3
BATCH_CHARS = 1 << 18  # characters hashed at once
PAIRS = 1 << 15  # pairs compared at once
EMPTY = np.uint32(0xFFFFFFFF)
# Scripts without spaces between words: Thai to Tibetan, Myanmar, Khmer, CJK and kana, Hangul, their extensions.
UNSPACED = ((0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FFF), (0x3005, 0x9FFF), (0xA000, 0xA4CF))
UNSPACED_TOO = ((0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F))
_WORD, _SINGLE = 1, 2
_U64 = np.uint64


def signatures(texts: Sequence[str]) -> NDArray[np.uint16]:
    """Signatures of documents, [n, BINS]; 0 stands for an empty bin, a row of zeros for too little text."""
    smallest = np.full((len(texts), BINS), EMPTY)
    start = 0
    while start < len(texts):
        end, chars = start + 1, len(texts[start])
        while end < len(texts) and chars + len(texts[end]) <= BATCH_CHARS:
            chars += len(texts[end])
            end += 1
        # A long text is hashed in slices; the few shingles across two slices are left out.
        for begin in range(0, max(chars, 1), BATCH_CHARS) if end == start + 1 else [0]:
            batch = [texts[start][begin : begin + BATCH_CHARS]] if end == start + 1 else texts[start:end]
            documents, hashes = _shingles(batch)
            index = (documents + start) * BINS + (hashes >> _U64(57)).astype(np.int64)
            np.minimum.at(smallest.reshape(-1), index, (hashes >> _U64(20)).astype(np.uint32))
        start = end
    # 16 bits of a hash of the minimum are enough to compare; the minimum itself is small in a long document.
    short = (_mix(smallest.astype(np.uint64)) >> _U64(48)).astype(np.uint16)
    return np.where(smallest == EMPTY, np.uint16(0), np.maximum(short, np.uint16(1)))


def near_duplicates(
    signature: NDArray[np.uint16], hashes: NDArray[np.bytes_], progress: Callable[[int, int], None]
) -> NDArray[np.int64]:
    """The cluster of each document: documents with one label are near duplicates, directly or through others.

    Args:
        signature: [n, BINS], of different documents; may be memory-mapped.
        hashes: their hashes, which give the order of comparison.
        progress: called with (bands done, bands).
    """
    labels = np.arange(len(hashes), dtype=np.int64)
    by_hash = np.argsort(hashes, kind="stable")
    for first_band in range(0, BANDS, BANDS_AT_ONCE):
        keys = _band_keys(signature, first_band)[:, by_hash]
        for band, key in enumerate(keys, start=first_band):
            progress(band, BANDS)
            left, right = _candidates(key, by_hash)
            apart = labels[left] != labels[right]
            left, right = left[apart], right[apart]
            similar = _similar(signature, left, right)
            edges = (np.ones(np.count_nonzero(similar), dtype=bool), (labels[left[similar]], labels[right[similar]]))
            _, joined = connected_components(coo_array(edges, shape=(len(labels), len(labels))), directed=False)
            labels = joined[labels].astype(np.int64)
    progress(BANDS, BANDS)
    return labels


def _candidates(key: NDArray[np.uint64], by_hash: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs to compare: each document with the first of its key, and with the one before it."""
    usable = np.flatnonzero(key)
    usable = usable[np.argsort(key[usable], kind="stable")]
    again = np.flatnonzero(key[usable][1:] == key[usable][:-1]) + 1
    is_first = np.ones(len(usable), dtype=np.int64)
    is_first[again] = 0
    first = np.flatnonzero(is_first)[np.cumsum(is_first)[again] - 1]
    documents = by_hash[usable]
    left = np.concatenate([documents[first], documents[again - 1]])
    return left, np.concatenate([documents[again], documents[again]])


def _similar(signature: NDArray[np.uint16], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
    similar = np.zeros(len(left), dtype=bool)
    for start in range(0, len(left), PAIRS):
        a, b = signature[left[start : start + PAIRS]], signature[right[start : start + PAIRS]]
        equal = np.count_nonzero((a == b) & (a != 0), axis=1)
        full = np.count_nonzero((a != 0) | (b != 0), axis=1)
        similar[start : start + PAIRS] = equal >= THRESHOLD * full
    return similar


def all_band_keys(signature: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """Hashes of all bands, [BANDS, n]; 0 for an empty signature. Documents that share one are candidates."""
    return np.concatenate([_band_keys(signature, first) for first in range(0, BANDS, BANDS_AT_ONCE)])


def _band_keys(signature: NDArray[np.uint16], first_band: int) -> NDArray[np.uint64]:
    """Hashes of ``BANDS_AT_ONCE`` bands from ``first_band`` on, [bands, n]; 0 for an empty signature.

    Band b consists of the bins b, b + 32, b + 64 and b + 96, far apart, so that few of them borrow from one bin.
    """
    keys = np.zeros((BANDS_AT_ONCE, len(signature)), dtype=np.uint64)
    for start in range(0, len(signature), PAIRS):
        block = np.asarray(signature[start : start + PAIRS])
        # Each bin borrows from the first full one from it on, around the end.
        around = np.where(np.tile(block != 0, 2), np.arange(2 * BINS, dtype=np.int16), np.int16(2 * BINS))
        source = np.minimum.accumulate(around[:, ::-1], axis=1)[:, ::-1][:, :BINS] % BINS
        filled = np.take_along_axis(block, source.astype(np.int64), axis=1)
        for band in range(BANDS_AT_ONCE):
            key = np.zeros(len(block), dtype=np.uint64)
            for row in range(ROWS):
                key = _mix(key + filled[:, first_band + band + BANDS * row].astype(np.uint64))
            keys[band, start : start + PAIRS] = np.where(block.any(axis=1), key | _U64(1), _U64(0))
    return keys


def _shingles(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The document and the hash of every shingle of ``texts``."""
    document, unit = text_units(texts)
    first, hashes = unit_grams(document, unit, SHINGLE)
    return document[first], hashes


def text_units(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The document and the hash of every unit of ``texts``, in their order."""
    clean = [unicodedata.normalize("NFC", text).lower() for text in texts]
    codes = np.frombuffer("\n".join(clean).encode("utf-32-le", "surrogatepass"), dtype="<i4")
    kind = _kinds()[np.minimum(codes, 1 << 16)]
    within_word = np.zeros(len(kind), dtype=bool)
    within_word[1:] = (kind[1:] == _WORD) & (kind[:-1] == _WORD)
    starts = np.flatnonzero((kind != 0) & ~within_word)
    if not len(starts):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    codes, kind = codes[starts[0] :], kind[starts[0] :]
    starts = starts - (offset := starts[0])
    # A unit's hash is the sum of its characters' hashes, each times an odd number by its place in the unit.
    place = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    character = np.where(kind != 0, codes, 0).astype(np.uint64) * _PLACES[place & 63]
    unit = _mix(np.add.reduceat(character, starts))
    single = kind == _SINGLE
    followed = np.flatnonzero(single[starts] & np.append(single[1:], False)[starts])
    unit[followed] += codes[starts[followed] + 1].astype(np.uint64) * _U64(1 << 32)
    ends = np.cumsum([len(text) + 1 for text in clean])
    return np.searchsorted(ends, starts + offset, side="right"), unit


def unit_grams(
    document: NDArray[np.int64], unit: NDArray[np.uint64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The place of the first unit and the hash of every ``n`` consecutive units of one document."""
    last = max(len(unit) - n + 1, 0)
    first = np.flatnonzero(document[:last] == document[n - 1 :][:last])
    return first, fold_units(unit, n)[first]


def fold_units(unit: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """The hash of every ``n`` consecutive units, whatever text they belong to."""
    last = max(len(unit) - n + 1, 0)
    hashes = np.zeros(last, dtype=np.uint64)
    for k in range(n):
        hashes = _mix(hashes + unit[k : k + last])
    return hashes


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """For each code point of the first plane: part of a word, a separate unit, or neither."""
    kinds = np.array([_WORD if chr(code).isalnum() else 0 for code in range(1 << 16)], dtype=np.uint8)
    for first, last in (*UNSPACED, *UNSPACED_TOO):
        letters = np.array([unicodedata.category(chr(code))[0] in "LMN" for code in range(first, last + 1)])
        kinds[first : last + 1][letters] = _SINGLE
    return np.append(kinds, np.uint8(_SINGLE))  # and every code point of a higher plane


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014)."""
    value = (value ^ (value >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> _U64(27))) * _U64(0x94D049BB133111EB)
    return value ^ (value >> _U64(31))


# Odd multipliers for the places of characters in a unit; from the 65th character on they repeat.
_PLACES = _mix(np.arange(1, 65, dtype=np.uint64)) | _U64(1)

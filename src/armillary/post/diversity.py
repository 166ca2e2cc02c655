"""Measures the diversity of a set of questions, before and after a stage.

Sets of different sizes are comparable: each number is computed on at most ``SAMPLE`` questions per set, and distinct
n-grams on the same number of units in all sets. The result is deterministic, because nothing is drawn at random: the
questions with the smallest hashes are the sample, and k-means starts from the same rows.

- ``distinct``: the share of distinct n-grams among all n-grams, n = 1 to 4 (Li et al. 2016, arXiv 1510.03055). A unit
  is a word, or in Chinese a character with the next one (``corpus.near``).
- ``spread``: the mean of 1 - cosine over all pairs of questions. The embedding is TF-IDF over hashed n-grams of 2 to 4
  characters; callers may pass another one.
- ``coverage``: the share of clusters that contain at least one question. Clusters are found by k-means over all sets
  together.
- ``effective``: the number of equally filled clusters with the same entropy.
- ``types``: the number of questions by domain, family, level and language.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.corpus import text_units, unit_grams
from armillary.post.records import read_records
from armillary.recipe import UsageError

SAMPLE = 2000
CLUSTERS = 32
_DIMENSIONS = 1 << 12
_ROUNDS = 25

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class Diversity:
    """The numbers of one set, as defined above in the module docstring.

    The set has ``items`` questions, and ``sampled`` of them were used.
    """

    items: int
    sampled: int
    distinct: dict[str, float]
    spread: float
    coverage: float
    effective: float
    types: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def compare_diversity(sets: Sequence[Path], embed: Embed | None = None) -> list[Diversity]:
    """The diversity of each file of items, over clusters shared by all files.

    Args:
        sets: one or more files of items; each is read once, in bounded memory.
        embed: returns vectors [n, d] of texts; None for the default.

    Raises:
        UsageError: no file, a file given twice, a file without items, a row that is not an item (names the line), or an
            embedding that does not return one vector per text.
    """
    if not sets:
        raise UsageError("no set of items; give at least one file")
    repeated = [path for path, count in Counter(sets).items() if count > 1]
    if repeated:
        raise UsageError(f"{repeated[0]}: the file is given twice; give each file once")
    read = [_read(path) for path in sets]
    texts = [text for one in read for text in one[1]]
    vectors = (embed or hashed_embedding)(texts)
    if vectors.shape[0] != len(texts):
        raise UsageError(f"the embedding returned {vectors.shape[0]} vectors for {len(texts)} texts")
    labels = _clusters(vectors, min(CLUSTERS, len(texts)))
    units = min(len(text_units(one[1])[1]) for one in read)
    found, start = [], 0
    for count, sampled, types in read:
        part = slice(start, start := start + len(sampled))
        filled = np.bincount(labels[part], minlength=labels.max() + 1)
        shares = filled[filled > 0] / len(sampled)
        found.append(
            Diversity(
                items=count,
                sampled=len(sampled),
                distinct={str(n): _distinct(sampled, n, units) for n in range(1, 5)},
                spread=_spread(vectors[part]),
                coverage=float((filled > 0).mean()),
                effective=float(np.exp(-(shares * np.log(shares)).sum())),
                types={name: dict(sorted(counts.items())) for name, counts in types.items()},
            )
        )
    return found


def hashed_embedding(texts: Sequence[str]) -> Vectors:
    """TF-IDF over hashed n-grams of 2 to 4 characters [n, 4096]: rows of length 1, zeros for a text without n-grams."""
    table = np.zeros((len(texts), _DIMENSIONS), dtype=np.float32)
    for row, text in enumerate(texts):
        codes = np.frombuffer(" ".join(text.lower().split()).encode("utf-32-le", "surrogatepass"), dtype="<u4")
        hashes = codes.astype(np.uint64)
        for n in range(2, 5):
            last = max(len(codes) - n + 1, 0)
            hashes = hashes[:last] * np.uint64(0x9E3779B97F4A7C15) + codes[n - 1 : n - 1 + last]
            columns = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(52)
            table[row] += np.bincount(columns.astype(np.int64), minlength=_DIMENSIONS)
    table = np.log1p(table)
    table *= np.log((1 + len(texts)) / (1 + np.count_nonzero(table, axis=0))).astype(np.float32) + 1
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12).astype(np.float32)
    return table


def _read(path: Path) -> tuple[int, list[str], dict[str, Counter[str]]]:
    """The number of items, a sample of their questions, and their types."""
    count = 0
    # A heap of negated hashes: the largest hash is dropped first, so the smallest hashes stay.
    kept: list[tuple[int, int, str]] = []
    types: dict[str, Counter[str]] = {name: Counter() for name in ("domain", "family", "level", "language")}
    for count, one in enumerate(read_records(path), 1):
        for name, counts in types.items():
            counts[str(one.row.get(name, 0 if name == "level" else ""))] += 1
        text = [turn["content"] for turn in one.turns if turn["role"] == "user"][-1]
        entry = (-int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"), count, text)
        if len(kept) < SAMPLE:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    if not count:
        raise UsageError(f"{path}: has no items; give a file with at least one")
    return count, [text for _, _, text in sorted(kept, key=lambda entry: (-entry[0], entry[1]))], types


def _distinct(texts: Sequence[str], n: int, units: int) -> float:
    """The share of distinct n-grams in the first ``units`` units; 1 if there are none."""
    text, unit = text_units(texts)
    _, grams = unit_grams(text[:units], unit[:units], n)
    return len(np.unique(grams)) / len(grams) if len(grams) else 1.0


def _spread(vectors: Vectors) -> float:
    """Mean of 1 - cosine over all pairs of rows; 0 for a single row."""
    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    n = len(rows)
    total = rows.sum(axis=0, dtype=np.float64)
    return float(1 - (total @ total - (rows * rows).sum(dtype=np.float64)) / (n * (n - 1))) if n > 1 else 0.0


def _clusters(vectors: Vectors, k: int) -> NDArray[np.int64]:
    """The cluster of each row [n], by k-means that starts from rows that are far apart."""
    centres = vectors[[0]]
    nearest = np.full(len(vectors), np.inf)
    while len(centres) < k:
        nearest = np.minimum(nearest, ((vectors - centres[-1]) ** 2).sum(axis=1))
        centres = np.concatenate([centres, vectors[[int(nearest.argmax())]]])
    labels = np.zeros(len(vectors), dtype=np.int64)
    for _ in range(_ROUNDS):
        # The nearest centre: |v - c|^2 without |v|^2, which is the same for all centres.
        new = ((centres**2).sum(axis=1) - 2 * vectors @ centres.T).argmin(axis=1)
        if (new == labels).all() and _:
            break
        labels = new
        for cluster in np.unique(labels):
            centres[cluster] = vectors[labels == cluster].mean(axis=0)
    return labels

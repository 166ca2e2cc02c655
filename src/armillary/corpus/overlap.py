"""Finds items of an examination in training text: by long n-grams, and by passages that nearly repeat them.

The text is split into the units of ``near.py``: words, or pairs of adjacent characters in scripts without spaces, after
Unicode NFC and in lower case. So Chinese is compared by characters, and punctuation and spacing do not matter. Two
numbers measure how much of an item was found:

- ``exact``: the share of its units inside a run of 13 units that also occurs in some document (13-grams: Brown et al.
  2020, arXiv 2005.14165, appendix C).
- ``near``: the largest share of its shingles (3 units) in one passage of at most twice the item's length. It finds an
  item with scattered changed words, which shares no run of 13 units. Shingles that more than 20 items share come from a
  template and do not count.

The items are indexed and the text is read once, so memory depends only on the items.

Not found: translations, paraphrases, and items whose parts are far apart. Items of fewer than 8 units occur in any
large text by chance; they are not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.corpus.near import SHINGLE, text_units, unit_grams

RUN = 13
MIN_UNITS = 8
NEAR = 0.5
TEMPLATE = 20
PASSAGE = 2
BATCH_CHARS = 1 << 20

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Overlap:
    """How much of an item was found: shares from 0 to 1, None for an item that is too short to judge.

    ``document`` names the document with the largest share, "" if nothing was found.
    """

    exact: float | None
    near: float | None
    document: str

    @property
    def contaminated(self) -> bool | None:
        """Whether a run of 13 units or at least half of the shingles was found; None for an item not judged."""
        if self.exact is None or self.near is None:
            return None
        return self.exact > 0 or self.near >= NEAR


def find_overlap(items: Sequence[str], documents: Iterable[tuple[str, str]]) -> list[Overlap]:
    """How much of each item occurs in ``documents``, pairs of a name and a text; in the order of ``items``."""
    index = _Index(items)
    batch: list[tuple[str, str]] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document[1])
        if chars >= BATCH_CHARS:
            index.compare(batch)
            batch, chars = [], 0
    if batch:
        index.compare(batch)
    return index.overlaps()


class _Index:
    """The grams of the items, sorted by hash, with the matches so far."""

    def __init__(self, items: Sequence[str]) -> None:
        item, unit = text_units(items)
        self.units = np.bincount(item, minlength=len(items))
        self.item, self.offset = item, np.searchsorted(item, np.arange(len(items)))
        first, hashes = unit_grams(item, unit, RUN)
        order = np.argsort(hashes, kind="stable")
        self.run_hash, self.run_first = hashes[order], first[order]
        self.run_found = np.zeros(len(order), dtype=bool)

        first, hashes = unit_grams(item, unit, SHINGLE)
        # each shingle of an item once
        pairs = np.unique(np.stack([hashes, item[first].astype(np.uint64)]), axis=1)
        _, place, shared = np.unique(pairs[0], return_inverse=True, return_counts=True)
        pairs = pairs[:, shared[place] <= TEMPLATE]
        self.shingle_hash, self.shingle_item = pairs[0], pairs[1].astype(np.int64)
        self.shingles = np.bincount(self.shingle_item, minlength=len(items))
        self.document = [""] * len(items)
        self._best = np.zeros(len(items))

    def compare(self, documents: Sequence[tuple[str, str]]) -> None:
        """Notes what ``documents`` hold of the items."""
        document, unit = text_units([text for _, text in documents])
        _, hashes = unit_grams(document, unit, RUN)
        found, _ = find_pairs(self.run_hash, np.unique(hashes))
        self.run_found[found] = True

        first, hashes = unit_grams(document, unit, SHINGLE)
        entry, hit = find_pairs(self.shingle_hash, hashes)
        item, at, shingle = self.shingle_item[entry], first[hit], self.shingle_hash[entry]
        order = np.lexsort((at, document[at], item))
        item, at, shingle = item[order], at[order], shingle[order]
        key = item * len(documents) + document[at]
        bounds = np.append(np.flatnonzero(np.diff(key, prepend=-1)), len(key))
        # a passage has at most as many shingles as hits, so most pairs of item and document can be skipped
        many = np.diff(bounds) > self._best[item[bounds[:-1]]] if len(key) else np.zeros(0, dtype=bool)
        for begin, end in zip(bounds[:-1][many], bounds[1:][many], strict=True):
            which = int(item[begin])
            most = _most_in_passage(at[begin:end], shingle[begin:end], PASSAGE * int(self.units[which]))
            if most > self._best[which]:
                self._best[which] = most
                self.document[which] = documents[int(document[at[begin]])][0]

    def overlaps(self) -> list[Overlap]:
        """The result for each item."""
        covered = np.zeros(len(self.item), dtype=bool)
        for k in range(RUN):
            covered[self.run_first[self.run_found] + k] = True
        exact = np.bincount(self.item[covered], minlength=len(self.units)) / np.maximum(self.units, 1)
        near = self._best / np.maximum(self.shingles, 1)
        return [
            Overlap(None, None, "")
            if units < MIN_UNITS
            else Overlap(float(e), float(n), document if e > 0 or n >= NEAR else "")
            for units, e, n, document in zip(self.units, exact, near, self.document, strict=True)
        ]


def find_pairs(sorted_hashes: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> tuple[_Ints, _Ints]:
    """All pairs of places (in ``sorted_hashes``, in ``wanted``) that hold one hash."""
    low = np.searchsorted(sorted_hashes, wanted, side="left")
    count = np.searchsorted(sorted_hashes, wanted, side="right") - low
    hit = np.repeat(np.arange(len(wanted)), count)
    within = np.arange(len(hit)) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(low, count) + within, hit


def _most_in_passage(at: _Ints, shingle: NDArray[np.uint64], length: int) -> int:
    """The most different shingles in a passage of ``length`` units; ``at`` [n] is sorted."""
    ends = np.searchsorted(at, at + length, side="left")
    most = 0
    for begin, end in enumerate(ends):
        if end - begin > most:
            most = max(most, len(np.unique(shingle[begin:end])))
    return most

"""Finds the known item that a text repeats: whole, by a long n-gram, with other numbers, or nearly (cf. `overlap.py`).

The known items are indexed once and texts are streamed, so memory depends only on the items. Four passes examine each
text, and the first pass with a match names the item:

- ``exact``: the whole text is an item's question, up to case, spacing and punctuation of sentences. It finds items of
  any length.
- ``ngram``: 13 consecutive units of an item occur (Brown et al. 2020, arXiv 2005.14165, appendix C). Units are those of
  ``near.py``: words, and in scripts without spaces each character with the next one, so that 13 units are 14 Chinese
  characters. A question of 8 to 12 units must occur as a whole.
- ``masked``: the same in questions, after each number (digits, English words or Chinese numerals) is replaced by one
  sign. It finds the same problem with other numbers. At least 8 of the units must not be numbers. Solutions are not
  compared, because thousands of them contain the step "divide both sides by 3".
- ``near``: MinHash candidates whose shingles (3 units, numbers masked) have a Jaccard similarity of 0.5 or more.

N-grams that more than 20 items share come from a template and do not identify an item; ``near`` still compares whole
texts.

Not found: translations, and paraphrases that leave no run of 13 units and less than half of the shingles.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from armillary.corpus.near import SHINGLE, THRESHOLD, all_band_keys, fold_units, signatures, text_units
from armillary.corpus.overlap import MIN_UNITS, RUN, TEMPLATE, find_pairs

Pass = Literal["exact", "ngram", "masked", "near"]

# Candidates of one text to compare exactly: those that agree in the most bands.
_CANDIDATES = 32
_MASK = " 0 "
_ENGLISH = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    "eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|billion"
)
# Digits of any script with their separators; English and Chinese numerals.
_NUMBERS = re.compile(
    rf"\d+(?:[.,:/]\d+)*|\b(?:{_ENGLISH})(?:(?:[\s-]+|\s+and\s+)(?:{_ENGLISH}))*\b|[〇零一二两三四五六七八九十百千万亿]+"
)
# The letter before a choice, whose form differs between copies of the same question.
_LETTER = re.compile(r"(?:(?<=^)|(?<=\s))[(（]?[A-Ha-h][)）.、:：](?=\s|\S)", re.MULTILINE)

_Ints = NDArray[np.int64]
_Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class KnownItem:
    """An item of an evaluation set: its name, and the texts by which it is recognised.

    ``choices`` are shown with the question; ``solution`` is an answer in sentences, or "". With ``whole_only``, a text
    matches only if it equals the question: for items whose wording others share.
    """

    name: str
    question: str
    choices: tuple[str, ...] = ()
    solution: str = ""
    whole_only: bool = False


@dataclass(frozen=True)
class Match:
    """The item that a text repeats, the pass that found it, and how much of the item was found (0 to 1).

    The share is that of the item's n-grams; for ``near`` it is the Jaccard similarity, for ``exact`` it is 1.
    """

    item: str
    by: Pass
    share: float


class KnownItems:
    """An index of known items. ``near`` is the smallest similarity of a near duplicate."""

    def __init__(self, items: Sequence[KnownItem], near: float = THRESHOLD) -> None:
        self.names = [item.name for item in items]
        self._near = near
        self._exact: dict[bytes, int] = {}
        texts, owner, alone, question = list[str](), list[int](), list[bool](), list[bool]()
        for number, item in enumerate(items):
            whole = "\n".join((item.question, *item.choices))
            self._exact.setdefault(_whole(whole), number)
            if item.whole_only:
                continue
            # A short question such as "Which of these is true?" does not identify an item without its choices.
            parts = [(whole, True), *([(item.question, False)] if item.choices else []), (item.solution, False)]
            for place, (text, judged) in enumerate(parts):
                texts.append(text)
                owner.append(number)
                alone.append(judged)
                question.append(place < len(parts) - 1)
        self._exact.pop(_whole(""), None)
        owners, whole_too = np.array(owner, dtype=np.int64), np.array(alone, dtype=bool)
        self._plain = _Grams(_Units(texts), owners, whole_too)
        asked = np.flatnonzero(np.array(question, dtype=bool))
        masked = _Units([masked_numbers(texts[place]) for place in asked])
        self._masked = _Grams(masked, owners[asked], whole_too[asked])
        # Whole questions, with their choices.
        self._asked = owners[whole_too]
        self._similar = _Similar(_Units([masked_numbers(texts[place]) for place in np.flatnonzero(whole_too)]))

    def match(self, documents: Sequence[Sequence[str]]) -> list[Match | None]:
        """The first match of each document, which consists of texts such as the turns of a conversation."""
        found: list[Match | None] = [None] * len(documents)
        for number, document in enumerate(documents):
            for text in document:
                if (item := self._exact.get(_whole(text))) is not None:
                    found[number] = Match(self.names[item], "exact", 1.0)
                    break
        self._look(found, documents, "ngram")
        self._look(found, documents, "masked")
        self._look(found, documents, "near")
        return found

    def _look(self, found: list[Match | None], documents: Sequence[Sequence[str]], by: Pass) -> None:
        """One pass over the documents that no pass before it has matched."""
        left = [number for number, match in enumerate(found) if match is None]
        texts = [text for number in left for text in documents[number]]
        owner = np.repeat(np.array(left, dtype=np.int64), [len(documents[number]) for number in left])
        if not texts:
            return
        units = _Units(texts if by == "ngram" else [masked_numbers(text) for text in texts])
        if by == "near":
            near = self._similar.pairs(units, owner, self._near)
            pairs: Iterator[tuple[int, int, float]] = (
                (document, int(self._asked[text]), share) for document, text, share in near
            )
        else:
            pairs = (self._plain if by == "ngram" else self._masked).pairs(units, owner)
        best: dict[int, tuple[float, int]] = {}
        for document, item, share in pairs:
            # Of equal shares the first item is named, whatever the batch.
            best[document] = max(best.get(document, (0.0, 0)), (share, -item))
        for document, (share, item) in best.items():
            found[document] = Match(self.names[-item], by, share)


class _Units:
    """The units of texts: arrays ``text`` and ``unit`` [n], and which units are masked numbers."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = [_LETTER.sub(" ", text) for text in texts]
        self.text, self.unit = text_units(self.texts)
        self.number = self.unit == _MASKED_UNIT
        self.lengths = np.bincount(self.text, minlength=len(texts))

    def grams(self, n: int, words: int) -> tuple[_Ints, _Hashes]:
        """First unit and hash of each n-gram in one text that has at least ``words`` units other than numbers."""
        last = max(len(self.unit) - n + 1, 0)
        numbers = np.concatenate([[0], np.cumsum(self.number)])
        good = self.text[:last] == self.text[n - 1 :][:last]
        good &= n - (numbers[n : n + last] - numbers[:last]) >= words
        first = np.flatnonzero(good)
        return first, fold_units(self.unit, n)[first]


class _Grams:
    """The long n-grams of the items, and by length those of the short ones."""

    def __init__(self, units: _Units, owner: _Ints, alone: NDArray[np.bool_]) -> None:
        self._hash: dict[int, _Hashes] = {}
        self._item: dict[int, _Ints] = {}
        self._total: dict[int, _Ints] = {}
        items = int(owner.max(initial=-1)) + 1
        for n in range(MIN_UNITS, RUN + 1):
            first, hashes = units.grams(n, MIN_UNITS)
            text = units.text[first]
            # Shorter n-grams are used only if they are the whole text.
            kept = np.ones(len(first), dtype=bool) if n == RUN else alone[text] & (units.lengths[text] == n)
            pairs = np.unique(np.stack([hashes[kept], owner[text[kept]].astype(np.uint64)]), axis=1)
            _, place, shared = np.unique(pairs[0], return_inverse=True, return_counts=True)
            pairs = pairs[:, shared[place] <= TEMPLATE]
            if pairs.size:
                self._hash[n], self._item[n] = pairs[0], pairs[1].astype(np.int64)
                self._total[n] = np.bincount(self._item[n], minlength=items)

    def pairs(self, units: _Units, owner: _Ints) -> Iterator[tuple[int, int, float]]:
        """Document, item and the share of the item's n-grams in it."""
        for n, known in self._hash.items():
            first, hashes = units.grams(n, MIN_UNITS)
            entry, hit = find_pairs(known, hashes)
            seen = np.unique(np.stack([owner[units.text[first[hit]]], self._item[n][entry], entry]), axis=1)
            pairs, count = np.unique(seen[:2], axis=1, return_counts=True)
            for (document, item), grams in zip(pairs.T.tolist(), count.tolist(), strict=True):
                yield document, item, grams / int(self._total[n][item])


class _Similar:
    """MinHash signatures of the items, one text of each, and their shingles."""

    def __init__(self, units: _Units) -> None:
        self._shingles = _shingle_sets(units)
        keys = all_band_keys(signatures(units.texts))
        order = np.argsort(keys, axis=1, kind="stable")
        self._order, self._keys = order, np.take_along_axis(keys, order, axis=1)

    def pairs(self, units: _Units, owner: _Ints, threshold: float) -> Iterator[tuple[int, int, float]]:
        """Document, number of the known text, and their similarity, from ``threshold`` on."""
        shingles = _shingle_sets(units)
        keys = all_band_keys(signatures(units.texts))
        agreed = []
        for band, known in enumerate(self._keys):
            entry, hit = find_pairs(known, np.where(keys[band] == 0, ~np.uint64(0), keys[band]))
            agreed.append(np.stack([hit, self._order[band][entry]]))
        pairs, bands = np.unique(np.concatenate(agreed, axis=1), axis=1, return_counts=True)
        order = np.lexsort((-bands, pairs[0]))
        text, known_text = pairs[:, order]
        rank = np.arange(len(text)) - np.searchsorted(text, text)
        for mine, other in zip(text[rank < _CANDIDATES].tolist(), known_text[rank < _CANDIDATES].tolist(), strict=True):
            a, b = shingles[mine], self._shingles[other]
            if min(len(a), len(b)) < MIN_UNITS - SHINGLE + 1:
                continue
            both = len(np.intersect1d(a, b, assume_unique=True))
            if both >= threshold * (len(a) + len(b) - both):
                yield int(owner[mine]), other, both / (len(a) + len(b) - both)


def masked_numbers(text: str) -> str:
    """``text`` with one sign for each number in digits, in English words or in Chinese numerals, in lower case."""
    return _NUMBERS.sub(_MASK, unicodedata.normalize("NFKC", text).lower())


def similarity(texts: Sequence[str]) -> NDArray[np.float64]:
    """The Jaccard similarity of the shingles of each two texts [n, n], numbers kept; 1 for texts of the same units.

    Texts of fewer than three units have no shingles: two of them are alike where their units are equal, else 0.
    """
    units = _Units(texts)
    first, hashes = units.grams(SHINGLE, 0)
    sets = [np.unique(hashes[units.text[first] == number]) for number in range(len(texts))]
    whole = [units.unit[units.text == number].tobytes() for number in range(len(texts))]
    result = np.eye(len(texts))
    for i, a in enumerate(sets):
        for j in range(i):
            both = len(np.intersect1d(a, sets[j], assume_unique=True))
            union = len(a) + len(sets[j]) - both
            result[i, j] = result[j, i] = 1.0 if whole[i] == whole[j] else both / union if union else 0.0
    return result


def _shingle_sets(units: _Units) -> list[_Hashes]:
    """The different shingles of each text with at most one number in them."""
    first, hashes = units.grams(SHINGLE, SHINGLE - 1)
    bounds = np.searchsorted(units.text[first], np.arange(len(units.texts) + 1))
    return [np.unique(hashes[start:end]) for start, end in itertools.pairwise(bounds)]


_MASKED_UNIT = text_units([_MASK])[1][0]


def _whole(text: str) -> bytes:
    """A hash of a text without spaces and the punctuation of sentences; signs of formulas count."""
    clean = unicodedata.normalize("NFKC", _LETTER.sub(" ", text)).lower()
    # A full stop between digits is part of a number.
    clean = re.sub(r"[\s,;:!?。、“”‘’\"'·…—《》]+|\.(?!\d)", "", clean)
    return hashlib.blake2b(clean.encode("utf-8", "surrogatepass"), digest_size=16).digest()

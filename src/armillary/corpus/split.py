"""Which documents train, which validate, and which are dropped: decided by their hashes alone.

A duplicate has the hash of its twin, so it can never stand on the other side; and a document keeps its side when
others join the domain, as long as its hash lies under ``validation_share``. Trade-off: what is held out beyond
``validation_chars`` is used in neither split, for the sake of that stability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.corpus.documents import HASH_BYTES
from armillary.recipe import UsageError

DUPLICATE, TRAIN, VALIDATION, SET_ASIDE = range(4)


@dataclass(frozen=True)
class DomainDocuments:
    """The documents of a domain in order: hashes (bytes, ``S16``), and lengths in characters."""

    name: str
    train: bool
    hashes: NDArray[np.bytes_]
    chars: NDArray[np.int64]


def split_documents(domains: Sequence[DomainDocuments], share: float, validation_chars: int) -> list[NDArray[np.uint8]]:
    """For each domain the fate of its documents: DUPLICATE, TRAIN, VALIDATION or SET_ASIDE.

    Of equal documents the first stays: those of examined domains count before those of training domains, then the
    order of the domains decides. In a training domain the documents with the lowest ``share`` of all possible hashes
    are held out, at least one and never all; in an examined one all are. Of these the lowest hashes validate, until
    they have ``validation_chars`` characters.

    Raises:
        UsageError: a training domain with fewer than two different documents, or an examined one with none left.
    """
    order = sorted(range(len(domains)), key=lambda i: domains[i].train)
    everything = np.concatenate([domains[i].hashes for i in order])
    is_first = np.zeros(len(everything), dtype=bool)
    is_first[np.unique(everything, return_index=True)[1]] = True
    limit = np.bytes_(min(int(share * 2**64), 2**64 - 1).to_bytes(8, "big").ljust(HASH_BYTES, b"\0"))
    fates: list[NDArray[np.uint8]] = [np.empty(0, dtype=np.uint8)] * len(domains)
    start = 0
    for i in order:
        domain = domains[i]
        kept = np.flatnonzero(is_first[start : start + len(domain.hashes)])
        start += len(domain.hashes)
        if len(kept) < (2 if domain.train else 1):
            raise UsageError(
                f"domain '{domain.name}': {len(kept)} of its {len(domain.hashes)} documents differ from each other "
                f"and from those of the domains before it; "
                + ("training needs one and validation another: " if domain.train else "validation needs one: ")
                + "give it more text, or lower corpus.max_document_chars so that long documents are cut"
            )
        by_hash = kept[np.argsort(domain.hashes[kept], kind="stable")]
        held_out = len(kept)
        if domain.train:
            below = int(np.count_nonzero(domain.hashes[kept] < limit))
            held_out = min(max(below, 1), len(kept) - 1)
        chars_before = np.cumsum(domain.chars[by_hash[:held_out]]) - domain.chars[by_hash[:held_out]]
        fate = np.full(len(domain.hashes), DUPLICATE, dtype=np.uint8)
        fate[by_hash[:held_out]] = np.where(chars_before < validation_chars, VALIDATION, SET_ASIDE)
        fate[by_hash[held_out:]] = TRAIN
        fates[i] = fate
    return fates

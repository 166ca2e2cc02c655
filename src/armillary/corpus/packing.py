"""Packs items into sequences and draws sequences for a step: a pure function of seed and step (contract 2).

All items (examples, pairs) are packed once. They are taken longest first, in an order keyed by the seed, each into the
fullest sequence that still has room (best-fit decreasing; Coffman, Garey, Johnson 1984, section 2.2). An epoch is a
keyed permutation of these sequences. So sequence ``n`` of a run is known without iterating over the run. Every item is
drawn exactly once per epoch, and none is cut or attends to another.

Trade-off: the same items share a sequence in every epoch, which only affects which items are in the same batch.
"""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

from armillary.corpus.permutation import keyed_hash, permute


class Packing:
    """Items of ``lengths`` tokens, at least 2 and at most ``room``, in sequences of ``room`` tokens.

    ``rows`` are the items of each sequence. ``name`` is the hash of the set, which is part of the key of its order.
    """

    def __init__(self, lengths: NDArray[np.int64], room: int, seed: int, name: str) -> None:
        self.seed, self.name = seed, name
        count = len(lengths)
        key = np.full(count, keyed_hash(seed, "examples", name), dtype=np.uint64)
        shuffled = permute(np.arange(count), np.full(count, count), key)
        self.rows = _pack(shuffled[np.argsort(-lengths[shuffled], kind="stable")], lengths, room)

    def drawn(self, step: int, sequences: int) -> NDArray[np.int64]:
        """Which ``rows`` are the ``sequences`` of a step."""
        count = len(self.rows)
        epoch, place = np.divmod(step * sequences + np.arange(sequences), count)
        keys = [keyed_hash(self.seed, "epoch", self.name, number) for number in epoch.tolist()]
        return permute(place, np.full(len(place), count), np.array(keys, dtype=np.uint64))


def _pack(order: NDArray[np.int64], lengths: NDArray[np.int64], room: int) -> list[NDArray[np.int64]]:
    """Put items into rows of ``room`` tokens, in ``order``, each into the fullest row that has room for it."""
    rows: list[list[int]] = []
    free: dict[int, list[int]] = {}  # rows by the room that they have left
    known: list[int] = []  # the keys of ``free``, growing
    for index in order.tolist():
        length = int(lengths[index])
        at = bisect.bisect_left(known, length)
        if at < len(known):
            left = known[at]
            row = free[left].pop()
            if not free[left]:
                del free[left]
                known.pop(at)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(index)
        left -= length
        if left >= 2:  # nothing is shorter
            if left not in free:
                bisect.insort(known, left)
            free.setdefault(left, []).append(row)
    return [np.array(row, dtype=np.int64) for row in rows]

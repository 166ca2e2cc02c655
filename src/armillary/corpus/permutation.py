"""Keyed permutations of any size: every index once, in an order that a key decides, without storing the order.

Trade-off: a small Feistel network shuffles well and costs some dozen array operations; it is no cipher.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6


def permutation_keys(*parts: object) -> list[int]:
    """Round keys of ``permute``, by a hash of the parts."""
    return [keyed_hash(*parts, round_) for round_ in range(ROUNDS)]


def permute(index: NDArray[np.int64], size: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where a keyed permutation of ``range(size)`` sends ``index``; all element-wise, ``keys`` is [n, ROUNDS].

    A Feistel network over mixed radices a x b >= size, walking on until the result lies below size (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains", methods 2 and 3). As a b < size + a, a walk is rare.
    """
    a = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    b = (size.astype(np.uint64) + a - np.uint64(1)) // a
    limit = size.astype(np.uint64)
    value = _feistel(index.astype(np.uint64), a, b, keys)
    while True:
        outside = np.flatnonzero(value >= limit)
        if not len(outside):
            return value.astype(np.int64)
        value[outside] = _feistel(value[outside], a[outside], b[outside], keys[outside])


def _feistel(
    value: NDArray[np.uint64], a: NDArray[np.uint64], b: NDArray[np.uint64], keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    left, right = np.divmod(value, b)
    for round_ in range(0, ROUNDS, 2):
        left = (left + _mix(right ^ keys[:, round_])) % a
        right = (right + _mix(left ^ keys[:, round_ + 1])) % b
    return left * b + right


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014), halved so that a sum with it does not overflow."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) >> np.uint64(1)


def keyed_hash(*parts: object) -> int:
    """64 bits from a hash of the parts; stable across machines and versions."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")

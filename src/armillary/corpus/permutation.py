"""Keyed permutations of any size: every index once, in an order that depends on a key and is not stored.

Trade-off: a small Feistel network shuffles well and needs some dozen array operations, but it is not a secure cipher.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the step of SplitMix64


def keyed_hash(*parts: object) -> int:
    """64 bits from a hash of the parts; the same on every machine and in every version."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def permute(index: NDArray[np.int64], size: NDArray[np.int64], key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The image of ``index`` under the permutation of ``range(size)`` with ``key``; all [n], element by element.

    A Feistel network over mixed radices ``a * b >= size``, walked on until the result lies below ``size`` (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains", methods 2 and 3). As ``a * b < size + a``, a walk is rare.
    """
    limit = size.astype(np.uint64)
    a = np.ceil(np.sqrt(size)).astype(np.uint64)
    b = (limit + a - np.uint64(1)) // a
    value = _feistel(index.astype(np.uint64), a, b, key)
    while len(outside := np.flatnonzero(value >= limit)):
        value[outside] = _feistel(value[outside], a[outside], b[outside], key[outside])
    return value.astype(np.int64)


def _feistel(
    value: NDArray[np.uint64], a: NDArray[np.uint64], b: NDArray[np.uint64], key: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    left, right = np.divmod(value, b)
    for _ in range(0, ROUNDS, 2):
        key = key + np.uint64(GOLDEN)
        left = (left + _mix(right ^ key)) % a
        key = key + np.uint64(GOLDEN)
        right = (right + _mix(left ^ key)) % b
    return left * b + right


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014), halved so that a sum with it does not overflow."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) >> np.uint64(1)

"""Pairs of a preferred and a rejected answer: token ids, weights and reference, stored beside a corpus.

A set of pairs belongs to the corpus whose tokenizer made its tokens, and is named by its content hash::

    CORPUS/pairs/HASH/
        manifest.json   how many pairs and tokens, hash of the reference model's weights, sha256 of every file; sealed
        tokens.bin      token ids of all answers with their prompts, chosen before rejected, in the corpus's type
        weights.bin     fp32 per token: 1 in the answer, else 0
        ends.bin        int64 per answer: its end in tokens.bin and weights.bin
        reference.bin   fp64 per answer: its log-probability under the reference

The reference is computed once, with the initial weights of the runs on these pairs. The hash of these weights is part
of the set, so a run that starts from other weights is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.corpus.examples import Example, checked, stored
from armillary.corpus.sets import SetKind, open_set, write_set
from armillary.corpus.shards import Corpus
from armillary.recipe import UsageError

PAIRS = SetKind(
    "pairs", ("tokens.bin", "weights.bin", "ends.bin", "reference.bin"), "corpus.write_pairs", hashed=("start",)
)


@dataclass(frozen=True)
class Pair:
    """Two answers, each behind its prompt, and the log-probability of each under the reference, in nats.

    Both are stored unchanged and must include their end token. Weights are 1 in the answer and 0 elsewhere.
    """

    chosen: Example
    rejected: Example
    reference: tuple[float, float]


class Pairs:
    """An opened set of pairs. ``write_pairs`` and ``open_pairs`` return one."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.hash, self.name = path, str(manifest["hash"]), str(manifest["name"])
        self.start = str(manifest["start"])
        self.tokens: NDArray[Any] = np.fromfile(
            path / "tokens.bin", dtype=np.dtype(manifest["dtype"]).newbyteorder("<")
        )
        self.weights: NDArray[np.float32] = np.fromfile(path / "weights.bin", dtype="<f4")
        self.ends: NDArray[np.int64] = np.fromfile(path / "ends.bin", dtype="<i8").reshape(-1, 2)
        self.reference: NDArray[np.float64] = np.fromfile(path / "reference.bin", dtype="<f8").reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each answer with its prompt [pairs, 2]."""
        return np.diff(self.ends.ravel(), prepend=0).reshape(-1, 2)

    def parts(self, index: int) -> tuple[slice, slice]:
        """The slices of the two answers of pair ``index`` in ``tokens`` and ``weights``."""
        middle, end = self.ends[index].tolist()
        return slice(int(self.ends[index - 1, 1]) if index else 0, middle), slice(middle, end)


def write_pairs(corpus: Corpus, name: str, start: str, pairs: Iterable[Pair]) -> Pairs:
    """Write ``pairs`` beside ``corpus`` and open them; writing the same pairs again gives the same set.

    ``start`` is the SHA-256 of the weights of the reference (``train.start_from``). ``name`` names the
    set in messages and results.

    Raises:
        UsageError: there are no pairs, or one of them is invalid: a token outside the vocabulary, weights other than 0
            and 1, an answer without a predictable token, an end of weight 0, or a reference that is not a
            log-probability.
        ArmillaryError: the files cannot be written.
    """

    def fill(folder: Path) -> dict[str, Any]:
        ends: list[int] = []
        references: list[tuple[float, float]] = []
        total = 0
        with open(folder / "tokens.bin", "wb") as tokens_file, open(folder / "weights.bin", "wb") as weights_file:
            for number, pair in enumerate(pairs):
                for side in ("chosen", "rejected"):
                    where = f"pair {number} of '{name}', {side}"
                    tokens, weights = _answer(getattr(pair, side), corpus, where)
                    tokens_file.write(stored(tokens, corpus).tobytes())
                    weights_file.write(weights.astype("<f4").tobytes())
                    ends.append(total := total + len(tokens))
                if not all(math.isfinite(value) and value <= 0 for value in pair.reference):
                    raise UsageError(
                        f"pair {number} of '{name}': reference is {pair.reference}, but log-probabilities must be "
                        "finite and at most 0; compute it with the weights that the run starts from "
                        "(train.answer_log_probs)"
                    )
                references.append(pair.reference)
        if not ends:
            raise UsageError(f"'{name}': no pairs; give at least one")
        np.array(ends, dtype="<i8").tofile(folder / "ends.bin")
        np.array(references, dtype="<f8").tofile(folder / "reference.bin")
        return {"start": start, "pairs": len(references), "tokens": total}

    return open_pairs(corpus, write_set(PAIRS, corpus, name, fill))


def _answer(example: Example, corpus: Corpus, where: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """An answer with its prompt, in stored form."""
    tokens, weights = checked(example.tokens, example.weights, corpus, where)
    if not np.isin(weights, (0.0, 1.0)).all():
        raise UsageError(f"{where}: weights must be 0 or 1, found {weights.min()} to {weights.max()}")
    if len(tokens) < 2 or weights[-1] == 0:
        raise UsageError(f"{where}: must have two tokens or more and end with a weighted token of the answer")
    weights[0] = 0.0  # no token of the answer's document predicts it
    return tokens, weights


def open_pairs(corpus: Corpus, name: str) -> Pairs:
    """The set of ``corpus`` with the hash ``name``; its files are compared with the manifest.

    Raises:
        UsageError: the corpus has no such set.
        DamagedFileError: a file is missing, torn or changed.
        ForeignFileError: it is of a newer format, or belongs to another corpus.
        ArmillaryError: a file cannot be read.
    """
    return open_set(PAIRS, corpus, name, Pairs)

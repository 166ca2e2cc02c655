"""Supervised examples: token ids and the weight of each in the loss, stored beside a corpus.

A set of examples belongs to the corpus whose tokenizer made its tokens, and is named by its content hash::

    CORPUS/examples/HASH/
        manifest.json   how many examples and tokens, sha256 of every file; sealed
        tokens.bin      token ids of all examples, one behind the other, in the corpus's type
        weights.bin     fp32 per token
        ends.bin        int64 per example: its end in tokens.bin and weights.bin

Every example ends with the corpus's end-of-text token, which has a nonzero weight, so that the model learns to stop.
The weight of an example's first token has no effect, because no token of the example predicts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.corpus.sets import SetKind, open_set, write_set
from armillary.corpus.shards import Corpus
from armillary.recipe import UsageError

EXAMPLES = SetKind("examples", ("tokens.bin", "weights.bin", "ends.bin"), "corpus.write_examples")


@dataclass(frozen=True)
class Example:
    """Token ids and the weight of each in the loss: 0 for given tokens, such as a prompt."""

    tokens: Sequence[int]
    weights: Sequence[float]


class Examples:
    """An opened set of examples. ``write_examples`` and ``open_examples`` return one."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.hash, self.name = path, str(manifest["hash"]), str(manifest["name"])
        self.tokens: NDArray[Any] = np.fromfile(
            path / "tokens.bin", dtype=np.dtype(manifest["dtype"]).newbyteorder("<")
        )
        self.weights: NDArray[np.float32] = np.fromfile(path / "weights.bin", dtype="<f4")
        self.ends: NDArray[np.int64] = np.fromfile(path / "ends.bin", dtype="<i8")

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return np.diff(self.ends, prepend=0)

    def part(self, index: int) -> slice:
        """The slice of example ``index`` in ``tokens`` and ``weights``."""
        return slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))


def write_examples(corpus: Corpus, name: str, examples: Iterable[Example]) -> Examples:
    """Write ``examples`` beside ``corpus`` and open them; writing the same examples again gives the same set.

    An example that does not end with the corpus's end-of-text token gets one, with weight 1. ``name`` is the set's name
    in results.

    Raises:
        UsageError: there are no examples, or one of them is invalid: a token outside the vocabulary, not one finite
            weight of at least 0 per token, no token before its end, or an end of weight 0.
        ArmillaryError: the files cannot be written.
    """

    def fill(folder: Path) -> dict[str, Any]:
        ends, total = [], 0
        with open(folder / "tokens.bin", "wb") as tokens_file, open(folder / "weights.bin", "wb") as weights_file:
            for number, example in enumerate(examples):
                where = f"example {number} of '{name}'"
                given = checked(example.tokens, example.weights, corpus, where)
                tokens, weights = _ended(*given, corpus.manifest.end_of_text_id, where)
                tokens_file.write(stored(tokens, corpus).tobytes())
                weights_file.write(weights.astype("<f4").tobytes())
                ends.append(total := total + len(tokens))
        if not ends:
            raise UsageError(f"'{name}': no examples; give at least one")
        np.array(ends, dtype="<i8").tofile(folder / "ends.bin")
        return {"examples": len(ends), "tokens": total}

    return open_examples(corpus, write_set(EXAMPLES, corpus, name, fill))


def checked(
    tokens: Sequence[int], weights: Sequence[float], corpus: Corpus, where: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Tokens and weights as arrays, compared with each other and with the vocabulary; ``where`` is for errors."""
    ids, factors = np.asarray(tokens, dtype=np.int64), np.asarray(weights, dtype=np.float32)
    if ids.ndim != 1 or ids.shape != factors.shape:
        raise UsageError(f"{where}: {ids.size} tokens have {factors.size} weights; give one weight for each token")
    if not (np.isfinite(factors) & (factors >= 0)).all():
        raise UsageError(f"{where}: weights must be finite and at least 0, found {factors.min()} to {factors.max()}")
    outside = ids[(ids < 0) | (ids >= corpus.vocab_size)]
    if outside.size:
        raise UsageError(
            f"{where}: token {outside[0]} is outside the corpus's vocabulary (0 to {corpus.vocab_size - 1}); "
            "encode it with the corpus's tokenizer"
        )
    return ids, factors


def stored(tokens: NDArray[np.int64], corpus: Corpus) -> NDArray[Any]:
    """Tokens in the type of the files."""
    return tokens.astype(np.dtype(corpus.manifest.dtype).newbyteorder("<"))


def _ended(
    tokens: NDArray[np.int64], weights: NDArray[np.float32], end: int, where: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The example with an end-of-text token of nonzero weight."""
    if not tokens.size or tokens[-1] != end:
        tokens, weights = np.append(tokens, end), np.append(weights, np.float32(1.0))
    if len(tokens) < 2:
        raise UsageError(f"{where}: has no token before its end; leave it out")
    if weights[-1] == 0:
        raise UsageError(f"{where}: its end of text has the weight 0, so the model would not learn to stop; give it 1")
    return tokens, weights


def open_examples(corpus: Corpus, name: str) -> Examples:
    """The set of ``corpus`` with the hash ``name``; its files are compared with the manifest.

    Raises:
        UsageError: the corpus has no such set.
        DamagedFileError: a file is missing, torn or changed.
        ForeignFileError: it is of a newer format, or belongs to another corpus.
        ArmillaryError: a file cannot be read.
    """
    return open_set(EXAMPLES, corpus, name, Examples)

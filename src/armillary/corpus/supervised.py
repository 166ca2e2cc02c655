"""The order of supervised examples: whole examples packed into sequences, each once per epoch (contract 2).

All examples are packed once: drawn in an order keyed by the seed, the longest first, each into the sequence with the
least room that still holds it (best-fit decreasing; Coffman, Garey, Johnson 1984, section 2.2). An epoch is a keyed
permutation of these sequences. So sequence ``n`` of a run is known without walking through it, every example is drawn
exactly once per epoch, and none is cut or shares an attention with another.

Trade-off: the same examples share a sequence in every epoch, which changes nothing but the batch in which they meet.
"""

from __future__ import annotations

import bisect
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from armillary.corpus.batch import Batch
from armillary.corpus.examples import Examples, open_examples
from armillary.corpus.permutation import keyed_hash, permute
from armillary.corpus.shards import Corpus
from armillary.recipe import RunSpec, Supervised, UsageError


class SupervisedOrder:
    """The batches of a run over ``examples``: tokens, weights and documents.

    Raises:
        UsageError: an example has more tokens than a sequence, which is context_length + 1.
    """

    def __init__(self, examples: Examples, *, seed: int, context_length: int, batch_sequences: int, pad: int) -> None:
        self.examples, self.seed, self._pad = examples, seed, pad
        self.context_length, self.batch_sequences = context_length, batch_sequences
        lengths = examples.lengths
        if (longest := int(lengths.max())) > context_length + 1:
            count = int((lengths > context_length + 1).sum())
            raise UsageError(
                f"examples '{examples.name}' ({examples.hash}): {count} of {len(examples)} have more than "
                f"context_length + 1 = {context_length + 1} tokens, the longest {longest}; raise context_length to "
                f"{longest - 1} or leave them out"
            )
        index = np.arange(len(examples))
        key = np.full(len(examples), keyed_hash(seed, "examples", examples.hash), dtype=np.uint64)
        shuffled = permute(index, np.full(len(examples), len(examples)), key)
        self._rows = _pack(shuffled[np.argsort(-lengths[shuffled], kind="stable")], lengths, context_length + 1)
        # the first token of an example is predicted by none
        firsts = examples.ends - lengths
        each = np.add.reduceat(examples.weights.astype(np.float64), firsts) - examples.weights[firsts]
        self._weights = np.array([each[row].sum() for row in self._rows])

    @classmethod
    def of(cls, spec: RunSpec, corpus: Corpus) -> Self:
        """The batches of the run ``spec``, whose objective is ``Supervised``, over examples of ``corpus``."""
        assert isinstance(spec.objective, Supervised)
        sizes = {"context_length": spec.context_length, "batch_sequences": spec.batch_sequences}
        examples = open_examples(corpus, spec.objective.examples)
        return cls(examples, seed=spec.seed, pad=corpus.manifest.end_of_text_id, **sizes)

    def batch(self, step: int) -> Batch[NDArray[Any]]:
        """The batch of ``step``; a sequence's rest that no example fills is one more document, of weight 0."""
        size = (self.batch_sequences, self.context_length)
        tokens = np.full((size[0], size[1] + 1), self._pad, dtype=np.int64)
        weights, documents = np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.int64)
        for row, drawn in enumerate(self._drawn(step)):
            at = 0
            for number, index in enumerate(self._rows[drawn].tolist()):
                part = self.examples.part(index)
                end = at + part.stop - part.start
                tokens[row, at:end] = self.examples.tokens[part]
                weights[row, at : end - 1] = self.examples.weights[part][1:]
                documents[row, at:end] = number
                at = end
            documents[row, at:] = len(self._rows[drawn])
        return Batch(tokens, weights, documents, weight=self.weight(step))

    def weight(self, step: int) -> float:
        """Sum of the weights of the batch of ``step``."""
        return float(self._weights[self._drawn(step)].sum())

    def epochs(self, steps: int) -> dict[str, float]:
        """Passes over the examples in the first ``steps`` steps."""
        return {self.examples.name: steps * self.batch_sequences / len(self._rows)}

    def _drawn(self, step: int) -> NDArray[np.int64]:
        """Numbers of the packed sequences of a step."""
        count = len(self._rows)
        epoch, place = np.divmod(step * self.batch_sequences + np.arange(self.batch_sequences), count)
        keys = [keyed_hash(self.seed, "epoch", self.examples.hash, number) for number in epoch.tolist()]
        return permute(place, np.full(len(place), count), np.array(keys, dtype=np.uint64))


def _pack(order: NDArray[np.int64], lengths: NDArray[np.int64], room: int) -> list[NDArray[np.int64]]:
    """Examples into rows of ``room`` tokens, in ``order``, each into the row with the least room that holds it."""
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
        if left >= 2:  # no example is shorter
            if left not in free:
                bisect.insort(known, left)
            free.setdefault(left, []).append(row)
    return [np.array(row, dtype=np.int64) for row in rows]

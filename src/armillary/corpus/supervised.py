"""The order of supervised examples: whole examples packed into sequences, each once per epoch (see ``packing``)."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from armillary.corpus.batch import Batch
from armillary.corpus.examples import Examples, open_examples
from armillary.corpus.packing import Packing
from armillary.corpus.shards import Corpus
from armillary.recipe import RunSpec, Supervised, UsageError


class SupervisedOrder:
    """The batches of a run over ``examples``: tokens, weights and documents.

    Raises:
        UsageError: an example has more tokens than a sequence (context_length + 1).
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
        self._packing = Packing(lengths, context_length + 1, seed, examples.hash)
        self._rows = self._packing.rows
        # no token predicts the first token of an example
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
        """The batch of ``step``; the padding of a sequence is one more document with zero weights."""
        size = (self.batch_sequences, self.context_length)
        tokens = np.full((size[0], size[1] + 1), self._pad, dtype=np.int64)
        weights, documents = np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.int64)
        for row, drawn in enumerate(self._packing.drawn(step, self.batch_sequences)):
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

    def samples(self, step: int) -> list[list[str]]:
        """The examples in each sequence of the batch of ``step``, in the order of the numbers in ``Batch.documents``.

        An example is named by its place in the set, counted from 1.
        """
        drawn = self._packing.drawn(step, self.batch_sequences)
        return [[f"example {index + 1}" for index in self._rows[row].tolist()] for row in drawn]

    def weight(self, step: int) -> float:
        """Sum of the weights of the batch of ``step``."""
        return float(self._weights[self._packing.drawn(step, self.batch_sequences)].sum())

    @property
    def sequences(self) -> int:
        """How many packed sequences an epoch has."""
        return len(self._rows)

    def epochs(self, steps: int) -> dict[str, float]:
        """Passes over the examples in the first ``steps`` steps."""
        return {self.examples.name: steps * self.batch_sequences / len(self._rows)}

"""The order of pairs of answers: both answers of a pair are in one sequence, each pair once per epoch (`packing`).

No pair is split over sequences, so any rank can compute the loss of its pairs in any micro-batch, under every layout.
Trade-off: a sequence must hold both answers, and the prompt twice. The answers do not attend to each other, so the cost
of attention is not quadratic in the sequence.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from armillary.corpus.batch import Batch
from armillary.corpus.packing import Packing
from armillary.corpus.pairs import Pairs, open_pairs
from armillary.corpus.shards import Corpus
from armillary.recipe import Preference, RunSpec, UsageError


class PreferenceOrder:
    """The batches of a run over ``pairs``: tokens, weights, documents and reference.

    Raises:
        UsageError: a pair has more tokens than a sequence (context_length + 1).
    """

    def __init__(self, pairs: Pairs, *, seed: int, context_length: int, batch_sequences: int, pad: int) -> None:
        self.pairs, self._pad = pairs, pad
        self.context_length, self.batch_sequences = context_length, batch_sequences
        lengths = pairs.lengths.sum(1)
        if (longest := int(lengths.max())) > context_length + 1:
            count = int((lengths > context_length + 1).sum())
            raise UsageError(
                f"pairs '{pairs.name}' ({pairs.hash}): {count} of {len(pairs)} have more than context_length + 1 = "
                f"{context_length + 1} tokens in both answers with their prompts together, the longest {longest}; "
                f"raise context_length to {longest - 1} or leave them out"
            )
        self._packing = Packing(lengths, context_length + 1, seed, pairs.hash)
        self._rows = self._packing.rows
        answers = np.add.reduceat(pairs.weights.astype(np.float64), (pairs.ends - pairs.lengths).ravel()).reshape(-1, 2)
        self._answers = np.array([answers[row].sum(0) for row in self._rows])
        self._counts = np.array([len(row) for row in self._rows])

    @classmethod
    def of(cls, spec: RunSpec, corpus: Corpus) -> Self:
        """The batches of the run ``spec``, whose objective is ``Preference``, over pairs of ``corpus``.

        Raises:
            UsageError: the run starts from other weights than those of the reference, or has a z-loss.
        """
        assert isinstance(spec.objective, Preference)
        pairs = open_pairs(corpus, spec.objective.examples)
        if spec.start is None or spec.start.sha256 != pairs.start:
            other = "no start" if spec.start is None else f"start.sha256 {spec.start.sha256}"
            raise UsageError(
                f"pairs '{pairs.name}' ({pairs.hash}): their reference log-probabilities come from the weights with "
                f"SHA-256 {pairs.start}, but the run has {other}; start from those weights, or write a new set of "
                "pairs with the log-probabilities of this start (corpus.write_pairs)"
            )
        if spec.optimizer.z_loss:
            raise UsageError(
                f"optimizer.z_loss ({spec.optimizer.z_loss:g}) does not apply to the loss of pairs; set it to 0 with "
                "objective 'preference'"
            )
        sizes = {"context_length": spec.context_length, "batch_sequences": spec.batch_sequences}
        return cls(pairs, seed=spec.seed, pad=corpus.manifest.end_of_text_id, **sizes)

    def batch(self, step: int) -> Batch[NDArray[Any]]:
        """The batch of ``step``; the unused rest of a sequence is one more document, of weight 0."""
        size = (self.batch_sequences, self.context_length)
        tokens = np.full((size[0], size[1] + 1), self._pad, dtype=np.int64)
        weights, reference = np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.float32)
        documents = np.zeros(size, dtype=np.int64)
        drawn = self._packing.drawn(step, self.batch_sequences)
        for row, number in enumerate(drawn):
            at = 0
            for place, index in enumerate(self._rows[number].tolist()):
                for side, part in enumerate(self.pairs.parts(index)):
                    end = at + part.stop - part.start
                    tokens[row, at:end] = self.pairs.tokens[part]
                    weights[row, at : end - 1] = self.pairs.weights[part][1:]
                    documents[row, at:end] = 2 * place + side
                    # at a single position, so that summing over the document adds nothing else
                    first = at + int(self.pairs.weights[part][1:].argmax())
                    reference[row, first] = self.pairs.reference[index, side]
                    at = end
            documents[row, at:] = 2 * len(self._rows[number])
        chosen, rejected = self._answers[drawn].sum(0).tolist()
        pairs = float(self._counts[drawn].sum())
        return Batch(tokens, weights, documents, reference, weight=pairs, answers=(chosen, rejected))

    def samples(self, step: int) -> list[list[str]]:
        """The answers in each sequence of the batch of ``step``, in the order of the numbers in ``Batch.documents``.

        An answer is named by its side and the place of its pair in the set, counted from 1.
        """
        drawn = self._packing.drawn(step, self.batch_sequences)
        return [
            [f"pair {index + 1}, {side}" for index in self._rows[row].tolist() for side in ("chosen", "rejected")]
            for row in drawn
        ]

    def weight(self, step: int) -> float:
        """Pairs in the batch of ``step``."""
        return float(self._counts[self._packing.drawn(step, self.batch_sequences)].sum())

    @property
    def sequences(self) -> int:
        """How many packed sequences an epoch has."""
        return len(self._rows)

    def epochs(self, steps: int) -> dict[str, float]:
        """Passes over the pairs in the first ``steps`` steps."""
        return {self.pairs.name: steps * self.batch_sequences / len(self._rows)}

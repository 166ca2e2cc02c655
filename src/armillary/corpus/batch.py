"""The batch of a training step, and the protocol of data orders (contract 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Batch(Generic[A]):
    """The batch of one step, in arrays of NumPy or of another library (``map``).

    ``tokens`` [B, T + 1] (int64): every token is the input for a prediction of the next one. ``weights`` [B, T] (fp32)
    multiply the losses of the predictions (None: all are 1). A target of weight 0 may be any number. ``documents`` [B,
    T] (int64) numbers the documents of the inputs ``tokens[:, :-1]`` (None: each sequence is one document). The tokens
    of a document are adjacent, do not attend to other documents, and count their positions from 0.

    ``weight`` is the divisor of all losses: the sum of the weights of the *global* batch, or the number of its pairs.
    A part of a batch keeps it (``map``), so every rank divides by the same number without communication.

    In a batch of pairs (``PreferenceOrder``), a sequence holds whole pairs: document 2 i is a prompt with the chosen
    answer, and document 2 i + 1 the same prompt with the rejected answer. Weights are 1 for answers and 0 for prompts.
    The sum of ``reference`` [B, T] (fp32) over a document is the log-probability of its answer under the reference.
    ``answers`` holds the numbers of tokens of the chosen and the rejected answers in the global batch.
    """

    tokens: A
    weights: A | None = None
    documents: A | None = None
    reference: A | None = None
    weight: float = field(default=float("nan"), kw_only=True)
    answers: tuple[float, float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if np.isnan(self.weight):
            tokens: Any = self.tokens
            total = tokens.shape[0] * (tokens.shape[1] - 1)
            if self.weights is not None:
                total = np.asarray(self.weights).sum(dtype=np.float64)
            object.__setattr__(self, "weight", float(total))

    def map(self, change: Callable[[A], B]) -> Batch[B]:
        """This batch, or a part of it, with ``change`` applied to each array; totals of the global batch are kept."""
        others = (None if x is None else change(x) for x in (self.weights, self.documents, self.reference))
        return Batch(change(self.tokens), *others, weight=self.weight, answers=self.answers)

    @property
    def predictions(self) -> float:
        """The sum of the weights of the global batch's predictions: the divisor of means over tokens."""
        return self.weight if self.answers is None else sum(self.answers)


class DataOrder(Protocol):
    """The batches of a run: a pure function of the step, independent of the number of ranks."""

    def batch(self, step: int) -> Batch[NDArray[Any]]:
        """The global batch of ``step`` (0-based)."""

    def weight(self, step: int) -> float:
        """The sum of the weights of the global batch of ``step``, without reading its tokens."""

    def epochs(self, steps: int) -> dict[str, float]:
        """Passes over each source of text or examples in the first ``steps`` steps."""

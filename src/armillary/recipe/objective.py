"""The training objectives: next-token prediction on plain text, weighted tokens of examples, or preferences.

An objective names a data order that yields batches with weights and documents (``armillary.corpus``). Every criterion
returns sums, which the trainer divides by the weight of the global batch. ``measures`` names a criterion's measurements
besides the loss.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from armillary.recipe.errors import FieldError
from armillary.recipe.shapes import Document

PreferenceLoss = Literal["sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "ipo_sequence"]
SMOOTHED = ("sigmoid", "sigmoid_norm", "robust")  # the losses that label_smoothing changes


class NextToken(Document):
    """Predict each token of the corpus's text from the tokens before it, all with weight 1."""

    kind: Literal["next-token"] = "next-token"


class Supervised(Document):
    """Weighted tokens of ``examples``, the hash of a set of them in the corpus (``corpus.write_examples``).

    Sequences hold whole examples that do not attend to each other. The run has no ``mixture``.
    """

    kind: Literal["supervised"] = "supervised"
    examples: str = Field(pattern="^[0-9a-f]{16}$")


class Preference(Document):
    """Pairs of a preferred and a rejected answer: direct preference optimization (Rafailov et al. 2023, 2305.18290).

    ``examples`` is the hash of a set of pairs in the corpus (``corpus.write_pairs``). The set holds the log-probability
    of each answer under the reference, the weights that the run starts from. Let c and r be the log-probabilities of
    the chosen and the rejected answer minus those under the reference. Depending on ``loss``, the loss of a pair is:

    - ``sigmoid``: -log sigmoid(beta (c - r)), with log-probabilities summed over the tokens (equation 7);
    - ``sigmoid_norm``: the same with the mean over the tokens of each answer (Lambert et al. 2024, arXiv 2411.15124);
    - ``robust``: ``sigmoid``, corrected on the assumption that a share ``label_smoothing`` of the pairs is swapped
      (Chowdhury et al. 2024, arXiv 2403.00409);
    - ``hinge``: max(0, 1 - beta (c - r)) (Zhao et al. 2023, arXiv 2305.10425);
    - ``ipo``: (c - r - 1 / (2 beta))^2 with means over tokens, as TRL computes it, and ``ipo_sequence`` with sums, as
      published (Azar et al. 2023, arXiv 2310.12036, equation 17).

    The names are those of TRL. With ``label_smoothing`` s, the first two losses become (1 - s) times the loss plus s
    times the loss of the swapped pair. ``sft_weight`` times the mean cross entropy of the chosen answers' tokens is
    added.
    """

    later: ClassVar[tuple[str, ...]] = ("loss", "label_smoothing", "sft_weight")

    kind: Literal["preference"] = "preference"
    examples: str = Field(pattern="^[0-9a-f]{16}$")
    beta: float = Field(default=0.1, gt=0)
    loss: PreferenceLoss = "sigmoid"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    sft_weight: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _smoothing_has_an_effect(self) -> Self:
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise FieldError(f"belongs to losses {', '.join(SMOOTHED)}; loss is '{self.loss}'", "label_smoothing")
        return self


Objective = Annotated[NextToken | Supervised | Preference, Field(discriminator="kind")]


MEASURES = tuple(f"preference/{name}" for name in ("margin", "accuracy", "chosen_logprob", "rejected_logprob"))
"""The measurements of a step on pairs: means over the pairs of its batch, before the step.

``margin`` is the difference of the implicit rewards, beta (c - r), with sums over tokens for every loss. ``accuracy``
is the share of pairs in which the chosen answer has the larger reward. The others are log-probabilities in nats.
"""


def measures(objective: NextToken | Supervised | Preference) -> tuple[str, ...]:
    """Names of a step's measurements besides the loss, each a column of the metrics and a field of the result."""
    return MEASURES if isinstance(objective, Preference) else ()

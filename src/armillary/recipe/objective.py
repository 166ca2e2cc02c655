"""What a run learns from its data: the next token of plain text, or weighted tokens of examples.

An objective names a data order that yields batches with weights and documents (``armillary.corpus``); every criterion
returns sums, which the trainer divides by the weight of the global batch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from armillary.recipe.shapes import Document


class NextToken(Document):
    """Each token of the corpus's text from those before it, all with the weight 1."""

    kind: Literal["next-token"] = "next-token"


class Supervised(Document):
    """Weighted tokens of ``examples``, the hash of a set of them in the corpus (``corpus.write_examples``).

    Sequences hold whole examples that see nothing of each other. The run has no ``mixture``.
    """

    kind: Literal["supervised"] = "supervised"
    examples: str = Field(pattern="^[0-9a-f]{16}$")


class Preference(Document):
    """Pairs of a preferred and a rejected answer. Read, and refused by the trainer until it can train them."""

    kind: Literal["preference"] = "preference"
    examples: str = Field(pattern="^[0-9a-f]{16}$")
    beta: float = Field(default=0.1, gt=0)


Objective = Annotated[NextToken | Supervised | Preference, Field(discriminator="kind")]

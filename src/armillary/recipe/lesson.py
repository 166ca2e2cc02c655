"""The parts that a post-training (``Teaching``) and the lesson of a recipe share.

These are the questions, the fine-tuning, and the runs from which its gain is predicted.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from armillary.recipe.adapter import Lora
from armillary.recipe.choices import Language
from armillary.recipe.errors import FieldError
from armillary.recipe.shapes import Document


class Questions(Document):
    """Questions whose answers are computed (``post synthesize``).

    ``items`` is the number of training questions. ``held_out`` is the number of questions of the same families and
    levels that are kept out of training, and ``harder`` the number one level above. ``teacher`` is the model that
    rewrites questions: a model folder, a .gguf file or a URL.
    """

    items: int = Field(default=2000, ge=8)
    held_out: int = Field(default=300, ge=2)
    harder: int = Field(default=0, ge=0)
    families: tuple[str, ...] = ()
    languages: tuple[Language, ...] = ("zh", "en")
    levels: tuple[int, ...] = (1,)
    seed: int = Field(default=0, ge=0)
    teacher: str | None = None


class Tuning(Document):
    """Supervised fine-tuning (``post sft``)."""

    epochs: float = Field(default=3.0, gt=0)
    lr: float | None = Field(default=None, gt=0)
    batch_tokens: int | None = Field(default=None, ge=2)
    context_length: int | None = Field(default=None, ge=2)
    precision: Literal["fp32", "bf16"] | None = None
    seed: int = Field(default=0, ge=0)
    lora: Lora | None = None


class Gain(Document):
    """Runs on these parts of the data, from which the score of the full run is predicted before it starts."""

    parts: tuple[float, ...] = (0.125, 0.25, 0.5)

    @model_validator(mode="after")
    def _parts_are_shares(self) -> Self:
        if (
            len(self.parts) < 3
            or not all(0 < part < 1 for part in self.parts)
            or len(set(self.parts)) < len(self.parts)
        ):
            raise FieldError(
                f"must be three or more distinct shares between 0 and 1, given {list(self.parts)}", "parts"
            )
        return self


class Lesson(Document):
    """The fine-tuning of a recipe's published model after the verdict.

    ``budget_share`` is the lesson's share of the whole budget. The number of passes over the questions is the largest
    that fits this share, at most ``sft.epochs``. Without a budget it is ``sft.epochs``.
    """

    budget_share: float = Field(default=0.15, gt=0, lt=0.5)
    questions: Questions = Questions()
    sft: Tuning = Tuning()
    gain: Gain = Gain()
    max_new_tokens: int = Field(default=40, ge=1)

    @model_validator(mode="after")
    def _no_teacher(self) -> Self:
        if self.questions.teacher is not None:
            message = "a lesson does not reword its questions; leave it out, or use `armillary post run`"
            raise FieldError(message, "questions", "teacher")
        return self

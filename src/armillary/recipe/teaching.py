"""The document of one post-training: its questions, stages and examinations.

A stage that is not named is skipped. Options of a stage have the names and defaults of its verb (``armillary post …``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from armillary.recipe.document import FolderName, PathText, beside, load_document
from armillary.recipe.errors import FieldError
from armillary.recipe.lesson import Gain, Questions, Tuning
from armillary.recipe.shapes import Document


class Evolution(Document):
    """Harder and different questions derived from the training questions (``post evolve``).

    The first ``items`` questions are changed. ``reference`` is the model that measures a question's difficulty: a model
    folder, a .gguf file or a URL; by default the base model.
    """

    items: int = Field(default=500, ge=1)
    rounds: int = Field(default=1, ge=1)
    breadth: float = Field(default=0.25, ge=0, le=1)
    samples: int = Field(default=4, ge=1)
    reference: str | None = None


class Rejection(Document):
    """Rejection sampling (``post reject``) on new questions of the same families, and a second fine-tuning on both."""

    questions: int = Field(default=1000, ge=8)
    samples: int = Field(default=4, ge=1)
    temperatures: tuple[float, ...] = (0.7, 1.0)


class PreferenceStage(Document):
    """Pairs of right and wrong samples (``post pairs``), and ``post dpo`` on them. Needs ``reject``."""

    beta: float = Field(default=0.1, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    lr: float | None = Field(default=None, gt=0)


class Merging(Document):
    """``post merge`` of the models of earlier stages.

    With ``evaluations``, a search over at most this many merges finds the weights by the loss on at most ``validation``
    further held-out questions. The result may be not to merge.
    """

    method: Literal["linear", "task", "slerp", "ties", "dare", "weighted"] = "task"
    scale: float = Field(default=1.0, gt=0)
    evaluations: int | None = Field(default=None, ge=1)
    validation: int = Field(default=200, ge=8)

    @model_validator(mode="after")
    def _weights_can_be_found(self) -> Self:
        if self.evaluations is not None and self.method == "weighted":
            raise FieldError(
                "the weights of 'weighted' are the models' scores and cannot be searched; use 'linear'", "method"
            )
        if self.evaluations is not None and self.scale != 1.0:
            raise FieldError("is chosen by the search; leave it out, or leave out evaluations", "scale")
        return self


class Questioning(Document):
    """How models are examined.

    ``sets`` are further files of items by name, such as unrelated ones. ``texts`` are files of plain text (JSON Lines
    with ``text``), on which bits per byte are measured. Both show what a model forgets. ``difference`` is the smallest
    difference in accuracy that matters: before each comparison, the needed items and seeds are computed for it.
    """

    sets: dict[str, PathText] = Field(default_factory=dict)
    texts: dict[str, PathText] = Field(default_factory=dict)
    max_new_tokens: int = Field(default=200, ge=1)
    difference: float = Field(default=0.05, gt=0, lt=1)


class Teaching(Document):
    """One post-training. Relative paths are relative to the folder of its file."""

    format: Literal[1] = 1
    name: FolderName
    model: PathText
    template: str | None = None
    questions: Questions = Questions()
    evolve: Evolution | None = None
    decontaminate: tuple[PathText, ...] = ()
    sft: Tuning = Tuning()
    gain: Gain | None = None
    reject: Rejection | None = None
    dpo: PreferenceStage | None = None
    merge: Merging | None = None
    examine: Questioning = Questioning()

    @model_validator(mode="after")
    def _stages_have_what_they_need(self) -> Self:
        if self.dpo is not None and self.reject is None:
            raise FieldError("needs the stage 'reject', whose samples are paired; add it, or leave dpo out", "dpo")
        if self.merge is not None and self.reject is None and self.dpo is None:
            raise FieldError("needs two models: add the stage 'reject', or leave merge out", "merge")
        if taken := {"held-out", "harder"} & self.examine.sets.keys():
            raise FieldError(f"'{sorted(taken)[0]}' is the name of a built-in set; choose another", "examine", "sets")
        if taken := {"held-out", "harder", *self.examine.sets} & self.examine.texts.keys():
            raise FieldError(
                f"'{sorted(taken)[0]}' is already the name of a set of questions; choose another", "examine", "texts"
            )
        return self


def load_teaching(path: Path) -> Teaching:
    """Read and check a post-training.

    Raises:
        UsageError: as ``load_document``.
    """
    teaching = load_document(path, Teaching)
    base = path.resolve().parent

    def absolute(where: str) -> str:
        return str(beside(base, where))

    def opened(model: str | None) -> str | None:
        return model if model is None or "://" in model else absolute(model)

    questions = teaching.questions.model_copy(update={"teacher": opened(teaching.questions.teacher)})
    evolve = teaching.evolve and teaching.evolve.model_copy(update={"reference": opened(teaching.evolve.reference)})
    files = {
        field: {name: absolute(where) for name, where in getattr(teaching.examine, field).items()}
        for field in ("sets", "texts")
    }
    return teaching.model_copy(
        update={
            "model": absolute(teaching.model),
            "questions": questions,
            "evolve": evolve,
            "decontaminate": tuple(map(absolute, teaching.decontaminate)),
            "examine": teaching.examine.model_copy(update=files),
        }
    )

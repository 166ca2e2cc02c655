"""Options of low-rank adapters (LoRA), which a run trains instead of all weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from armillary.recipe.shapes import Document

Target = Literal["q", "k", "v", "out", "gate", "up", "down"]
TARGETS: tuple[Target, ...] = ("q", "k", "v", "out", "gate", "up", "down")


class Lora(Document):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685, section 4.1): a matrix W becomes W + alpha / rank * B A.

    W keeps its value from the run's start; A [rank, in] is drawn from the seed, B [out, rank] starts at 0. ``targets``
    are the matrices of the layers: queries, keys, values and output of attention, and those of the feed-forward block.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    targets: tuple[Target, ...] = TARGETS

    @field_validator("targets")
    @classmethod
    def _some_once(cls, value: tuple[Target, ...]) -> tuple[Target, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError(f"must name at least one matrix, each once, of {', '.join(TARGETS)}")
        return value

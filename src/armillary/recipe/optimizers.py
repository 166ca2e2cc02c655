"""The kinds of optimizers that a run can name: what each has for options, and what rooms without torch know of it.

How a kind takes its steps is registered in ``armillary.optim`` under the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, TypeVar

from pydantic import AfterValidator, Field

from armillary.recipe.shapes import Document


class OptimizerOptions(Document):
    """Options of one kind of optimizer beside those of ``OptimizerSpec``; each has a default.

    ``matrices_only``: it takes the steps of the layers' matrices (``Role.matrix``) and leaves the rest to AdamW.
    ``gathers``: it brings whole matrices together from several ranks. ``spectral``: its steps of a matrix have a
    spectral norm that grows with the square root of the width, not with the width, which the width transfer corrects.
    ``stacks``: a stack of models takes its steps as AdamW's fused kernel does.
    """

    matrices_only: ClassVar[bool] = False
    gathers: ClassVar[bool] = False
    spectral: ClassVar[bool] = False
    stacks: ClassVar[bool] = False


_Options = TypeVar("_Options", bound=OptimizerOptions)
_KINDS: dict[str, type[OptimizerOptions]] = {}


def register_options(name: str) -> Callable[[type[_Options]], type[_Options]]:
    """Make the decorated class the options of ``OptimizerSpec.kind`` ``name``.

    Raises:
        ValueError: the name is taken, or an option has no default.
    """

    def add(options: type[_Options]) -> type[_Options]:
        if name in _KINDS:
            raise ValueError(f"options of an optimizer of kind {name!r} are registered already")
        options()
        _KINDS[name] = options
        return options

    return add


def options_of(kind: str) -> type[OptimizerOptions]:
    """The options of a registered kind; KeyError for another one."""
    return _KINDS[kind]


def _known(kind: str) -> str:
    if kind not in _KINDS:
        raise ValueError(f"should be a registered optimizer: {', '.join(map(repr, sorted(_KINDS)))}")
    return kind


OptimizerKind = Annotated[str, AfterValidator(_known)]


@register_options("adamw")
class AdamWOptions(OptimizerOptions):
    """AdamW has no options beside the common ones."""

    stacks = True


@register_options("muon")
class MuonOptions(OptimizerOptions):
    """Muon; ``momentum`` stands in ``OptimizerSpec`` itself, where runs of earlier versions have it."""

    matrices_only = True
    gathers = True
    spectral = True

    momentum: float = Field(default=0.95, ge=0, lt=1)
